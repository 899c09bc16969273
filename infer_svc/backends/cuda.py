"""One GPU through PyCUDA: its primary context, and what a lane owns there.

Allocating and freeing device memory stops the GPU with Python's lock held, so all of it happens
while a lane is opened or closed, never while it serves.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from infer_svc.backends.errors import DeviceLost, OutOfMemory
from infer_svc.backends.libcuda import STICKY, Library
from mesh.errors import EngineError, SettingsError
from mesh.tensor import Array

log = logging.getLogger(__name__)


@dataclass
class Usage:
    """What this process holds of a GPU now, and how often it asked for memory."""

    contexts: int = 0
    """Execution contexts that exist."""
    pinned_bytes: int = 0
    """Of host memory, allocated or registered."""
    device_bytes: int = 0
    """Of the lanes' buffers; TensorRT's own memory is not in it."""
    allocations: int = 0
    """Since the start: each of them stops the GPU."""
    frees: int = 0
    """Since the start: each of them stops the GPU."""


class Device:
    """The primary context of a GPU, the one that TensorRT uses too.

    Args:
        index: of the GPU among those that are visible.
        driver: PyCUDA's module.
        library: the driver's calls that PyCUDA has not.

    Raises:
        SettingsError: there is no such GPU.
    """

    def __init__(self, index: int, driver: Any, library: Library) -> None:
        self.index = index
        self.driver = driver
        self.library = library
        self.usage = Usage()
        self._registered: dict[tuple[int, int], bool] = {}
        self._guard = threading.Lock()
        try:
            device = driver.Device(index)
            self.name: str = device.name()
            self.compute_capability: tuple[int, int] = device.compute_capability()
            # Not make_context or pycuda.autoinit: a second context cannot use TensorRT's memory.
            self._context = device.retain_primary_context()
        except driver.Error as err:
            raise SettingsError(f"GPU {index} cannot be used: {err}") from err

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context this thread's; errors of the driver become `EngineError`."""
        self._context.push()
        try:
            yield
        except (self.driver.MemoryError, MemoryError) as err:  # PyCUDA's is none of Python's
            raise OutOfMemory(f"the GPU has no memory: {err}") from err
        except self.driver.Error as err:
            raise EngineError(f"the GPU failed: {err}") from err
        finally:
            # A thread that ends with a context on its stack would end the process.
            self._context.pop()

    def examine(self, error: EngineError, stream: int) -> None:
        """Ask the driver for the state of the GPU: PyCUDA's errors and TensorRT's hide its code.

        Args:
            error: that came.
            stream: handle of the one it came on, which is waited for.

        Raises:
            DeviceLost: only a new process helps.
        """
        if isinstance(error, DeviceLost):
            return
        with self.current():
            code = self.library.probe(stream)
            if code in STICKY:
                name = self.library.name(code)
                raise DeviceLost(f"{error}; the GPU's state is {name} ({code})") from error

    def record(self, stream: int, queue: Callable[[], None], what: str) -> int:
        """Return a graph of what a call queues: one launch; 0: it cannot be one.

        Args:
            stream: handle of the one it is queued on.
            queue: the call.
            what: it is, for the log.

        Raises:
            DeviceLost: only a new process helps.
        """
        try:
            self.library.begin_capture(stream)
            try:
                queue()
            finally:
                graph = self.library.end_capture(stream)
        except DeviceLost:
            raise
        except EngineError as err:  # a layer may do what no graph can; the engine runs without
            log.warning("no graph", extra={"shapes": what, "error": str(err)})
            return 0
        return graph

    def memory(self) -> tuple[int, int]:
        """Return the free and the whole memory of the GPU, in bytes."""
        with self.current():
            free, whole = self.driver.mem_get_info()
        return int(free), int(whole)

    def count(self, **changes: int) -> None:
        """Add to the figures of `usage`."""
        with self._guard:
            for name, change in changes.items():
                setattr(self.usage, name, getattr(self.usage, name) + change)

    def register(self, memory: memoryview) -> None:
        """Pin memory that exists, as an arena's, so that tensors in it go to the GPU as they are.

        Does nothing for memory that is pinned already.

        Raises:
            EngineError: the driver refuses; the limit of locked memory may be too low.
        """
        address = address_of(np.frombuffer(memory, np.uint8))
        place = address, address + memory.nbytes
        if place in self._registered:
            return
        with self.current():
            here = self.library.register(address, memory.nbytes)
        self._registered[place] = here
        if here:  # else through another GPU, for all
            self.count(pinned_bytes=memory.nbytes)

    def unregister_all(self) -> None:
        """End every `register`, before the memory goes."""
        with self.current():
            while self._registered:
                (begin, end), here = self._registered.popitem()
                if here:
                    self.library.unregister(begin)
                    self.count(pinned_bytes=begin - end)

    def addresses(self, arrays: Sequence[Array]) -> list[int]:
        """Return where arrays begin, if the GPU can read every one where it is; else nothing."""
        found: list[int] = []
        for array in arrays if self._registered else ():
            begin = address_of(array)
            end = begin + array.nbytes
            inside = any(first <= begin and end <= last for first, last in self._registered)
            if not inside or not array.flags.c_contiguous:
                return []
            found.append(begin)
        return found


