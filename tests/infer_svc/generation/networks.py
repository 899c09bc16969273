"""Two small networks with random weights, and what transformers makes of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from safetensors.numpy import load_file

from infer_svc.backends.trt_build import Profile

GOLDEN = Path(__file__).parent / "golden"
Tensors = dict[str, NDArray[Any]]


@dataclass
class Network:
    """A folder as of Hugging Face, and what `make_golden.py` noted."""

    name: str
    config: dict[str, Any] = field(init=False)
    weights: Tensors = field(init=False)
    given: list[list[int]] = field(init=False)
    """Prompts, or sources."""
    made: list[list[int]] = field(init=False)
    """Greedy."""
    forced_ids: NDArray[np.int64] = field(init=False)
    """[B, T] at random, with the logits [B, T, V] after each."""
    forced_logits: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        folder = GOLDEN / self.name
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = load_file(folder / "model.safetensors")
        expected = json.loads((folder / "expected.json").read_text())
        self.given, self.made = expected["given"], expected["made"]
        with np.load(folder / "forced.npz") as forced:
            self.forced_ids, self.forced_logits = forced["ids"], forced["logits"]


class Stepper:
    """A step graph in ONNX Runtime, with a cache for each row that is written in place.

    Args:
        model: the ONNX model.
        rows: of the cache.
        fixed: inputs that stay: what the encoder gave.
    """

    def __init__(self, model: Any, rows: int, fixed: Tensors | None = None) -> None:
        options = onnxruntime.SessionOptions()
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        self._binding = self._session.io_binding()
        self.caches: dict[str, Any] = {}
        dtypes = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        for tensor in self._session.get_inputs():
            if tensor.name[:2] not in ("k_", "v_"):
                continue
            zeros = np.zeros([rows, *tensor.shape[1:]], dtypes[tensor.type])
            cache = onnxruntime.OrtValue.ortvalue_from_numpy(zeros)
            self.caches[tensor.name] = cache
            self._binding.bind_ortvalue_input(tensor.name, cache)
            self._binding.bind_ortvalue_output(f"{tensor.name}_out", cache)
        for name, array in (fixed or {}).items():
            self._binding.bind_cpu_input(name, array)
        self._binding.bind_output("logits")

    def step(self, ids: Sequence[Sequence[int]], start: Sequence[int]) -> NDArray[Any]:
        """Run the next ids of each row, which are not equally many; return logits [B, V]."""
        count = [len(row) for row in ids]
        filled = np.zeros((len(ids), max(count)), np.int64)
        for row, part in enumerate(ids):
            filled[row, : len(part)] = part
        self._binding.bind_cpu_input("ids", filled)
        self._binding.bind_cpu_input("start", np.array(start, np.int64))
        self._binding.bind_cpu_input("count", np.array(count, np.int64))
        self._session.run_with_iobinding(self._binding)
        logits: NDArray[Any] = self._binding.get_outputs()[-1].numpy()
        return logits

    def greedy(self, first: Sequence[Sequence[int]], tokens: int, ban: int = -1) -> list[list[int]]:
        """Generate so many tokens after the first ids of each row, never the banned one."""
        made: list[list[int]] = [[] for _ in first]
        ids, start = [list(row) for row in first], [0] * len(first)
        for _ in range(tokens):
            logits = self.step(ids, start)
            if ban >= 0:
                logits[:, ban] = -np.inf
            start = [at + len(row) for at, row in zip(start, ids, strict=True)]
            ids = [[int(best)] for best in logits.argmax(1)]
            for row, best in zip(made, ids, strict=True):
                row.extend(best)
        return made


def profile(model: Any, **sizes: tuple[int, int, int]) -> Profile:
    """Return the shapes that an engine is built for: smallest, best and largest of each name."""
    found = {}
    for given in model.graph.input:
        dims = [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim]
        if any(isinstance(dim, str) for dim in dims):
            smallest, best, largest = (
                tuple(sizes[dim][at] if isinstance(dim, str) else dim for dim in dims)
                for at in range(3)
            )
            found[given.name] = smallest, best, largest
    return found


def run(model: Any, feeds: Tensors) -> Tensors:
    """Run a model once."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [tensor.name for tensor in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))
