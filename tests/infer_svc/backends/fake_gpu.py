"""A GPU that is none: PyCUDA's module, the driver's library and TensorRT, in the host's memory.

What is queued on a stream runs when somebody waits for it, so that memory which is overwritten too
early gives wrong answers here as well; engines are run by ONNX Runtime.
"""

import ctypes
import itertools
import time
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from infer_svc.backends.cuda import Device
from infer_svc.backends.libcuda import Library
from infer_svc.backends.onnxruntime import load_onnxruntime
from infer_svc.backends.shapes import profiles_of
from infer_svc.backends.trt_api import Tensor
from infer_svc.backends.trt_log import Lines
from mesh.tensor import NUMPY_DTYPES, Tensors, TensorSpec

Op = Callable[[], None]


class FakeStream:
    """Operations in order; also what a capture records."""

    handles = itertools.count(1)
    by_handle: ClassVar["weakref.WeakValueDictionary[int, FakeStream]"] = (
        weakref.WeakValueDictionary()
    )

    def __init__(self, flags: int = 0) -> None:
        assert flags == 1, "TensorRT waits for the whole GPU after a run on another kind of stream"
        self.handle = next(self.handles)
        self.by_handle[self.handle] = self
        self.queue: list[Op] = []
        self.capture: list[Op] | None = None

    def put(self, op: Op) -> None:
        (self.queue if self.capture is None else self.capture).append(op)

    def drain(self) -> None:
        while self.queue:
            self.queue.pop(0)()


class FakeEvent:
    def __init__(self, flags: int = 0) -> None:
        self.blocking = bool(flags & FakeDriver.event_flags.BLOCKING_SYNC)
        self.stream: FakeStream | None = None
        self.at = 0.0

    def record(self, stream: FakeStream) -> None:
        self.stream = stream

        def note() -> None:
            self.at = time.perf_counter()

        stream.put(note)

    def synchronize(self) -> None:
        assert self.blocking, "waiting for this event would burn a core"
        assert self.stream is not None
        self.stream.drain()

    def time_till(self, later: "FakeEvent") -> float:
        return 1e3 * (later.at - self.at)


class FakeAllocation:
    def __init__(self, driver: "FakeDriver", size: int) -> None:
        self._driver = driver
        self._memory = np.full(size, 0x7F, np.uint8)  # whoever reads what nobody wrote shall see it

    def __int__(self) -> int:
        return int(self._memory.ctypes.data)

    def free(self) -> None:
        self._driver.calls["free"] += 1
        self._memory = np.empty(0, np.uint8)


class FakeDriver:
    """`pycuda.driver`, as far as it is used."""

    event_flags = SimpleNamespace(BLOCKING_SYNC=1, DISABLE_TIMING=2)
    host_alloc_flags = SimpleNamespace(PORTABLE=1)
    Error = type("Error", (Exception,), {})
    MemoryError = type("MemoryError", (Error,), {})  # PyCUDA's is none of Python's either

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.alive: Counter[str] = Counter()
        """Objects that exist, by kind."""
        self.leaked: list[str] = []
        """Kinds of objects that ended while the context was not current: PyCUDA frees none."""
        self.current = 0
        self.room = 1 << 40

    def Device(self, index: int) -> Any:
        if index:
            raise self.Error(f"there is no GPU {index}")
        return SimpleNamespace(
            name=lambda: "none", compute_capability=lambda: (9, 0),
            retain_primary_context=lambda: SimpleNamespace(push=self._push, pop=self._pop),
        )  # fmt: skip

    def Stream(self, flags: int) -> Any:
        self.calls["stream"] += 1
        return self._watched("stream", FakeStream(flags))

    def Event(self, flags: int) -> Any:
        return self._watched("event", FakeEvent(flags))

    def pagelocked_empty(self, elements: int, dtype: Any, mem_flags: int) -> Any:
        self.calls["pagelocked_empty"] += 1
        return self._watched("pinned", np.empty(elements, dtype))

    def mem_alloc(self, size: int) -> FakeAllocation:
        if size > self.room:
            raise self.MemoryError("cuMemAlloc failed: out of memory")
        self.calls["mem_alloc"] += 1
        return FakeAllocation(self, size)

    def mem_get_info(self) -> tuple[int, int]:
        return 1 << 30, 1 << 32

    def _watched(self, kind: str, made: Any) -> Any:
        self.alive[kind] += 1

        def end() -> None:
            self.alive[kind] -= 1
            if not self.current:
                self.leaked.append(kind)

        weakref.finalize(made, end).atexit = False
        return made

    def _push(self) -> None:
        self.current += 1

    def _pop(self) -> None:
        self.current -= 1


