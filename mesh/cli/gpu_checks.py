"""What serving on a GPU needs beside that."""

import resource
import shutil
import sysconfig
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from mesh.cli.checks import ARENA_BYTES, Finding, ask
from mesh.cli.cuda_driver import LIBRARY, Driver, Gpu
from mesh.errors import MeshError

PYCUDA = "pycuda>=2026.1"
CUDA = Path("/usr/local/cuda")
NO_HEADERS = (
    "install CUDA's headers (NVIDIA's package cuda-toolkit-13-0; Debian's nvidia-cuda-toolkit, of "
    "non-free; or pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-crt "
    f"nvidia-cuda-profiler-api), then pip install '{PYCUDA}' as trtmesh doctor --gpu then says"
)
MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "tensorrt_bindings")
TENSORRT = (10, 12)
OLDEST_GPU = (7, 5)
HOPPER = (9, 0)
RTX_ON_HOPPER = (1, 5)
"""The newest TensorRT-RTX that was seen to run there; 1.7.1 refuses."""

TENSORRT_PROGRAM = f"""
import importlib
reasons = []
for name in {MODULES}:
    try:
        trt = importlib.import_module(name)
    except (ImportError, OSError) as err:
        reasons.append(str(err))
    else:
        print("tensorrt_rtx" if hasattr(trt, "ComputeCapability") else "tensorrt", trt.__version__)
        break
else:
    raise SystemExit("; ".join(reasons))
"""


def gpus(visible: str | None, library: str = LIBRARY) -> tuple[list[Finding], list[Gpu]]:
    """Check the driver and the GPUs.

    Args:
        visible: the variable CUDA_VISIBLE_DEVICES; None: it is not set.
        library: of the driver.

    Returns:
        What was found, and the GPUs.
    """
    try:
        driver = Driver(library)
        found = driver.gpus()
        version = "CUDA {}.{}".format(*driver.version())
    except MeshError as err:
        fix = (
            "this machine has no GPU, or needs NVIDIA's driver (Debian: nvidia-driver, of "
            "non-free); a container needs NVIDIA's Container Toolkit and `--gpus all`"
        )
        return [Finding("missing", f"NVIDIA driver: {err}", fix)], []
    shown = "" if visible is None else f" with CUDA_VISIBLE_DEVICES={visible}"
    lines = [Finding("ok", f"NVIDIA driver for {version}")]
    if not found:
        fix = "`nvidia-smi -L` lists them; " + (
            "name one by index, GPU-... or MIG-..." if shown else "a container needs `--gpus all`"
        )
        return [*lines, Finding("missing", f"no GPU is visible{shown}", fix)], []
    return [*lines, *(_gpu(index, gpu, shown) for index, gpu in enumerate(found))], found


def _gpu(index: int, gpu: Gpu, shown: str) -> Finding:
    capability = "{}.{}".format(*gpu.capability)
    text = (
        f"GPU {index}{shown}: {gpu.name}, {gpu.memory_bytes / 2**30:.1f} GiB, "
        f"compute capability {capability}, {gpu.uuid}"
    )
    if gpu.capability >= OLDEST_GPU:
        return Finding("ok", text)
    return Finding("missing", f"{text} is too old", "TensorRT 10.12 wants 7.5 (Turing) or newer")


def pycuda(module: str = "pycuda") -> Finding:
    """Check that PyCUDA can be loaded; it comes as source, and is compiled when it is installed."""
    status, text = ask(f"import {module}; import {module}.driver; print({module}.VERSION_TEXT)")
    if status == 0:
        return Finding("ok", f"PyCUDA {text}")
    if LIBRARY in text:
        return Finding("missing", f"PyCUDA: {text}", "it waits for NVIDIA's driver")
    return Finding("missing", f"PyCUDA: {text}", how_to_build())


def how_to_build(
    places: Sequence[Path] | None = None, compiler: str | None = shutil.which("g++")
) -> str:
    """Return the commands that install PyCUDA here.

    Args:
        places: where CUDA may be; None: the usual ones.
        compiler: of C++, if there is one.
    """
    if places is None:
        nvcc = shutil.which("nvcc")
        found = [Path(nvcc).parents[1]] if nvcc else []
        places = [*found, CUDA, Path(sysconfig.get_path("purelib"), "nvidia/cu13")]
    steps = [] if compiler else ["apt install g++"]
    places = [place for place in places if (place / "include/cuda.h").exists()]
    if not places:
        return "; ".join([*steps, NO_HEADERS])
    if not (places[0] / "include/curand.h").exists():
        steps.append("echo 'CUDA_ENABLE_CURAND = False' >> ~/.aksetup-defaults.py")
    # PyCUDA takes the headers beside the first nvcc of the path, so that one must be no wrapper.
    return "; ".join([*steps, f"PATH={places[0]}/bin:$PATH pip install '{PYCUDA}'"])


def onnx(distribution: str = "onnx") -> Finding:
    """Check that models can be converted to another precision."""
    try:
        return Finding("ok", f"onnx {metadata.version(distribution)}")
    except metadata.PackageNotFoundError:
        text = "no package onnx, so no model can be converted to FP16 or INT8"
        return Finding("warn", text, "pip install 'onnx>=1.18'")


def tensorrt(found: Sequence[Gpu], program: str = TENSORRT_PROGRAM) -> Finding:
    """Check that a TensorRT can be loaded, is new enough, and runs on the GPUs."""
    status, text = ask(program)
    if status:
        return Finding(
            "missing", f"TensorRT: {text}", "pip install 'trtmesh[tensorrt]' or "
            "'trtmesh[tensorrt-rtx]'",
        )  # fmt: skip
    flavour, _, version = text.partition(" ")
    number = tuple(int(part) for part in version.split(".")[:2])
    if flavour == "tensorrt" and number < TENSORRT:
        wanted = ".".join(map(str, TENSORRT))
        text = f"{text} came, wanted {wanted} or newer"
        return Finding("missing", text, f"pip install 'tensorrt>={wanted}'")
    hopper = any(gpu.capability == HOPPER for gpu in found)
    if flavour == "tensorrt_rtx" and hopper and number > RTX_ON_HOPPER:
        wanted = "tensorrt-rtx-cu13-{}==1.5.0.114"
        return Finding(
            "warn", f"{text} may refuse compute capability 9.0",
            f"pip install {wanted.format('libs')} {wanted.format('bindings')}",
        )  # fmt: skip
    return Finding("ok", text)


def locked_memory(
    limit: int = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], needed: int = ARENA_BYTES
) -> Finding:
    """Check how much memory may be page-locked."""
    if limit == resource.RLIM_INFINITY or limit >= needed:
        text = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit // 2**20} MB"
        return Finding("ok", f"memory that may be locked: {text}")
    return Finding(
        "warn", f"memory that may be locked: {limit // 2**20} MB, an arena wants "
        f"{needed // 2**20}", "ulimit -l unlimited, or docker run --ulimit memlock=-1",
    )  # fmt: skip


def everything(visible: str | None) -> Iterator[Finding]:
    """Check all of it."""
    lines, found = gpus(visible)
    yield from lines
    yield pycuda()
    yield tensorrt(found)
    yield onnx()
    yield locked_memory()
