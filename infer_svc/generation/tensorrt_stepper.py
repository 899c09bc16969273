"""Steps by TensorRT: caches stay on the GPU, and so does each row's next token."""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer_svc.backends.contexts import Contexts
from infer_svc.backends.cuda import Block, Device, Stream, address_of
from infer_svc.backends.machine import Machine
from infer_svc.backends.ptx import KERNELS, launch
from infer_svc.backends.shapes import rungs
from infer_svc.backends.staging import NUMBER as ID
from infer_svc.backends.staging import Stage, Staging, pinned
from infer_svc.backends.tensorrt import TensorRTEngine
from infer_svc.backends.tensorrt_context import WARM_RUNS
from infer_svc.generation.layout import COUNT, START, XLEN, Layout, sized
from infer_svc.generation.stepper import CACHE, CROSSED
from mesh.errors import EngineError
from mesh.tensor import NUMPY_DTYPES, Array

log = logging.getLogger(__name__)

AHEAD = 2
"""While the tokens of one step are handed over, the next one runs."""
PIECES = (64, 16, 4, 1)
"""Numbers of ids that are read at a time."""
STAGES = 32
"""Pieces that may be on their way to the GPU."""
WRITE, READ = "write", "read"
"""Kinds of contexts of a step: one id of each row, or a piece of one row."""


@dataclass(eq=False)
class Taken:
    """What a step brought."""

    best: Any
    top: Any
    stepper: "TensorRTStepper"

    def logits(self, row: int) -> NDArray[np.floating[Any]]:
        """Return the logits of a row, if no step was put since."""
        return self.stepper.logits(row)


@dataclass(eq=False)
class _Step:
    """A step under way."""

    stage: Stage
    """In three parts of as many as there are slots: starts, ids, and the best tokens."""
    top: Array
    """Their logits."""
    rows: int