class FakeLibcuda:
    """`libcuda.so.1`, as far as it is used. `state` is the code that every wait returns."""

    def __init__(self) -> None:
        self.state = 0
        self.calls: Counter[str] = Counter()
        self.pinned: dict[int, int] = {}
        self.graphs: dict[int, list[Op]] = {}
        self.fail_capture = False
        self.fail_register = 0

    def cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> int:
        return self._copy("to_device", target, source, size, stream)

    def cuMemcpyDtoHAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> int:
        return self._copy("to_host", target, source, size, stream)

    def cuMemcpyDtoDAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> int:
        return self._copy("on_device", target, source, size, stream)

    def cuMemsetD8Async(self, address: Any, value: int, size: Any, stream: Any) -> int:
        def fill() -> None:
            ctypes.memset(address, value, size)

        FakeStream.by_handle[stream].put(fill)
        return self.state

    def cuMemHostRegister_v2(self, address: Any, size: Any, flags: int) -> int:
        if self.fail_register:
            return self.fail_register
        if address in self.pinned:
            return 712
        self.pinned[address] = size
        return 0

    def cuMemHostUnregister(self, address: Any) -> int:
        return 0 if self.pinned.pop(address, 0) else 713

    def cuStreamSynchronize(self, stream: Any) -> int:
        if not self.state:
            FakeStream.by_handle[stream].drain()
        return self.state

    def cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> int:
        FakeStream.by_handle[stream].capture = []
        return 0

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:
        captured = FakeStream.by_handle[stream]
        number = len(self.graphs) + 1
        self.graphs[number] = captured.capture or []
        captured.capture = None
        graph._obj.value = number
        return 901 if self.fail_capture else 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> int:
        executable._obj.value = graph.value
        return 0

    def cuGraphDestroy(self, graph: Any) -> int:
        return 0

    def cuGraphExecDestroy(self, graph: Any) -> int:
        self.calls["graph_destroy"] += 1
        return 0

    def cuGraphLaunch(self, graph: Any, stream: Any) -> int:
        self.calls["launch"] += 1
        for op in self.graphs[graph]:
            FakeStream.by_handle[stream].put(op)
        return 0

    def cuGetErrorName(self, code: int, name: Any) -> int:
        name._obj.value = {0: b"CUDA_SUCCESS", 700: b"CUDA_ERROR_ILLEGAL_ADDRESS"}.get(code)
        return 0

    def _copy(self, kind: str, target: Any, source: Any, size: Any, stream: Any) -> int:
        self.calls[kind] += 1
        if not self.state:

            def move() -> None:
                ctypes.memmove(target, source, size)

            FakeStream.by_handle[stream].put(move)
        return self.state


