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
from infer_svc.generation.bart import Bart
from infer_svc.generation.gpt2 import gpt2_step
from infer_svc.generation.stepper import OrtStepper

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


GPT2, BART = Network("gpt2"), Network("bart")
GPT2_LENGTH, BART_LENGTH, SOURCE = 48, 32, 12
"""Of the caches, and of BART's sources."""


def gpt2_stepper(slots: int, dtype: type[Any] = np.float32) -> OrtStepper:
    """Return one without any ids yet."""
    model = gpt2_step(GPT2.config, GPT2.weights, GPT2_LENGTH, dtype)
    return OrtStepper(model.SerializeToString(), slots)


def bart_graphs(dtype: type[Any] = np.float32) -> tuple[bytes, bytes]:
    """Return encoder and step."""
    bart = Bart(BART.config, BART.weights, dtype)
    step, encoder = bart.step(BART_LENGTH, SOURCE), bart.encoder(SOURCE)
    return encoder.SerializeToString(), step.SerializeToString()


def bart_stepper(slots: int, dtype: type[Any] = np.float32) -> OrtStepper:
    """Return one without any source yet."""
    encoder, step = bart_graphs(dtype)
    return OrtStepper(step, slots, encoder)


def greedy(
    stepper: OrtStepper, first: Sequence[Sequence[int]], tokens: int, ban: int = -1
) -> list[list[int]]:
    """Generate so many tokens after the first ids of each slot, never the banned one."""
    made: list[list[int]] = [[] for _ in first]
    ids, start = [list(row) for row in first], [0] * len(first)
    for _ in range(tokens):
        logits = stepper.step(0, ids, start).all_logits
        if ban >= 0:
            logits[:, ban] = -np.inf
        start = [at + len(row) for at, row in zip(start, ids, strict=True)]
        ids = [[int(best)] for best in logits.argmax(1)]
        for row, best in zip(made, ids, strict=True):
            row.extend(best)
    return made


def agreement(stepper: OrtStepper, network: Network) -> float:
    """Return how often the best token is that of transformers, after ids that came at random."""
    same = []
    for at in range(network.forced_ids.shape[1]):
        ids = network.forced_ids[:, at : at + 1].tolist()
        best = stepper.step(0, ids, [at] * len(ids)).best
        same.append(best == network.forced_logits[:, at].argmax(1))
    return float(np.mean(same))


def assert_logits(stepper: OrtStepper, network: Network, chunk: int) -> None:
    """Compare with the logits of transformers after ids that come in pieces of a size."""
    for at in range(0, network.forced_ids.shape[1], chunk):
        ids = network.forced_ids[:, at : at + chunk].tolist()
        logits = stepper.step(0, ids, [at] * len(ids)).all_logits
        wanted = network.forced_logits[:, at + len(ids[0]) - 1]
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=2e-4)


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
