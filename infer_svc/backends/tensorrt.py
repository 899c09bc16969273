"""TensorRT on a GPU: an engine built from the ONNX file, one set of buffers for each lane."""

import functools
import itertools
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infer_svc.backends.cuda import Buffer, Device, Stream, device
from infer_svc.backends.onnxruntime import load_onnxruntime
from infer_svc.backends.trt_api import Api, Profile, Tensor, load_api
from infer_svc.config import ModelConfig
from mesh.errors import EngineError, InvalidInput, SettingsError
from mesh.tensor import Array, Tensors, TensorSpec, dtype_name

if TYPE_CHECKING:
    from infer_svc.build.builds import Builds


def rungs(max_rows: int) -> list[int]:
    """Return the batch sizes that are run: powers of two, and the largest."""
    powers = itertools.takewhile(lambda rows: rows < max_rows, (2**n for n in itertools.count()))
    return [*powers, max_rows]


def profiles_of(
    inputs: Sequence[TensorSpec], max_rows: int, lengths: Sequence[int]
) -> list[Profile]:
    """Return an optimization profile for each length, or one where every size is fixed.

    The best shape is the largest: a server's batches are full when it matters, and what is shorter
    is padded to the length of its bucket anyway.

    Args:
        inputs: as the ONNX file declares them.
        max_rows: largest batch; 0: the first dimension is none of rows.
        lengths: buckets of the sizes that are not fixed, the smallest first.
    """
    skip = 1 if max_rows else 0
    dynamic = any(-1 in spec.shape[skip:] for spec in inputs)
    rows = ((1,), (max_rows,)) if max_rows else ((), ())

    def sizes(spec: TensorSpec, rows: tuple[int, ...], length: int) -> tuple[int, ...]:
        return (*rows, *(length if dim == -1 else dim for dim in spec.shape[skip:]))

    return [
        {
            spec.name: (
                sizes(spec, rows[0], length),
                sizes(spec, rows[1], length),
                sizes(spec, rows[1], length),
            )
            for spec in inputs
            if -1 in spec.shape
        }
        for length in (lengths if dynamic else lengths[:1])
    ]


class TensorRTEngine:
    """A loaded engine.

    Args:
        api: of TensorRT.
        gpu: that runs it.
        plan: the serialized engine.
    """

    def __init__(self, api: Api, gpu: Device, plan: bytes) -> None:
        self._api = api
        self._gpu = gpu
        with gpu.current():
            self._engine = api.load(plan)
            self._cache = api.runtime_cache(self._engine)
        self.tensors = api.tensors(self._engine)
        self.inputs = tuple(_spec(tensor) for tensor in self.tensors if tensor.is_input)
        self.outputs = tuple(_spec(tensor) for tensor in self.tensors if not tensor.is_input)
        # Contexts of one engine are made and ended one by one.
        self._lock = threading.Lock()

    def open(self) -> "TensorRTContext":
        """Return a context with its buffers, warmed up at every shape that it runs."""
        with self._lock, self._gpu.current():
            return TensorRTContext(
                self._api, self._gpu, self._engine, self._cache, self.tensors, self._lock
            )

    def close(self) -> None:
        """Give back the engine's memory; its contexts are closed before."""
        with self._lock, self._gpu.current():
            self._engine = self._cache = None


