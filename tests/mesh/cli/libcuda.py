"""A driver's library that says what a test wants, for machines without a GPU."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = r"""
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
static int hidden(void) { const char *v = getenv("CUDA_VISIBLE_DEVICES"); return v && !*v; }
int cuInit(unsigned flags) { return INIT ? INIT : hidden() ? 100 : 0; }
int cuDriverGetVersion(int *v) { *v = 12080; return 0; }
int cuDeviceGetCount(int *n) { *n = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
  strncpy(name, device ? "NVIDIA H100 MIG 1g.10gb" : "NVIDIA T4", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
  *bytes = (device ? 80ull : 15ull) << 30; return 0; }
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
  memset(uuid, 0xa0 + device, 16); return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
  if (which != 75 && which != 76) return 1;
  *value = which == 75 ? (device ? 9 : CAPABILITY) : (device ? 0 : 5); return 0; }
int cuGetErrorString(int code, const char **text) {
  if (code == 777) return 1;
  *text = code == 999 ? "unknown error" : "system not yet initialized"; return 0; }
"""


def make_libcuda(folder: Path, init: int = 0, capability: int = 7) -> Path:
    """Compile one with a T4 and a slice of an H100; it hides both from an empty variable.

    Args:
        folder: that it is written to.
        init: what `cuInit` returns.
        capability: of the first, before the point.
    """
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.fail("gcc is not there, which compiles the driver's stand-in; install gcc")
    path = folder / "libcuda.so.1"
    subprocess.run(
        [
            compiler, "-shared", "-fPIC", f"-DINIT={init}", f"-DCAPABILITY={capability}",
            "-Wl,-soname,libcuda.so.1", "-o", str(path), "-xc", "-",
        ],
        input=SOURCE, text=True, check=True,
    )  # fmt: skip
    return path
