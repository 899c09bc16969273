"""What a lane runs batches with on a GPU: buffers, a stream, an execution context per shape."""

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from infer_svc.backends.batch import RunTimes
from infer_svc.backends.cuda import Block, Buffer, Device, Stream
from infer_svc.backends.errors import DeviceLost
from infer_svc.backends.machine import Machine
from infer_svc.backends.ptx import KERNELS, launch
from infer_svc.backends.shapes import Shapes, cropping, fit, rungs
from infer_svc.backends.trt_api import Api, Tensor
from infer_svc.faults import NO_FAULTS, Faults
from mesh.errors import EngineError
from mesh.tensor import Array, Tensors

ShapeOf = dict[str, tuple[int, ...]]
RunKey = tuple[int, tuple[tuple[int, ...], ...]]
"""A profile and the shapes of the inputs in their order."""


WARM_RUNS = 2
"""Of each shape: kernels are compiled in the first, a graph may be captured in the second."""


@dataclass(eq=False)
class ShapedRun:
    """One shape that batches are padded to, and the execution context that runs nothing else.

    A context that changes its shape makes its graph anew, which takes milliseconds, and a graph
    captured of it may be run no more.
    """

    context: Any
    config: Any
    """Lives as long as the context."""
    made: ShapeOf = field(default_factory=dict)
    """Shapes of the outputs."""
    graph: int = 0
    """That was captured of it; 0: none."""


