"""Shared memory that clients name."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as oip

from mesh.errors import InvalidInput, NotFound
from mesh.oip.regions import (
    FOLDER,
    IPC_HANDLE_BYTES,
    CudaRegion,
    Region,
    Regions,
    SystemMemory,
    check_cuda,
    check_system,
)


@pytest.fixture
def key() -> Iterator[str]:
    """A file of 100 bytes: 0, 1, 2, …"""
    path = FOLDER / f"test-{secrets.token_hex(8)}"
    path.write_bytes(bytes(range(100)))
    yield f"/{path.name}"
    path.unlink(missing_ok=True)


def named(**fields: int) -> Any:
    """Return parameters that name a part of the region r."""
    tensor = oip.ModelInferRequest().inputs.add()
    tensor.parameters["shared_memory_region"].string_param = "r"
    for name, value in fields.items():
        tensor.parameters[f"shared_memory_{name}"].int64_param = value
    return tensor.parameters


def regions(key: str, offset: int = 10, size: int = 50) -> Regions:
    made = Regions()
    made.take({"r": Region(key, offset, size)}, {})
    return made


def test_bytes_are_read_and_written_where_they_are_said_to_be(key: str) -> None:
    known = regions(key)
    assert known.read(named(offset=5, byte_size=3), "x") == bytes([15, 16, 17])
    assert known.read(named(byte_size=0), "x") == b""
    known.write(named(offset=48, byte_size=2), b"\xff", "y")
    assert (FOLDER / key[1:]).read_bytes()[57:60] == bytes([57, 255, 59])
    known.close()


@pytest.mark.parametrize(
    "fields",
    [{"offset": 48, "byte_size": 3}, {"byte_size": 51}, {"offset": -1, "byte_size": 3}, {}],
)
def test_what_is_beyond_a_region_is_refused(key: str, fields: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="in region 'r', which has 50"):
        regions(key).read(named(**fields), "input 'x'")


def test_output_that_does_not_fit_is_refused(key: str) -> None:
    with pytest.raises(InvalidInput, match=r"output 'y' has 5 bytes, .*byte_size is 4"):
        regions(key).write(named(byte_size=4), bytes(5), "output 'y'")


def test_region_that_is_not_registered_any_more_is_not_found(key: str) -> None:
    known = regions(key)
    known.read(named(byte_size=1), "x")
    known.take({}, {})
    with pytest.raises(NotFound, match=r"'r', which is not registered; there are \[\]"):
        known.read(named(byte_size=1), "x")


def test_region_that_is_registered_anew_is_the_new_one(key: str) -> None:
    known = regions(key)
    assert known.read(named(byte_size=1), "x") == b"\x0a"
    known.take({"r": Region(key, 20, 5)}, {})
    assert known.read(named(byte_size=1), "x") == b"\x14"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "wanted a name"),
        ("/", "wanted a name"),
        ("/../etc/passwd", "wanted a name"),
        ("/a/b", "wanted a name"),
        ("/trtmesh-x", "wanted a name"),
        ("/.hidden", "wanted a name"),
        ("/none-there", "cannot be opened: No such file"),
    ],
)
def test_name_that_is_none_is_refused(name: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        check_system(Region(name, 0, 1))


def test_memory_that_is_smaller_or_no_file_is_refused(key: str, tmp_path: Path) -> None:
    check_system(Region(key, 50, 50))
    for region in (Region(key, 51, 50), Region(key, 0, 101)):
        with pytest.raises(InvalidInput, match="has 100 bytes, wanted"):
            check_system(region)
    with pytest.raises(InvalidInput, match="wanted at least one"):
        check_system(Region(key, 0, 0))
    link = FOLDER / f"{key[1:]}-link"
    link.symlink_to("/etc/hostname")
    try:
        with pytest.raises(InvalidInput, match="cannot be opened"):
            check_system(Region(f"/{link.name}", 0, 1))
    finally:
        link.unlink()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InvalidInput):
        SystemMemory(Region(key, 0, 101))
    assert len(os.listdir("/proc/self/fd")) == before


def test_file_that_is_gone_when_it_is_used_is_told(key: str) -> None:
    known = regions(key)
    (FOLDER / key[1:]).unlink()
    with pytest.raises(InvalidInput, match="cannot be opened"):
        known.read(named(byte_size=1), "x")


def test_memory_of_a_gpu_is_opened_by_who_has_one() -> None:
    handle = CudaRegion("00" * IPC_HANDLE_BYTES, 0, 8)
    check_cuda(handle)
    without = Regions()
    without.take({}, {"r": handle})
    with pytest.raises(InvalidInput, match="memory of a GPU, and this process has none"):
        without.read(named(byte_size=1), "x")

    class Memory:
        closed = 0

        def read(self, offset: int, size: int) -> bytes:
            return bytes([offset]) * size

        def write(self, offset: int, data: bytes) -> None:
            raise AssertionError

        def close(self) -> None:
            self.closed += 1

    memory = Memory()
    known = Regions(lambda region: memory)
    known.take({}, {"r": handle})
    assert known.read(named(offset=2, byte_size=3), "x") == b"\2\2\2"
    known.take({}, {})
    assert memory.closed == 1


@pytest.mark.parametrize(
    "region", [CudaRegion("00", 0, 8), CudaRegion("00" * 64, -1, 8), CudaRegion("00" * 64, 0, 0)]
)
def test_handle_that_is_none_is_refused(region: CudaRegion) -> None:
    with pytest.raises(InvalidInput, match="wanted 64 bytes as cudaIpcGetMemHandle"):
        check_cuda(region)