class FakeExecution:
    """An execution context of TensorRT."""

    def __init__(self, engine: "FakeEngine") -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self.asked: list[tuple[str, tuple[int, ...]]] = []
        """Each shape that was set."""
        self.profile = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, largest = self._engine.get_tensor_profile_shape(name, self.profile)
        self._shapes[name] = shape
        self.asked.append((name, shape))
        sizes = zip(least, shape, largest, strict=True)
        return all(low <= size <= high for low, size, high in sizes)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        declared = self._engine.shapes[name]
        first = next(iter(self._shapes.values()))
        return tuple(
            first[min(axis, len(first) - 1)] if dim == -1 else dim
            for axis, dim in enumerate(declared)
        )

    def execute_async_v3(self, stream: int) -> bool:
        if self._engine.refuse():
            return False
        inputs = {
            tensor.name: self._view(tensor) for tensor in self._engine.tensors if tensor.is_input
        }
        outputs = {
            tensor.name: self._view(tensor)
            for tensor in self._engine.tensors
            if not tensor.is_input
        }

        def work() -> None:
            for name, array in self._engine.run(inputs).items():
                outputs[name][...] = array

        FakeStream.by_handle[stream].put(work)
        return True

    def _view(self, tensor: Tensor) -> Any:
        """Return what is at the tensor's address when the array is looked at."""
        shape, dtype = self.get_tensor_shape(tensor.name), np.dtype(tensor.dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        memory = (ctypes.c_uint8 * size).from_address(self._addresses[tensor.name])
        return np.frombuffer(memory, dtype).reshape(shape)


class FakeEngine:
    """An engine of TensorRT: an ONNX file that ONNX Runtime runs."""

    def __init__(self, path: Path, max_rows: int, lengths: tuple[int, ...]) -> None:
        loaded = load_onnxruntime(path, 1)
        self._context = loaded.open()
        self.profiles = profiles_of(loaded.inputs, max_rows, lengths)
        self.num_optimization_profiles = len(self.profiles)
        self.tensors = [
            Tensor(spec.name, NUMPY_DTYPES[spec.dtype], spec.shape, is_input)
            for specs, is_input in ((loaded.inputs, True), (loaded.outputs, False))
            for spec in specs
        ]
        self.shapes = {tensor.name: tensor.shape for tensor in self.tensors}
        self.refuse: Callable[[], bool] = lambda: False

    def inputs(self) -> list[TensorSpec]:
        """Return the inputs as the file declares them."""
        return [
            TensorSpec(tensor.name, "", tensor.shape) for tensor in self.tensors if tensor.is_input
        ]

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        return self.profiles[index].get(name, (self.shapes[name],) * 3)

    def run(self, inputs: Tensors) -> Tensors:
        return self._context.run([inputs])


class FakeApi:
    """`infer_svc.backends.trt_api.Api` over such engines; a plan is the path of an ONNX file."""

    def __init__(
        self, max_rows: int, lengths: tuple[int, ...] = (), *, captures_graphs: bool = True
    ) -> None:
        self.captures_graphs = captures_graphs
        self.lines = Lines()
        self.loaded: list[FakeEngine] = []
        self.made = self.compiled = 0
        self.asked: list[tuple[str, bool]] = []
        self.memory: list[tuple[int, int] | None] = []
        self._max_rows = max_rows
        self._lengths = lengths

    def load(self, plan: bytes) -> FakeEngine:
        self.loaded.append(FakeEngine(Path(plan.decode()), self._max_rows, self._lengths))
        return self.loaded[-1]

    def tensors(self, engine: FakeEngine) -> list[Tensor]:
        return engine.tensors

    def runtime_cache(self, engine: FakeEngine, data: bytes = b"") -> list[bytes]:
        return [data] if data else []

    def memory_bytes(self, engine: FakeEngine) -> int:
        return 4096

    def dump_cache(self, cache: list[bytes]) -> bytes:
        return b"".join(cache)

    def context(
        self,
        engine: FakeEngine,
        cache: list[bytes],
        *,
        kernels: str,
        graphs: bool,
        memory: tuple[int, int] | None,
    ) -> tuple[FakeExecution, object]:
        self.made += 1
        self.asked.append((kernels, graphs))
        self.memory.append(memory)
        if not cache:
            cache.append(b"compiled")
            self.compiled += 1
        return FakeExecution(engine), object()


def fake_device() -> tuple[Device, FakeDriver, FakeLibcuda]:
    """Return a device and what stands behind it."""
    driver, library = FakeDriver(), FakeLibcuda()
    return Device(0, driver, Library(library, library)), driver, library