class TensorRTContext:
    """Buffers, a stream, and an execution context for each profile. One run at a time."""

    def __init__(
        self,
        api: Api,
        gpu: Device,
        engine: Any,
        cache: Any,
        tensors: Sequence[Tensor],
        lock: threading.Lock,
    ) -> None:
        self._lock = lock
        self._api = api
        self._gpu = gpu
        self._engine = engine
        self._inputs = [tensor for tensor in tensors if tensor.is_input]
        self._outputs = [tensor for tensor in tensors if not tensor.is_input]
        self._stream = Stream(gpu.driver)
        self._contexts: list[Any] = []
        self._configs: list[Any] = []
        self._limits: list[dict[str, tuple[int, ...]]] = []
        for index in range(self._engine.num_optimization_profiles):
            context, config = api.context(engine, cache)
            self._configs.append(config)
            if index and not context.set_optimization_profile_async(index, self._stream.handle):
                raise EngineError(f"profile {index} cannot be chosen: {api.lines.text()}")
            self._stream.wait()
            self._contexts.append(context)
            self._limits.append({
                tensor.name: tuple(self._engine.get_tensor_profile_shape(tensor.name, index)[2])
                for tensor in self._inputs
            })  # fmt: skip
        self._buffers = self._allocate(gpu.driver)
        for context in self._contexts:
            for name, buffer in self._buffers.items():
                context.set_tensor_address(name, buffer.address)
        for index in range(len(self._contexts)):
            self._warm_up(index)

    def run(self, parts: Sequence[Tensors]) -> Tensors:
        """Run one batch; contract as in `infer_svc.backends.Context`.

        It is padded with zeros to the next batch size that was warmed up, and to the length of its
        bucket.
        """
        with self._gpu.current():
            return self._run(parts)

    def close(self) -> None:
        """Free the memory of the GPU; call it when nothing runs."""
        with self._lock, self._gpu.current():
            # In this order: a context uses its config, both the engine, until they end.
            self._contexts.clear()
            self._configs.clear()
            self._engine = None
            for buffer in self._buffers.values():
                buffer.free()

    def _run(self, parts: Sequence[Tensors]) -> Tensors:
        given = {
            name: (sum(len(part[name]) for part in parts), *array.shape[1:])
            if len(parts) > 1
            else array.shape
            for name, array in parts[0].items()
        }
        index, shapes = self._fit(given)
        context, stream = self._contexts[index], self._stream
        for name, shape in shapes.items():
            _fill(self._buffers[name].view(shape), [part[name] for part in parts])
            self._buffers[name].upload(shape, stream.stream)
            if not context.set_input_shape(name, shape):
                raise EngineError(f"input {name!r} cannot have the shape {list(shape)}")
        if not context.execute_async_v3(stream.handle):
            raise EngineError(f"TensorRT refused the batch: {self._api.lines.text()}")
        made = {
            tensor.name: tuple(context.get_tensor_shape(tensor.name)) for tensor in self._outputs
        }
        for name, shape in made.items():
            self._buffers[name].download(shape, stream.stream)
        stream.wait()
        real = {
            (axis, padded): size
            for name, shape in given.items()
            for axis, (size, padded) in enumerate(zip(shape, shapes[name], strict=True))
        }
        return {
            tensor.name: self._buffers[tensor.name].view(made[tensor.name])[
                tuple(
                    slice(real.get((axis, size), size) if dim == -1 else size)
                    for axis, (dim, size) in enumerate(
                        zip(tensor.shape, made[tensor.name], strict=True)
                    )
                )
            ]
            for tensor in self._outputs
        }

    def _fit(self, shapes: dict[str, tuple[int, ...]]) -> tuple[int, dict[str, tuple[int, ...]]]:
        """Return the smallest profile that has room, and the shapes to run."""
        for index, limits in enumerate(self._limits):
            if all(
                size <= limit
                for name, shape in shapes.items()
                for size, limit in zip(shape, limits[name], strict=True)
            ):
                return index, {
                    tensor.name: _padded(shapes[tensor.name], limits[tensor.name], tensor.shape)
                    for tensor in self._inputs
                }
        raise InvalidInput(
            f"shapes {shapes} came, wanted at most {self._limits[-1]}; the engine was built for no "
            "larger ones"
        )

    def _allocate(self, driver: Any) -> dict[str, Buffer]:
        largest = dict.fromkeys((tensor.name for tensor in (*self._inputs, *self._outputs)), 0)
        for context, limits in zip(self._contexts, self._limits, strict=True):
            for name, shape in limits.items():
                context.set_input_shape(name, shape)
            for name in largest:
                size = math.prod(context.get_tensor_shape(name))
                largest[name] = max(largest[name], size)
        return {
            tensor.name: Buffer(driver, largest[tensor.name], np.dtype(tensor.dtype))
            for tensor in (*self._inputs, *self._outputs)
        }

    def _warm_up(self, index: int) -> None:
        """Run each batch size of a profile once: the first run of a shape takes up to a second."""
        limits = self._limits[index]
        rows = max(
            (limits[t.name][0] for t in self._inputs if t.shape and t.shape[0] == -1), default=1
        )
        for count in rungs(rows):
            self._run([{
                tensor.name: np.zeros(
                    tuple(
                        count if axis == 0 and dim == -1 else limit
                        for axis, (dim, limit) in enumerate(
                            zip(tensor.shape, limits[tensor.name], strict=True)
                        )
                    ),
                    tensor.dtype,
                )
                for tensor in self._inputs
            }])  # fmt: skip


def load_tensorrt(
    path: Path, config: ModelConfig, gpu: int, builds: "Builds | None"
) -> TensorRTEngine:
    """Load the engine of a model: a plan of the repository, or one built from its ONNX file.

    Args:
        path: a file of the model, in the folder of its version.
        config: of the model.
        gpu: number among the visible ones.
        builds: where engines come from.

    Raises:
        SettingsError: there is no TensorRT, no such GPU, or no engine cache.
        EngineError: the engine cannot be built or loaded.
    """
    if builds is None:
        raise SettingsError(f"model {config.name!r} wants TensorRT, this process has no engines")
    api, owner = tensorrt_api(), device(gpu)
    engine = builds.engine_for(path, config, gpu)
    try:
        return TensorRTEngine(api, owner, engine.plan.read_bytes())
    except OSError as err:
        raise EngineError(f"plan {engine.plan} cannot be read: {err.strerror}") from err
    except EngineError as err:
        raise EngineError(f"plan {engine.plan}: {err}") from err


def onnx_inputs(path: Path) -> list[TensorSpec]:
    """Return the inputs that an ONNX file declares.

    Raises:
        SettingsError: the file is no model.
    """
    return list(load_onnxruntime(path, 1).inputs)


@functools.cache
def tensorrt_api() -> Api:
    """Return the TensorRT of this process, which has one logger and one runtime."""
    return load_api()


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


def _padded(
    shape: tuple[int, ...], limits: tuple[int, ...], dims: tuple[int, ...]
) -> tuple[int, ...]:
    sizes = [
        limit if dim == -1 else size for size, limit, dim in zip(shape, limits, dims, strict=True)
    ]
    if dims and dims[0] == -1:
        sizes[0] = next(rows for rows in rungs(limits[0]) if rows >= shape[0])
    return tuple(sizes)


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tensor.name, dtype_name(np.empty(0, tensor.dtype)), tensor.shape)