def address_of(array: Array) -> int:
    """Return where an array's elements begin."""
    address: int = array.__array_interface__["data"][0]
    return address


def visible_gpus() -> int:
    """Return how many GPUs this process sees, as `CUDA_VISIBLE_DEVICES` says.

    That variable takes numbers, and UUIDs of GPUs and of MIG slices; a slice is a GPU here.

    Raises:
        SettingsError: there is no PyCUDA or no driver.
    """
    return int(load_driver().Device.count())


def load_driver() -> Any:
    """Return PyCUDA's driver module, ready to use.

    Raises:
        SettingsError: there is no PyCUDA or no driver.
    """
    try:
        from pycuda import driver  # noqa: PLC0415  needs the driver's library
    except ImportError as err:
        raise SettingsError(f"no PyCUDA: {err}; see `trtmesh doctor --gpu`") from err
    try:
        driver.init()
    except driver.Error as err:
        raise SettingsError(f"no GPU can be used: {err}; see `trtmesh doctor --gpu`") from err
    return driver


_opened: dict[int, Device] = {}
"""A process has one context on each GPU."""


def device(index: int) -> Device:
    """Return a GPU, the same object each time."""
    if index not in _opened:
        _opened[index] = Device(index, load_driver(), Library())
    return _opened[index]


def devices() -> list[Device]:
    """Return the GPUs that this process uses."""
    return list(_opened.values())


class Buffer:
    """Pinned memory and its twin on the GPU, both for the largest shape.

    All but `view` needs the GPU's context to be current.
    """

    def __init__(self, gpu: Device, elements: int, dtype: np.dtype[np.generic]) -> None:
        self._gpu = gpu
        driver = gpu.driver
        self.host: Array = driver.pagelocked_empty(
            max(elements, 1), dtype, mem_flags=driver.host_alloc_flags.PORTABLE
        )
        self.host[:] = 0
        self.item_bytes = self.host.itemsize
        self._host_address = address_of(self.host)
        self._device = driver.mem_alloc(self.host.nbytes)
        self.address = int(self._device)
        """On the GPU."""
        size = self.host.nbytes
        gpu.count(pinned_bytes=size, device_bytes=size, allocations=2)

    def view(self, shape: tuple[int, ...]) -> Array:
        """Return the beginning of the pinned memory as an array."""
        return self.host[: int(np.prod(shape))].reshape(shape)

    def upload(self, size: int, stream: int) -> None:
        """Queue a copy of that many bytes to the GPU."""
        self._gpu.library.to_device(self.address, self._host_address, size, stream)

    def download(self, size: int, stream: int) -> None:
        """Queue a copy of that many bytes from the GPU."""
        self._gpu.library.to_host(self._host_address, self.address, size, stream)

    def free(self) -> None:
        """Free the memory of the GPU; the pinned memory goes with its arrays."""
        self._device.free()
        size = self.host.nbytes
        self._gpu.count(pinned_bytes=-size, device_bytes=-size, frees=2)


class Block:
    """Memory on the GPU. Needs a current context."""

    def __init__(self, gpu: Device, size: int) -> None:
        self._gpu = gpu
        self.size = max(size, 256)
        self._device = gpu.driver.mem_alloc(self.size)
        self.address = int(self._device)
        gpu.count(device_bytes=self.size, allocations=1)

    def free(self) -> None:
        """Give it back."""
        self._device.free()
        self._gpu.count(device_bytes=-self.size, frees=1)


class Stream:
    """A stream and the events of a lane, on the last of which it sleeps. Needs a current context.

    `mark` is called before the copies to the GPU, after them, after the engine, and at the end.
    """

    MARKS = 4

    def __init__(self, driver: Any) -> None:
        # Not the default stream: TensorRT would wait for the whole GPU after each run.
        self.pycuda = driver.Stream(1)  # CU_STREAM_NON_BLOCKING
        self._events = [driver.Event(driver.event_flags.BLOCKING_SYNC) for _ in range(self.MARKS)]
        self.handle = int(self.pycuda.handle)
        """As TensorRT and the driver take it; `pycuda` is PyCUDA's object."""

    def mark(self, index: int) -> None:
        """Note when the GPU comes to this point of the stream."""
        self._events[index].record(self.pycuda)

    def wait(self) -> None:
        """Sleep until everything that was queued so far is done."""
        self.mark(self.MARKS - 1)
        self._events[-1].synchronize()

    def seconds(self) -> list[float]:
        """Return the times between the marks, once `wait` has returned."""
        return [
            1e-3 * float(begin.time_till(end))
            for begin, end in zip(self._events, self._events[1:], strict=False)
        ]
