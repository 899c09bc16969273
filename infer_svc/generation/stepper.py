"""What runs steps: a network with a cache for so many generations at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from infer_svc.backends.onnxruntime import ERRORS, session, spec
from mesh.errors import EngineError, SettingsError
from mesh.tensor import NUMPY_DTYPES

CACHE, CROSSED = ("k_", "v_"), ("xk_", "xv_")


class Stepper(Protocol):
    """A network and its slots, which have a cache each. Belongs to one thread."""

    @property
    def slots(self) -> int:
        """How many generations may be under way."""

    @property
    def length(self) -> int:
        """Tokens that the cache of a slot holds."""

    @property
    def source_length(self) -> int:
        """Tokens that a source may have; 0: there is no encoder."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of the caches of all slots."""

    def begin(self, slot: int, source: Sequence[int]) -> None:
        """Give a slot what its generation is about; empty for a decoder without an encoder.

        Raises:
            EngineError: it failed.
        """

    def step(
        self, first: int, ids: Sequence[Sequence[int]], start: Sequence[int]
    ) -> NDArray[np.floating[Any]]:
        """Run the next ids of the slots from `first` on.

        Args:
            first: slot of the first row.
            ids: of each row, one or more; rows may have differently many.
            start: where the first id of each row goes in its cache.

        Returns:
            Logits [rows, V] after the last id of each row; the caller's until the next call.

        Raises:
            EngineError: it failed; caches of these rows are of no more use.
        """

    def move(self, source: int, target: int) -> None:
        """Copy all that a slot has to another slot."""


class OrtStepper:
    """Steps by ONNX Runtime on the CPU, which writes caches where they are.

    Args:
        step: ONNX of the decoder's step, as `infer_svc.generation.gpt2` and `bart` make it: a
            file, or what is in one.
        slots: of its caches.
        encoder: ONNX of the encoder; None: there is none.
        threads: of ONNX Runtime.

    Raises:
        SettingsError: a file is no model that ONNX Runtime can run, or no step of a decoder.
    """

    def __init__(
        self,
        step: Path | bytes,
        slots: int,
        encoder: Path | bytes | None = None,
        threads: int = 1,
    ) -> None:
        self._step = session(step, threads)
        self._encoder = session(encoder, threads) if encoder is not None else None
        self._state = {
            tensor.name: np.zeros([slots, *tensor.shape[1:]], NUMPY_DTYPES[tensor.dtype])
            for tensor in map(spec, self._step.get_inputs())
            if tensor.name.startswith((*CACHE, *CROSSED))
        }
        if not self._state:
            names = [tensor.name for tensor in self._step.get_inputs()]
            raise SettingsError(f"a step with the inputs {names} came, wanted caches k_0, v_0, …")
        self._xlen = np.zeros(slots, np.int64)
        self._bindings: dict[tuple[int, int], Any] = {}
        self.slots = slots
        self.length = self._longest(CACHE)
        self.source_length = self._longest(CROSSED)
        self.cache_bytes = sum(array.nbytes for array in self._state.values())

    def begin(self, slot: int, source: Sequence[int]) -> None:
        """Run the encoder, if there is one."""
        if self._encoder is None:
            return
        ids = np.array([source], np.int64)
        names = [tensor.name for tensor in self._encoder.get_outputs()]
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        for name, array in zip(names, _run(self._encoder.run, names, feeds), strict=True):
            self._state[name][slot, :, : len(source)] = array[0]
        self._xlen[slot] = len(source)

    def step(
        self, first: int, ids: Sequence[Sequence[int]], start: Sequence[int]
    ) -> NDArray[np.floating[Any]]:
        """Run the next ids of some slots."""
        count = [len(row) for row in ids]
        filled = np.zeros((len(ids), max(count)), np.int64)
        for row, part in enumerate(ids):
            filled[row, : len(part)] = part
        binding = self._binding(first, len(ids))
        binding.bind_cpu_input("ids", filled)
        binding.bind_cpu_input("start", np.array(start, np.int64))
        binding.bind_cpu_input("count", np.array(count, np.int64))
        if self._encoder is not None:
            binding.bind_cpu_input("xlen", self._xlen[first : first + len(ids)].copy())
        _run(self._step.run_with_iobinding, binding)
        logits: NDArray[np.floating[Any]] = binding.get_outputs()[-1].numpy()
        return logits

    def move(self, source: int, target: int) -> None:
        """Copy a slot."""
        for array in (*self._state.values(), self._xlen):
            array[target] = array[source]

    def _longest(self, names: tuple[str, ...]) -> int:
        found = [array.shape[2] for name, array in self._state.items() if name.startswith(names)]
        return found[0] if found else 0

    def _binding(self, first: int, rows: int) -> Any:
        """Return a binding of the caches of some slots, which are both read and written."""
        key = first, rows
        if key not in self._bindings:
            binding = self._bindings[key] = self._step.io_binding()
            for name, array in self._state.items():
                part = onnxruntime.OrtValue.ortvalue_from_numpy(array[first : first + rows])
                binding.bind_ortvalue_input(name, part)
                if name.startswith(CACHE):
                    binding.bind_ortvalue_output(f"{name}_out", part)
            binding.bind_output("logits")
        return self._bindings[key]


def _run(call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except ERRORS as err:
        raise EngineError(f"ONNX Runtime failed: {err}") from err
