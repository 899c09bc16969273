"""What runs steps: a network with a cache for so many generations at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from infer_svc.backends.onnxruntime import ERRORS, session, spec
from mesh.errors import EngineError, SettingsError
from mesh.tensor import NUMPY_DTYPES

CACHE, CROSSED = ("k_", "v_"), ("xk_", "xv_")
RESULTS = ("logits", "best", "top")
"""Outputs of a step beside the caches."""


class Outcome(Protocol):
    """What a step of some slots brought; of use until the next step begins."""

    @property
    def best(self) -> NDArray[np.int64]:
        """The best token of each row [rows]."""

    @property
    def top(self) -> NDArray[np.floating[Any]]:
        """Its logit [rows]."""

    def logits(self, row: int) -> NDArray[np.floating[Any]]:
        """Return the logits [V] of a row."""


class Stepper(Protocol):
    """A network and its slots, which have a cache each. Belongs to one thread.

    All but `close` may raise an `EngineError`; caches are of no more use then, until `reset`.
    """

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
    def vocabulary(self) -> int:
        """Tokens that there are."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of the caches of all slots."""

    @property
    def ahead(self) -> int:
        """Steps that may have been put and not taken."""

    def begin(self, slot: int, source: Sequence[int]) -> None:
        """Give a slot what its generation is about; empty for a decoder without an encoder."""

    def read(self, slot: int, ids: Sequence[int], start: int) -> None:
        """Run ids of a slot whose next token is known.

        Args:
            slot: number.
            ids: one or more.
            start: where the first one goes in the slot's cache.
        """

    def put(self, ids: Sequence[int | None], start: Sequence[int]) -> None:
        """Begin a step of the first slots.

        Args:
            ids: of each slot, the next one; None: the best token of the last step that was put.
            start: where it goes in the slot's cache.
        """

    def take(self) -> Outcome:
        """Wait for the oldest step that was put and not taken."""

    def move(self, source: int, target: int) -> None:
        """Copy all that a slot has to another slot."""

    def reset(self) -> None:
        """Forget the steps that were put and not taken, after a failure."""

    def close(self) -> None:
        """Give back what it holds."""


class OrtOutcome:
    """Of a step that is done.

    Args:
        logits: [rows, V].
        best: as in `Outcome`.
        top: as in `Outcome`.
    """

    def __init__(
        self,
        logits: NDArray[np.floating[Any]],
        best: NDArray[np.int64],
        top: NDArray[np.floating[Any]],
    ) -> None:
        self.all_logits = logits
        self.best = best
        self.top = top

    def logits(self, row: int) -> NDArray[np.floating[Any]]:
        """Return a row."""
        row_logits: NDArray[np.floating[Any]] = self.all_logits[row]
        return row_logits


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
        self.length = longest(self._state, CACHE)
        self.source_length = longest(self._state, CROSSED)
        if not self.length:
            names = [tensor.name for tensor in self._step.get_inputs()]
            raise SettingsError(f"a step with the inputs {names} came, wanted caches k_0, v_0, …")
        if encoder is None and any(name.startswith(CROSSED) for name in self._state):
            raise SettingsError("the step wants what an encoder makes; encoder.onnx is missing")
        self._xlen = np.zeros(slots, np.int64)
        self._bindings: dict[tuple[int, int], Any] = {}
        self.slots = slots
        outputs = {tensor.name: tensor.shape for tensor in map(spec, self._step.get_outputs())}
        self.vocabulary = outputs["logits"][-1]
        self._done: OrtOutcome | None = None
        self.cache_bytes = sum(array.nbytes for array in self._state.values())

    ahead = 1
    """A step is done when it was put."""

    def read(self, slot: int, ids: Sequence[int], start: int) -> None:
        """Run ids of a slot."""
        self.step(slot, [ids], [start])

    def put(self, ids: Sequence[int | None], start: Sequence[int]) -> None:
        """Run a step."""
        self._done = self.step(0, [[0 if key is None else key] for key in ids], start)

    def take(self) -> OrtOutcome:
        """Return what the step brought."""
        assert self._done is not None
        return self._done

    def reset(self) -> None:
        """Do nothing: no step is under way."""

    def close(self) -> None:
        """Do nothing: the memory goes with the object."""

    def begin(self, slot: int, source: Sequence[int]) -> None:
        """Run the encoder, if there is one, which writes into the slot."""
        if self._encoder is None:
            return
        ids = np.array([source], np.int64)
        binding = self._bound(self._encoder, CROSSED, CROSSED, slot, 1)
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", np.ones_like(ids))
        _run(self._encoder.run_with_iobinding, binding)
        self._xlen[slot] = len(source)

    def step(self, first: int, ids: Sequence[Sequence[int]], start: Sequence[int]) -> OrtOutcome:
        """Run the next ids of the slots from one on.

        Args:
            first: slot of the first row.
            ids: of each row, one or more; rows may have differently many.
            start: where the first id of each row goes in its cache.

        Raises:
            EngineError: it failed.
        """
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
        return OrtOutcome(*(value.numpy() for value in binding.get_outputs()[-len(RESULTS) :]))

    def move(self, source: int, target: int) -> None:
        """Copy a slot."""
        for array in (*self._state.values(), self._xlen):
            array[target] = array[source]

    def _binding(self, first: int, rows: int) -> Any:
        """Return what binds a step to the caches of some slots, the same each time."""
        key = first, rows
        if key not in self._bindings:
            names = (*CACHE, *CROSSED)
            binding = self._bindings[key] = self._bound(self._step, names, CACHE, first, rows)
            for name in RESULTS:
                binding.bind_output(name)
        return self._bindings[key]

    def _bound(
        self,
        session: onnxruntime.InferenceSession,
        read: tuple[str, ...],
        written: tuple[str, ...],
        first: int,
        rows: int,
    ) -> Any:
        """Return a binding of the memory of some slots, of which some is both read and written."""
        binding = session.io_binding()
        for name, array in self._state.items():
            part = onnxruntime.OrtValue.ortvalue_from_numpy(array[first : first + rows])
            if name.startswith(read):
                _run(binding.bind_ortvalue_input, name, part)
            if name.startswith(written):
                _run(binding.bind_ortvalue_output, f"{name}_out", part)
        return binding


def longest(caches: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """Return the tokens that a cache holds; 0: there is none.

    Args:
        caches: what has the shape [B, H, tokens, D], by name.
        names: that one begins with.
    """
    found = [cache.shape[2] for name, cache in caches.items() if name.startswith(names)]
    return found[0] if found else 0


def _run(call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except ERRORS as err:
        raise EngineError(f"ONNX Runtime failed: {err}") from err
