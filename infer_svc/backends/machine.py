"""What a process has for all its models."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from infer_svc.backends.trt_api import Kernels
from infer_svc.faults import NO_FAULTS, Faults

if TYPE_CHECKING:
    from infer_svc.build.builds import Builds


@dataclass(frozen=True)
class Machine:
    """What a process has for all its models."""

    threads: int = 1
    """Of the CPU, for one run of ONNX Runtime."""
    faults: Faults = NO_FAULTS
    """On purpose, to see that failures are survived."""
    builds: "Builds | None" = None
    """Where TensorRT's engines come from; None: there are none."""
    graphs: bool = True
    """Whether runs on a GPU become CUDA graphs."""
    kernels: Kernels = "eager"
    """When TensorRT-RTX compiles kernels for a shape: when it is first run, in the background, or
    never."""
