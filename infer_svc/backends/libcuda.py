"""The driver calls that PyCUDA has not, or makes with Python's lock changing hands.

A call by `_held` keeps Python's lock: it only queues work and returns within microseconds, and
taking the lock anew beside a busy event loop costs more than the call. What waits goes by `_free`.
"""

import ctypes
from typing import Any

from infer_svc.backends.errors import DeviceLost, OutOfMemory
from mesh.errors import EngineError, SettingsError

SUCCESS = 0
NO_MEMORY = 2
ALREADY_PINNED = 712
STICKY = frozenset({
    214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911,
})  # fmt: skip
"""Codes after which, by the driver's documentation, the process must be ended and started anew;
with 214 (ECC), 220 (NVLink), 709 (context destroyed) and 710 (device assertion)."""

_PORTABLE = 1
_CAPTURE_THREAD_LOCAL = 1
_Pointer = ctypes.c_void_p
_Result = ctypes.POINTER(ctypes.c_void_p)
_Address = ctypes.c_uint64
_Size = ctypes.c_size_t
_Flags = ctypes.c_uint
_ARGUMENTS = {
    "cuMemcpyHtoDAsync_v2": (_Address, _Pointer, _Size, _Pointer),
    "cuMemcpyDtoHAsync_v2": (_Pointer, _Address, _Size, _Pointer),
    "cuMemcpyDtoDAsync_v2": (_Address, _Address, _Size, _Pointer),
    "cuMemsetD8Async": (_Address, ctypes.c_ubyte, _Size, _Pointer),
    "cuMemHostRegister_v2": (_Pointer, _Size, _Flags),
    "cuMemHostUnregister": (_Pointer,),
    "cuStreamSynchronize": (_Pointer,),
    "cuStreamBeginCapture_v2": (_Pointer, ctypes.c_int),
    "cuStreamEndCapture": (_Pointer, _Result),
    "cuGraphInstantiateWithFlags": (_Result, _Pointer, ctypes.c_ulonglong),
    "cuGraphDestroy": (_Pointer,),
    "cuGraphExecDestroy": (_Pointer,),
    "cuGraphLaunch": (_Pointer, _Pointer),
    "cuGetErrorName": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}
"""From CUDA's `cuda.h`; every function returns a code."""


class Library:
    """`libcuda.so.1`; the GPU's context must be current in the calling thread.

    Args:
        held: the library, called with Python's lock held; None: loaded here.
        free: the library, called without it; None: loaded here.

    Raises:
        SettingsError: there is no driver.
    """

    def __init__(self, held: Any = None, free: Any = None) -> None:
        try:
            self._held = held or _typed(ctypes.PyDLL("libcuda.so.1"))
            self._free = free or _typed(ctypes.CDLL("libcuda.so.1"))
        except OSError as err:
            raise SettingsError(f"no NVIDIA driver: {err}; see `trtmesh doctor --gpu`") from err

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Queue a copy from pinned memory to the GPU; addresses and bytes."""
        code = self._held.cuMemcpyHtoDAsync_v2(target, source, size, stream)
        if code:
            self.check(code, "a copy to the GPU")

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Queue a copy from the GPU to pinned memory; addresses and bytes."""
        code = self._held.cuMemcpyDtoHAsync_v2(target, source, size, stream)
        if code:
            self.check(code, "a copy from the GPU")

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Queue a copy on the GPU; addresses and bytes."""
        code = self._held.cuMemcpyDtoDAsync_v2(target, source, size, stream)
        if code:
            self.check(code, "a copy on the GPU")

    def zero(self, address: int, size: int, stream: int) -> None:
        """Queue the writing of zeros on the GPU."""
        self.check(self._held.cuMemsetD8Async(address, 0, size, stream), "writing zeros")

    def register(self, address: int, size: int) -> bool:
        """Pin memory that exists, so that every GPU reads it by itself.

        Returns:
            Whether it had to be; False: it was pinned before, through whichever GPU.
        """
        code = self._free.cuMemHostRegister_v2(address, size, _PORTABLE)
        if code == ALREADY_PINNED:
            return False
        self.check(code, f"pinning {size} bytes")
        return True

    def unregister(self, address: int) -> None:
        """End `register`."""
        self.check(self._free.cuMemHostUnregister(address), "unpinning")

    def probe(self, stream: int) -> int:
        """Wait for a stream, and return the code that the GPU's state has; 0: it is well."""
        return int(self._free.cuStreamSynchronize(stream))

    def begin_capture(self, stream: int) -> None:
        """Record what is queued from now on instead of running it."""
        code = self._free.cuStreamBeginCapture_v2(stream, _CAPTURE_THREAD_LOCAL)
        self.check(code, "the begin of a graph's capture")

    def end_capture(self, stream: int) -> int:
        """End the recording and return a graph that can be launched."""
        graph, executable = _Pointer(), _Pointer()
        code = self._free.cuStreamEndCapture(stream, ctypes.byref(graph))
        self.check(code, "the end of a graph's capture")
        code = self._free.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, 0)
        self._free.cuGraphDestroy(graph)
        self.check(code, "a graph's instantiation")
        return int(executable.value or 0)

    def launch(self, graph: int, stream: int) -> None:
        """Queue a graph."""
        self.check(self._held.cuGraphLaunch(graph, stream), "a graph's launch")

    def destroy(self, graph: int) -> None:
        """Free a graph."""
        self.check(self._free.cuGraphExecDestroy(graph), "a graph's end")

    def name(self, code: int) -> str:
        """Return the name of a code."""
        text = ctypes.c_char_p()
        self._free.cuGetErrorName(code, ctypes.byref(text))
        return (text.value or b"unknown").decode()

    def check(self, code: int, what: str) -> None:
        """Raise the error that a code stands for, if it is one.

        Raises:
            DeviceLost: only a new process helps.
            OutOfMemory: the GPU's memory is used up.
            EngineError: any other.
        """
        if code == SUCCESS:
            return
        text = f"{what} failed: {self.name(code)} ({code})"
        if code in STICKY:
            raise DeviceLost(text)
        if code == NO_MEMORY:
            raise OutOfMemory(text)
        raise EngineError(text)


def _typed(library: Any) -> Any:
    for name, arguments in _ARGUMENTS.items():
        getattr(library, name).argtypes = arguments
    return library
