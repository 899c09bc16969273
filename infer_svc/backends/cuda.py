"""One GPU through PyCUDA: its primary context, and what a lane owns there.

Allocating and freeing device memory stops the GPU with Python's lock held, so all of it happens
while a lane is opened or closed, never while it serves.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mesh.errors import EngineError, SettingsError
from mesh.tensor import Array


class Device:
    """The primary context of a GPU, the one that TensorRT uses too.

    Args:
        index: of the GPU among those that are visible.

    Raises:
        SettingsError: there is no PyCUDA, no driver, or no such GPU.
    """

    def __init__(self, index: int) -> None:
        self.driver = load_driver()
        try:
            device = self.driver.Device(index)
            self.name: str = device.name()
            self.compute_capability: tuple[int, int] = device.compute_capability()
            # Not make_context or pycuda.autoinit: a second context cannot use TensorRT's memory.
            self._context = device.retain_primary_context()
        except self.driver.Error as err:
            raise SettingsError(f"GPU {index} cannot be used: {err}") from err

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context this thread's; errors of the driver become `EngineError`."""
        self._context.push()
        try:
            yield
        except (self.driver.Error, MemoryError) as err:
            raise EngineError(f"the GPU failed: {err}") from err
        finally:
            # A thread that ends with a context on its stack would end the process.
            self._context.pop()


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
        raise SettingsError(f"no PyCUDA: {err}; install trtmesh[tensorrt]") from err
    try:
        driver.init()
    except driver.Error as err:
        raise SettingsError(f"no GPU can be used: {err}; see `trtmesh doctor --gpu`") from err
    return driver


@functools.cache
def device(index: int) -> Device:
    """Return a GPU; a process has one context on it."""
    return Device(index)


class Buffer:
    """Pinned memory and its twin on the GPU, both for the largest shape.

    All but `view` needs the GPU's context to be current.
    """

    def __init__(self, driver: Any, elements: int, dtype: np.dtype[np.generic]) -> None:
        self._driver = driver
        self.host: Array = driver.pagelocked_empty(
            max(elements, 1), dtype, mem_flags=driver.host_alloc_flags.PORTABLE
        )
        self.host[:] = 0
        self._device = driver.mem_alloc(self.host.nbytes)

    @property
    def address(self) -> int:
        """On the GPU."""
        return int(self._device)

    def view(self, shape: tuple[int, ...]) -> Array:
        """Return the beginning of the pinned memory as an array."""
        return self.host[: int(np.prod(shape))].reshape(shape)

    def upload(self, shape: tuple[int, ...], stream: Any) -> None:
        """Begin to copy that much to the GPU."""
        self._driver.memcpy_htod_async(self._device, self.view(shape), stream)

    def download(self, shape: tuple[int, ...], stream: Any) -> None:
        """Begin to copy that much from the GPU."""
        self._driver.memcpy_dtoh_async(self.view(shape), self._device, stream)

    def free(self) -> None:
        """Free the memory of the GPU; the pinned memory goes with its arrays."""
        self._device.free()


class Stream:
    """A stream and the event that a lane sleeps on. Needs a current context."""

    def __init__(self, driver: Any) -> None:
        flags = driver.event_flags
        # Not the default stream: TensorRT would wait for the whole GPU after each run.
        self.stream = driver.Stream(1)  # CU_STREAM_NON_BLOCKING
        self._done = driver.Event(flags.BLOCKING_SYNC | flags.DISABLE_TIMING)

    @property
    def handle(self) -> int:
        """As TensorRT takes it."""
        return int(self.stream.handle)

    def wait(self) -> None:
        """Sleep until everything that was queued so far is done."""
        self._done.record(self.stream)
        self._done.synchronize()
