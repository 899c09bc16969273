"""NVIDIA's driver, asked by ctypes: it needs neither CUDA nor PyCUDA."""

import ctypes
import uuid
from dataclasses import dataclass
from typing import Any

from mesh.errors import EngineError, SettingsError

LIBRARY = "libcuda.so.1"
NO_DEVICE = 100
MAJOR, MINOR = 75, 76
"""Attributes of a device: its compute capability."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a slice of one, that this process may use."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]
    uuid: str
    """As `CUDA_VISIBLE_DEVICES` takes it."""


class Driver:
    """The driver of this machine.

    Args:
        library: its file.

    Raises:
        SettingsError: there is none.
        EngineError: it does not start.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._cuda: Any = ctypes.CDLL(library)
        except OSError as err:
            raise SettingsError(str(err)) from err
        code = self._cuda.cuInit(0)
        self._none = code == NO_DEVICE
        if not self._none:
            self._check(code)

    def version(self) -> tuple[int, int]:
        """Return the newest CUDA that it runs."""
        found = ctypes.c_int()
        self._check(self._cuda.cuDriverGetVersion(ctypes.byref(found)))
        return found.value // 1000, found.value % 1000 // 10

    def gpus(self) -> list[Gpu]:
        """Return the GPUs that this process may use, in the order of their indices."""
        if self._none:
            return []
        count = ctypes.c_int()
        self._check(self._cuda.cuDeviceGetCount(ctypes.byref(count)))
        return [self._gpu(index) for index in range(count.value)]

    def _gpu(self, index: int) -> Gpu:
        device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
        mark = ctypes.create_string_buffer(16)
        self._check(self._cuda.cuDeviceGet(ctypes.byref(device), index))
        self._check(self._cuda.cuDeviceGetName(name, len(name), device))
        self._check(self._cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device))
        self._check(self._cuda.cuDeviceGetUuid_v2(mark, device))
        text = name.value.decode(errors="replace")
        # Only its name tells a slice from a whole GPU here.
        kind = "MIG" if " MIG " in text else "GPU"
        capability = self._attribute(MAJOR, device), self._attribute(MINOR, device)
        return Gpu(text, memory.value, capability, f"{kind}-{uuid.UUID(bytes=mark.raw)}")

    def _attribute(self, which: int, device: ctypes.c_int) -> int:
        found = ctypes.c_int()
        self._check(self._cuda.cuDeviceGetAttribute(ctypes.byref(found), which, device))
        return found.value

    def _check(self, code: int) -> None:
        if code:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(code, ctypes.byref(text))
            raise EngineError(f"CUDA error {code}, {(text.value or b'unknown').decode()}")
