"""Memory of a GPU that a client has allocated, and named to this process."""

from infer_svc.backends.cuda import Device, device
from mesh.errors import EngineError, InvalidInput, SettingsError
from mesh.oip.regions import CudaRegion


class CudaMemory:
    """A region of a client's memory, opened by its IPC handle.

    Args:
        region: registered.
        gpu: whose memory it is.

    Raises:
        InvalidInput: it cannot be opened.
    """

    def __init__(self, region: CudaRegion, gpu: Device) -> None:
        self._gpu = gpu
        try:
            with gpu.current():
                driver = gpu.driver
                self._memory = driver.IPCMemoryHandle(
                    bytearray.fromhex(region.handle), driver.ipc_mem_flags.LAZY_ENABLE_PEER_ACCESS
                )
        except EngineError as err:
            raise InvalidInput(
                f"memory of GPU {region.device} cannot be opened: {err}; its process must live, "
                "and be another one than this"
            ) from err

    def read(self, offset: int, size: int) -> bytes:
        """Return a copy of some bytes."""
        data = bytearray(size)
        if size:
            with self._gpu.current():
                self._gpu.driver.memcpy_dtoh(data, int(self._memory) + offset)
        return bytes(data)

    def write(self, offset: int, data: bytes) -> None:
        """Copy some bytes there."""
        if data:
            with self._gpu.current():
                self._gpu.driver.memcpy_htod(int(self._memory) + offset, data)

    def close(self) -> None:
        """Let go of it."""
        with self._gpu.current():
            self._memory.close()


def open_cuda(region: CudaRegion) -> CudaMemory:
    """Open a region.

    Raises:
        InvalidInput: there is no such GPU, or the region cannot be opened.
    """
    try:
        gpu = device(region.device)
    except SettingsError as err:
        raise InvalidInput(f"memory of GPU {region.device} came: {err}") from err
    return CudaMemory(region, gpu)