class TensorRTStepper:
    """Steps on one GPU. Everything is allocated here; a step allocates and frees nothing.

    A slot's caches are a row of one block for each layer's keys and values, so that the first slots
    are a batch without copies. The engine writes into them in place. Shapes have a context each.

    Args:
        gpu: that runs them.
        step: engine of the decoder's step, with the profile of `step_profile`.
        encoder: engine with the profiles of `encoder_profiles`; None: there is none.
        slots: of the caches.
        machine: how it is run.
        in_place: whether the engines write into caches where they are; else what they return is
            copied there.

    Raises:
        EngineError: there is no memory, or the GPU fails.
    """

    ahead = AHEAD

    def __init__(
        self,
        gpu: Device,
        step: TensorRTEngine,
        encoder: TensorRTEngine | None,
        slots: int,
        machine: Machine,
        *,
        in_place: bool = True,
    ) -> None:
        self.slots = slots
        self._gpu, self._library, self._faults = gpu, gpu.library, machine.faults
        self._engines = [step] if encoder is None else [step, encoder]
        self._layout = Layout(step.inputs, slots, in_place=in_place)
        self.length, self.source_length = self._layout.length, self._layout.source_length
        self._outputs = {spec.name: spec for spec in step.outputs}
        self.vocabulary = self._outputs["logits"].shape[-1]
        self._source_counts = [0] * slots
        self.cache_bytes = slots * sum(self._layout.row_bytes.values())
        self._widths = rungs(slots)
        self._under_way: deque[_Step] = deque()
        self._blocks: dict[str, Block] = {}
        self._contexts: list[Contexts] = []
        self._tops: deque[Array] = deque()
        self._starts: Any = None
        self._texts: Any = None
        self._logits: Any = None
        with gpu.current():
            self._stream: Any = Stream(gpu.driver)
        try:
            with gpu.current():
                self._open(step, encoder, machine)
        except EngineError as err:
            gpu.examine(err, self._stream.handle)
            self.close()
            raise

    def begin(self, slot: int, source: Sequence[int]) -> None:
        """Queue the encoder, if there is one, and the copies of what it makes to the slot."""
        if self._encoder is None:
            return
        with self._gpu.current():
            length = next(size for size in self._lengths if size >= len(source))
            count = len(source)
            stage = self._texts.next()
            stage.numbers[:length] = 0
            stage.numbers[:count] = source
            stage.numbers[length : length + count] = 1
            stage.numbers[length + count : 2 * length] = 0
            stage.numbers[2 * length] = self._source_counts[slot] = count
            self._upload("input_ids", stage, 0, length)
            self._upload("attention_mask", stage, length, length)
            self._upload("xlen", stage, 2 * length, 1, at=slot)
            self._texts.mark(stage)
            self._encoder.run(length)
            for name, size in self._layout.row_bytes.items():
                if name.startswith(CROSSED):
                    target = self._blocks[name].address + slot * size
                    row = self._blocks[f"made {name}"].address
                    self._library.copy(target, row, size, self._stream.handle)

    def read(self, slot: int, ids: Sequence[int], start: int) -> None:
        """Queue ids of a slot, in pieces of sizes that have a context."""
        with self._gpu.current():
            while ids:
                size = next(
                    size
                    for size in PIECES
                    if size <= len(ids) or (size < 2 * len(ids) and start + size <= self.length)
                )
                piece, ids = ids[:size], ids[size:]
                stage = self._texts.next()
                numbers = stage.numbers
                numbers[:size] = 0
                numbers[: len(piece)] = piece
                numbers[START], numbers[COUNT] = start, len(piece)
                numbers[XLEN] = self._source_counts[slot]
                self._upload("piece", stage, 0, XLEN + 1)
                self._texts.mark(stage)
                self._step.run((READ, size), self._piece(slot))
                start += len(piece)

    def put(self, ids: Sequence[int | None], start: Sequence[int]) -> None:
        """Queue a step, and the copies of its tokens to the host and to where the next has its."""
        rows = len(ids)
        width = next(width for width in self._widths if width >= rows)
        with self._gpu.current():
            self._faults.at("enqueue")
            stage, top = self._starts.next(), self._tops[0]
            self._tops.rotate(-1)
            numbers, slots = stage.numbers, self.slots
            numbers[:rows] = start
            numbers[rows:width] = 0
            self._upload("start", stage, 0, width)
            for first, known in _runs(ids):
                begin = slots + first
                numbers[begin : begin + len(known)] = known
                self._upload("ids", stage, begin, len(known), at=first)
            self._step.run((WRITE, width))
            handle, best = self._stream.handle, self._blocks["best"].address
            self._library.copy(self._blocks["ids"].address, best, width * ID.itemsize, handle)
            home = address_of(numbers) + 2 * slots * ID.itemsize
            self._library.to_host(home, best, rows * ID.itemsize, handle)
            tops = self._blocks["top"].address
            self._library.to_host(address_of(top), tops, rows * top.itemsize, handle)
            for kernel in KERNELS:
                if self._faults.hits(kernel):
                    launch(self._gpu.driver, kernel, self._stream)
            self._starts.mark(stage)
            self._under_way.append(_Step(stage, top, rows))

    def take(self) -> Taken:
        """Sleep until the oldest step is done."""
        step = self._under_way.popleft()
        try:
            with self._gpu.current():
                step.stage.event.synchronize()
                self._faults.at("sync")
        except EngineError as err:
            self._gpu.examine(err, self._stream.handle)
            raise
        best = step.stage.numbers[2 * self.slots : 2 * self.slots + step.rows]
        return Taken(best, step.top[: step.rows], self)

    def logits(self, row: int) -> NDArray[np.floating[Any]]:
        """Return the logits of a row of the last step that was put."""
        item = self._logits.itemsize * self.vocabulary
        with self._gpu.current():
            source = self._blocks["logits"].address + row * item
            self._library.to_host(address_of(self._logits), source, item, self._stream.handle)
            self._stream.wait()
        logits: NDArray[np.floating[Any]] = self._logits
        return logits

    def move(self, source: int, target: int) -> None:
        """Queue the copies of a slot, of its next token too."""
        with self._gpu.current():
            sizes = {**self._layout.row_bytes, "ids": ID.itemsize}
            if self._encoder is not None:
                sizes["xlen"] = ID.itemsize
                self._source_counts[target] = self._source_counts[source]
            for name, size in sizes.items():
                base = self._blocks[name].address
                self._library.copy(
                    base + target * size, base + source * size, size, self._stream.handle
                )

    def reset(self) -> None:
        """Wait until nothing runs any more, and make the contexts anew that ran last."""
        self._under_way.clear()
        try:
            with self._gpu.current():
                self._stream.wait()
                for contexts in self._contexts:
                    contexts.rebuild()
        except EngineError as err:
            self._gpu.examine(err, self._stream.handle)
            log.exception("contexts cannot be made anew")

    def close(self) -> None:
        """Give back the memory of the GPU; nothing runs any more."""
        with self._gpu.current():
            while self._contexts:
                self._contexts.pop().free()
            while self._blocks:
                self._blocks.popitem()[1].free()
            self._forget()
        for engine in self._engines:
            engine.close()

    def _forget(self) -> None:
        """Drop all that PyCUDA made: it ends its objects only where the context is current."""
        for staging in (self._starts, self._texts):
            if staging is not None:
                staging.free()
        if self._logits is not None:
            size = sum(memory.nbytes for memory in (*self._tops, self._logits))
            self._gpu.count(pinned_bytes=-size)
        self._under_way.clear()
        self._tops.clear()
        self._stream = self._logits = self._starts = self._texts = None

    def _open(self, step: TensorRTEngine, encoder: TensorRTEngine | None, machine: Machine) -> None:
        dtype = np.dtype(NUMPY_DTYPES[self._outputs["logits"].dtype])
        self._allocate(self._layout.step_blocks(self.vocabulary, dtype.itemsize))
        self._logits = pinned(self._gpu, self.vocabulary, dtype)
        self._tops.extend(pinned(self._gpu, self.slots, dtype) for _ in range(AHEAD + 1))
        self._starts = Staging(self._gpu, self._stream, AHEAD + 1, 3 * self.slots)
        numbers = max(2 * self.source_length, XLEN) + 1
        self._texts = Staging(self._gpu, self._stream, STAGES, numbers)
        self._step = self._new_contexts(step, machine)
        self._encoder = self._new_contexts(encoder, machine) if encoder is not None else None
        ones = self._starts.next()
        ones.numbers[: self.slots] = 1
        self._upload("count", ones, 0, self.slots)
        self._stream.wait()
        self._make_steps()
        if encoder is not None:
            self._make_encoder(encoder)
        self._warm_up()
        for engine in self._engines:
            engine.settle()

    def _make_steps(self) -> None:
        specs = self._engines[0].inputs
        for width in self._widths:
            shapes = {spec.name: sized(spec, width, 1) for spec in specs}
            copied = self._layout.copied(CACHE, width)
            self._step.make((WRITE, width), 0, shapes, self._layout.step(self._places()), copied)
        for size in (size for size in PIECES if size <= self.length):
            shapes = {spec.name: sized(spec, 1, size) for spec in specs}
            # Its addresses change with the slot, and a graph would be made anew each time.
            at, copied = self._piece(0), self._layout.copied(CACHE, 1)
            self._step.make((READ, size), 0, shapes, at, copied, graphs=False)

    def _make_encoder(self, encoder: TensorRTEngine) -> None:
        """Make the encoder's contexts: their graphs write into one row, copied to a slot's then."""
        assert self._encoder is not None
        self._lengths = self._encoder.lengths("input_ids")
        self._allocate(self._layout.encoder_blocks(self._lengths[-1]))
        addresses = self._layout.encoder(self._places())
        copied = self._layout.copied(CROSSED, 1)
        for profile, length in enumerate(self._lengths):
            shapes = {spec.name: sized(spec, 1, length) for spec in encoder.inputs}
            self._encoder.make(length, profile, shapes, addresses, copied)

    def _warm_up(self) -> None:
        """Run every shape: the first run of one takes up to a second."""
        for _ in range(WARM_RUNS):
            for length in self._lengths if self._encoder is not None else ():
                self.begin(0, [0] * length)
            for size in (size for size in PIECES if size <= self.length):
                self.read(0, [0] * size, 0)
            for width in self._widths:
                self.put([0] * width, [0] * width)
                self.take()
        self._stream.wait()
        for contexts in self._contexts:
            contexts.capture()

    def _places(self) -> dict[str, int]:
        """Return where each block is."""
        return {name: block.address for name, block in self._blocks.items()}

    def _piece(self, slot: int) -> dict[str, int]:
        return self._layout.piece(self._places(), slot)

    def _upload(self, name: str, stage: Stage, begin: int, count: int, at: int = 0) -> None:
        """Queue the copy of some numbers of a stage to a block, from an element of it on."""
        target = self._blocks[name].address + at * ID.itemsize
        self._texts.upload(stage, begin, count, target)

    def _allocate(self, sizes: Mapping[str, int]) -> None:
        """Allocate blocks of zeros: no bits may be a NaN, which no mask makes harmless."""
        for name, size in sizes.items():
            block = self._blocks[name] = Block(self._gpu, size)
            self._library.zero(block.address, block.size, self._stream.handle)

    def _new_contexts(self, engine: TensorRTEngine, machine: Machine) -> Contexts:
        self._contexts.append(made := engine.contexts(self._stream, machine))
        return made


def _runs(ids: Sequence[int | None]) -> list[tuple[int, list[int]]]:
    """Return the known ids that follow each other, with the first row of each run."""
    found: list[tuple[int, list[int]]] = []
    for row, key in enumerate(ids):
        if key is None:
            continue
        if found and found[-1][0] + len(found[-1][1]) == row:
            found[-1][1].append(key)
        else:
            found.append((row, [key]))
    return found