class TensorRTContext:
    """Buffers, a stream, and an execution context for each shape. One run at a time.

    Everything is allocated here, for the largest shapes; a run allocates and frees nothing.

    Args:
        api: of TensorRT.
        gpu: that runs it.
        engine: TensorRT's.
        cache: of compiled kernels, shared by the engine's contexts; None: the flavour has none.
        lock: held while contexts of the engine are made or ended.
        machine: how it is run.
    """

    def __init__(
        self, api: Api, gpu: Device, engine: Any, cache: Any, lock: threading.Lock, machine: Machine
    ) -> None:
        self.times = RunTimes()
        self._lock = lock
        self._api = api
        self._gpu = gpu
        self._engine = engine
        self._cache = cache
        self._faults = machine.faults
        self._graphs_wanted = machine.graphs
        self._kernels = machine.kernels
        tensors = api.tensors(engine)
        self._inputs = [tensor for tensor in tensors if tensor.is_input]
        self._outputs = [tensor for tensor in tensors if not tensor.is_input]
        self._declared = {tensor.name: tensor.shape for tensor in self._inputs}
        self._limits: list[ShapeOf] = [
            {
                tensor.name: tuple(engine.get_tensor_profile_shape(tensor.name, index)[2])
                for tensor in self._inputs
            }
            for index in range(engine.num_optimization_profiles)
        ]
        self._runs: dict[RunKey, ShapedRun] = {}
        self._last: RunKey = (0, ())
        self._buffers: dict[str, Buffer] = {}
        self._block: Block | None = None
        self._stream: Any = Stream(gpu.driver)
        try:
            with gpu.current():
                self._open()
        except EngineError as err:
            self._gpu.examine(err, self._stream.handle)
            if not isinstance(err, DeviceLost):
                self._free()
            raise

    def run(self, parts: Sequence[Tensors]) -> Tensors:
        """Run one batch; contract as in `infer_svc.backends.Context`.

        It is padded with zeros to the next batch size that was warmed up, and to the length of its
        bucket.

        Raises:
            DeviceLost: after the failure, the GPU's state is one that no call recovers from.
        """
        try:
            with self._gpu.current():
                return self._run(parts, self._faults)
        except EngineError as err:
            self._gpu.examine(err, self._stream.handle)
            raise

    def rebuild(self) -> None:
        """Make the execution context of the last run anew, after a failure; the rest stays.

        The old one ends last: that waits for all work of the GPU, with Python's lock, and what
        failed is to begin elsewhere before.

        Raises:
            EngineError: it cannot be done.
            DeviceLost: as `run`.
        """
        try:
            with self._lock, self._gpu.current():
                self._faults.at("context")
                old = self._runs.pop(self._last, None)
                try:
                    self._make(self._last)
                    self._warm_up(self._last)
                finally:
                    if old is not None:
                        self._end(old)
        except EngineError as err:
            self._gpu.examine(err, self._stream.handle)
            raise

    def close(self) -> None:
        """Free the memory of the GPU; call it when nothing runs."""
        with self._lock, self._gpu.current():
            self._free()

    def _free(self) -> None:
        while self._runs:
            self._end(self._runs.popitem()[1])
        self._engine = self._cache = None
        # No reference may stay: PyCUDA ends its objects only where the context is current.
        while self._buffers:
            self._buffers.popitem()[1].free()
        if self._block is not None:
            self._block.free()
        self._block = self._stream = None

    def _open(self) -> None:
        self._faults.at("context")
        # Contexts of one lane never run at the same time: one block of memory is enough for all.
        self._block = Block(self._gpu, self._api.memory_bytes(self._engine))
        keys = [
            (index, shapes)
            for index, limits in enumerate(self._limits)
            for shapes in self._ladder(limits)
        ]
        for key in keys:
            self._make(key)
        self._allocate()
        for key in keys:
            self._warm_up(key)

    def _ladder(self, limits: ShapeOf) -> Iterator[tuple[tuple[int, ...], ...]]:
        """Yield the inputs' shapes that batches of a profile are padded to."""
        rows = max(
            (limits[t.name][0] for t in self._inputs if t.shape and t.shape[0] == -1), default=1
        )
        for count in rungs(rows):
            yield tuple(_sizes(tensor, limits[tensor.name], count) for tensor in self._inputs)

    def _make(self, key: RunKey) -> None:
        index, shapes = key
        assert self._block is not None
        context, config = self._api.context(
            self._engine, self._cache, kernels=self._kernels, graphs=self._graphs_wanted,
            memory=(self._block.address, self._block.size),
        )  # fmt: skip
        self._gpu.count(contexts=1)
        run = self._runs[key] = ShapedRun(context, config)
        if index and not context.set_optimization_profile_async(index, self._stream.handle):
            raise EngineError(f"profile {index} cannot be chosen: {self._api.lines.text()}")
        self._stream.wait()
        for tensor, shape in zip(self._inputs, shapes, strict=True):
            if not context.set_input_shape(tensor.name, shape):
                raise EngineError(f"input {tensor.name!r} cannot have the shape {list(shape)}")
        run.made.update(
            (tensor.name, tuple(context.get_tensor_shape(tensor.name))) for tensor in self._outputs
        )

    def _end(self, run: ShapedRun) -> None:
        self._gpu.count(contexts=-1)
        if run.graph:
            self._gpu.library.destroy(run.graph)
        # In this order: a context uses its config until it ends.
        run.context = None
        run.config = None

    def _run(self, parts: Sequence[Tensors], faults: Faults) -> Tensors:
        given = {
            name: (sum(len(part[name]) for part in parts), *array.shape[1:])
            if len(parts) > 1
            else array.shape
            for name, array in parts[0].items()
        }
        index, shapes = fit(given, self._declared, self._limits)
        self._last = index, tuple(shapes.values())
        run = self._runs[self._last]
        stream = self._stream
        faults.at("h2d")
        stream.mark(0)
        for tensor in self._inputs:
            self._upload(tensor.name, shapes[tensor.name], [part[tensor.name] for part in parts])
        stream.mark(1)
        faults.at("enqueue")
        self._enqueue(run)
        stream.mark(2)
        for tensor in self._outputs:
            buffer = self._buffers[tensor.name]
            buffer.download(math.prod(run.made[tensor.name]) * buffer.item_bytes, stream.handle)
        for seam in ("stall", "memory", "device", "sync"):
            faults.at(seam)
        for kernel in KERNELS:
            if faults.hits(kernel):
                launch(self._gpu.driver, kernel, stream)
        stream.wait()
        self._note(given, shapes)
        return self._results(given, shapes, run.made)

    def _upload(self, name: str, shape: tuple[int, ...], arrays: Sequence[Array]) -> None:
        """Queue the copy of an input; rows that the GPU can read where they are, from there."""
        buffer, gpu, stream = self._buffers[name], self._gpu, self._stream.handle
        whole = arrays[0].shape[1:] == shape[1:]
        if whole and (addresses := gpu.addresses(arrays)):
            at = buffer.address
            for address, array in zip(addresses, arrays, strict=True):
                gpu.library.to_device(at, address, array.nbytes, stream)
                at += array.nbytes
            return
        view = buffer.view(shape)
        _fill(view, arrays)
        buffer.upload(view.nbytes, stream)

    def _enqueue(self, run: ShapedRun) -> None:
        """Queue the engine's run, as a graph where one was captured."""
        if run.graph:
            self._gpu.library.launch(run.graph, self._stream.handle)
        else:
            self._execute(run.context)

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.handle):
            raise EngineError(f"TensorRT refused the batch: {self._api.lines.text()}")

    def _note(self, given: Shapes, shapes: Shapes) -> None:
        h2d, run, d2h = self._stream.seconds()
        self.times = RunTimes(
            h2d, run, d2h,
            sum(map(math.prod, given.values())), sum(map(math.prod, shapes.values())),
        )  # fmt: skip

    def _results(self, given: Shapes, shapes: Shapes, made: ShapeOf) -> Tensors:
        sizes = cropping(given, shapes)
        return {
            tensor.name: self._buffers[tensor.name].view(made[tensor.name])[
                tuple(
                    slice(sizes.get((axis, size), size) if dim == -1 else size)
                    for axis, (dim, size) in enumerate(
                        zip(tensor.shape, made[tensor.name], strict=True)
                    )
                )
            ]
            for tensor in self._outputs
        }

    def _allocate(self) -> None:
        largest = dict.fromkeys((tensor.name for tensor in (*self._inputs, *self._outputs)), 0)
        for (_, shapes), run in self._runs.items():
            inputs = zip((tensor.name for tensor in self._inputs), shapes, strict=True)
            for name, shape in (*inputs, *run.made.items()):
                largest[name] = max(largest[name], math.prod(shape))
        self._buffers.update(
            (tensor.name, Buffer(self._gpu, largest[tensor.name], np.dtype(tensor.dtype)))
            for tensor in (*self._inputs, *self._outputs)
        )

    def _warm_up(self, key: RunKey) -> None:
        """Run a shape: the first run of one takes up to a second."""
        context = self._runs[key].context
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer.address)
        inputs = {
            tensor.name: np.zeros(shape, tensor.dtype)
            for tensor, shape in zip(self._inputs, key[1], strict=True)
        }
        for _ in range(WARM_RUNS):
            self._run([inputs], NO_FAULTS)
        if self._graphs_wanted and not self._api.captures_graphs:
            run = self._runs[key]
            run.graph = self._gpu.record(
                self._stream.handle, partial(self._execute, run.context), str(key[1])
            )


def _sizes(tensor: Tensor, limits: tuple[int, ...], rows: int) -> tuple[int, ...]:
    return tuple(
        rows if axis == 0 and dim == -1 else limit
        for axis, (dim, limit) in enumerate(zip(tensor.shape, limits, strict=True))
    )


def _fill(view: Array, arrays: Sequence[Array]) -> None:
    """Write arrays one below the other, and zeros around them."""
    if len(arrays) == 1:
        if view.shape != arrays[0].shape:
            view[...] = 0
        view[tuple(map(slice, arrays[0].shape))] = arrays[0]
        return
    if view.shape[1:] != arrays[0].shape[1:]:
        view[...] = 0
    at = 0
    for array in arrays:
        view[(slice(at, at + len(array)), *map(slice, array.shape[1:]))] = array
        at += len(array)
    view[at:] = 0
