"""Kernels that break a GPU's context for real, for the faults of those names."""

from typing import Any

from infer_svc.backends.cuda import Stream

_PTX = """
.version 7.0
.target sm_75
.address_size 64
.visible .entry illegal() {
  .reg .u64 %address;
  .reg .u32 %value;
  mov.u64 %address, 0;
  mov.u32 %value, 1;
  st.global.u32 [%address], %value;
  ret;
}
.visible .entry spin() {
  .reg .u64 %now;
  .reg .pred %forever;
AGAIN:
  mov.u64 %now, %clock64;
  setp.ne.u64 %forever, %now, 0;
  @%forever bra AGAIN;
  ret;
}
"""
KERNELS = ("illegal", "spin")
_loaded: list[Any] = []
"""Kept: unloading a module may wait for its kernels, with Python's lock held."""


def launch(driver: Any, kernel: str, stream: Stream) -> None:
    """Queue a kernel; the GPU's context must be current."""
    module = driver.module_from_buffer(_PTX.encode())
    _loaded.append(module)
    module.get_function(kernel)(block=(1, 1, 1), grid=(1, 1), stream=stream.pycuda)
