"""Memory of a GPU by its IPC handle."""

import base64
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient

from infer_svc import cuda_memory
from infer_svc.cuda_memory import CudaMemory, open_cuda
from mesh.errors import InvalidInput, SettingsError
from mesh.oip.regions import IPC_HANDLE_BYTES, CudaRegion, Regions
from tests.infer_svc.backends.fake_gpu import fake_device
from tests.infer_svc.graphs import write_model
from tests.infer_svc.test_catalog import listening
from tests.infer_svc.test_models import DYNAMIC, times

REGION = CudaRegion("ab" * IPC_HANDLE_BYTES, 0, 16)


def opened(memory: bytearray) -> tuple[CudaMemory, list[Any]]:
    """Open a region over memory of this process, on a GPU that is none."""
    gpu, driver, _ = fake_device()
    calls: list[Any] = []

    class Handle:
        def __init__(self, handle: bytearray, flags: int) -> None:
            calls.append((bytes(handle), flags))

        def __int__(self) -> int:
            return 0

        def close(self) -> None:
            calls.append("closed")

    fake: Any = driver
    fake.IPCMemoryHandle = Handle
    fake.ipc_mem_flags = SimpleNamespace(LAZY_ENABLE_PEER_ACCESS=1)

    def copy_out(target: bytearray, at: int) -> None:
        target[:] = memory[at : at + len(target)]

    def copy_in(at: int, data: bytes) -> None:
        memory[at : at + len(data)] = data

    fake.memcpy_dtoh, fake.memcpy_htod = copy_out, copy_in
    return CudaMemory(REGION, gpu), calls


def test_bytes_are_copied_from_and_to_the_gpu() -> None:
    memory = bytearray(range(16))
    region, calls = opened(memory)
    assert calls == [(bytes.fromhex(REGION.handle), 1)]
    assert region.read(3, 2) == b"\3\4"
    assert region.read(3, 0) == b""
    region.write(5, b"\xff")
    region.write(5, b"")
    assert memory[5] == 255
    region.close()
    assert calls[-1] == "closed"


def test_gpu_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(index: int) -> Any:
        raise SettingsError("no PyCUDA")

    monkeypatch.setattr(cuda_memory, "device", none)
    with pytest.raises(InvalidInput, match="memory of GPU 0 came: no PyCUDA"):
        open_cuda(REGION)


OTHER = """
import sys
import pycuda.autoinit
import pycuda.driver as driver
memory = driver.mem_alloc(16)
driver.memcpy_htod(memory, bytes(range(16)))
print(bytes(driver.mem_get_ipc_handle(memory)).hex(), flush=True)
sys.stdin.readline()
back = bytearray(16)
driver.memcpy_dtoh(back, memory)
print(back.hex(), flush=True)
"""


@pytest.mark.gpu
def test_on_a_gpu_another_process_shares_its_memory() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        region = open_cuda(CudaRegion(other.stdout.readline().strip(), 0, 16))
        assert region.read(2, 3) == b"\2\3\4"
        region.write(15, b"\xff")
        region.close()
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline().strip() == bytes([*range(15), 255]).hex()
    with pytest.raises(InvalidInput, match="cannot be opened"):
        open_cuda(REGION)


@pytest.mark.gpu
async def test_on_a_gpu_tensors_may_stay_in_a_clients_memory(tmp_path: Path) -> None:
    """The input at the start of the client's memory, the output where it was zeros before."""
    write_model(tmp_path, "m", times(3), DYNAMIC)
    with subprocess.Popen(
        [sys.executable, "-c", OTHER.replace("bytes(range(16))", "bytes(4 * [0, 0, 128, 63])")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdin is not None and other.stdout is not None
        handle = bytes.fromhex(other.stdout.readline().strip())
        async with (
            listening(tmp_path, "none", Regions(open_cuda)) as address,
            InferenceServerClient(address) as client,
        ):
            await client.register_cuda_shared_memory("r", base64.b64encode(handle), 0, 16)
            given = InferInput("x", [1, 4], "FP32")
            given.set_shared_memory("r", 16)
            wanted = InferRequestedOutput("y")
            wanted.set_shared_memory("r", 16)
            await client.infer("m", [given], outputs=[wanted])
            await client.unregister_cuda_shared_memory()
        other.stdin.write("\n")
        other.stdin.flush()
        made = bytes.fromhex(other.stdout.readline().strip())
    assert np.frombuffer(made, np.float32).tolist() == [3, 3, 3, 3]
