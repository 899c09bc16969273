"""Shared memory that clients name in place of a tensor's bytes."""

import mmap
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mesh.arena import PREFIX
from mesh.errors import InvalidInput, NotFound

FOLDER = Path("/dev/shm")
"""Where `shm_open` has its files."""
REGION, OFFSET, SIZE = "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"
IPC_HANDLE_BYTES = 64
"""Of a `cudaIpcMemHandle_t`."""


@dataclass(frozen=True)
class Region:
    """A part of a file of POSIX shared memory."""

    key: str
    """As `shm_open` takes it."""
    offset: int
    byte_size: int


@dataclass(frozen=True)
class CudaRegion:
    """Memory of a GPU that another process has allocated."""

    handle: str
    """CUDA's IPC handle, in hexadecimal digits."""
    device: int
    byte_size: int


class Memory(Protocol):
    """A region that is open in this process."""

    def read(self, offset: int, size: int) -> bytes:
        """Return a copy of some bytes."""

    def write(self, offset: int, data: bytes) -> None:
        """Copy some bytes there."""

    def close(self) -> None:
        """Let go of it."""


class SystemMemory:
    """A region of system memory, mapped.

    Args:
        region: registered.

    Raises:
        InvalidInput: it is not there (any more), or smaller than it should be.
    """

    def __init__(self, region: Region) -> None:
        self._begin = region.offset
        file = _open(region)
        try:
            self._map = mmap.mmap(file, region.offset + region.byte_size)
        except (OSError, ValueError) as err:
            raise InvalidInput(f"shared memory {region.key!r} cannot be mapped: {err}") from err
        finally:
            os.close(file)

    def read(self, offset: int, size: int) -> bytes:
        """Return a copy of some bytes."""
        begin = self._begin + offset
        return self._map[begin : begin + size]

    def write(self, offset: int, data: bytes) -> None:
        """Copy some bytes there."""
        begin = self._begin + offset
        self._map[begin : begin + len(data)] = data

    def close(self) -> None:
        """Let go of it."""
        self._map.close()


class Regions:
    """Registered regions, each opened when it is used first.

    Args:
        open_cuda: opens memory of a GPU; None: there is no GPU.
    """

    def __init__(self, open_cuda: Callable[[CudaRegion], Memory] | None = None) -> None:
        self._open_cuda = open_cuda
        self._known: dict[str, Region | CudaRegion] = {}
        self._open: dict[str, Memory] = {}

    def take(self, system: Mapping[str, Region], cuda: Mapping[str, CudaRegion]) -> None:
        """Know these regions, and no others any more."""
        now: dict[str, Region | CudaRegion] = {**system, **cuda}
        for name in [name for name in self._open if now.get(name) != self._known.get(name)]:
            self._open.pop(name).close()
        self._known = now

    def read(self, parameters: Any, what: str) -> bytes:
        """Return the bytes that a tensor's parameters name.

        Args:
            parameters: of an input, with a region.
            what: the tensor, for errors.

        Raises:
            InvalidInput, NotFound: the region is not registered, or has not so many bytes.
        """
        memory, offset, size = self._place(parameters, what)
        return memory.read(offset, size)

    def write(self, parameters: Any, data: bytes, what: str) -> None:
        """Copy a tensor's bytes to where its parameters say.

        Args:
            parameters: of an output, with a region.
            data: the bytes.
            what: the tensor, for errors.

        Raises:
            InvalidInput, NotFound: the region is not registered, or the bytes do not fit.
        """
        memory, offset, size = self._place(parameters, what)
        if len(data) > size:
            raise InvalidInput(f"{what} has {len(data)} bytes, {SIZE} is {size}")
        memory.write(offset, data)

    def close(self) -> None:
        """Let go of all."""
        while self._open:
            self._open.popitem()[1].close()

    def _place(self, parameters: Any, what: str) -> tuple[Memory, int, int]:
        name = parameters[REGION].string_param
        offset = parameters[OFFSET].int64_param if OFFSET in parameters else 0
        size = parameters[SIZE].int64_param if SIZE in parameters else -1
        region = self._known.get(name)
        if region is None:
            raise NotFound(
                f"{what} names the region {name!r}, which is not registered; there are "
                f"{sorted(self._known)}"
            )
        if offset < 0 or size < 0 or offset + size > region.byte_size:
            raise InvalidInput(
                f"{what} names {size} bytes from {offset} on in region {name!r}, which has "
                f"{region.byte_size}"
            )
        if name not in self._open:
            if isinstance(region, Region):
                self._open[name] = SystemMemory(region)
            elif self._open_cuda is not None:
                self._open[name] = self._open_cuda(region)
            else:
                raise InvalidInput(f"{what} names memory of a GPU, and this process has none")
        return self._open[name], offset, size


def check_system(region: Region) -> None:
    """Look for a region before it is registered.

    Raises:
        InvalidInput: there is no such memory, or it is smaller.
    """
    if region.byte_size < 1:
        raise InvalidInput(f"a region of {region.byte_size} bytes came, wanted at least one")
    os.close(_open(region))


def check_cuda(region: CudaRegion) -> None:
    """Look at a handle before it is registered.

    Raises:
        InvalidInput: it is no handle.
    """
    length = len(region.handle) // 2
    if length != IPC_HANDLE_BYTES or region.byte_size < 1 or region.device < 0:
        raise InvalidInput(
            f"a handle of {length} bytes for {region.byte_size} bytes of device {region.device} "
            f"came, wanted {IPC_HANDLE_BYTES} bytes as cudaIpcGetMemHandle gives them"
        )


def _open(region: Region) -> int:
    """Return a file descriptor of a region's file, which has all of it."""
    name = region.key.removeprefix("/")
    if not name or "/" in name or name.startswith((".", PREFIX)):
        raise InvalidInput(f"shared memory {region.key!r} came, wanted a name as /my_region")
    try:
        file = os.open(FOLDER / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as err:
        raise InvalidInput(
            f"shared memory {region.key!r} cannot be opened: {err.strerror}; it must be of this "
            "machine (of a container's own, or one that is shared with it)"
        ) from err
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_size < region.offset + region.byte_size:
        os.close(file)
        raise InvalidInput(
            f"shared memory {region.key!r} has {status.st_size} bytes, wanted "
            f"{region.byte_size} from {region.offset} on"
        )
    return file
