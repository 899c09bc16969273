"""Settings of infer_svc, from variables that begin with `INFER_`."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from infer_svc.agent import Mode
from infer_svc.backends.trt_api import Kernels
from mesh.settings import ServiceSettings


def _named(path: Path) -> Path:
    if path == Path():  # of an empty variable, too
        raise ValueError("wanted a folder of its own, not the one that the process is in")
    return path


class InferSettings(ServiceSettings):
    """What infer_svc can be told."""

    model_config = SettingsConfigDict(env_prefix="INFER_", frozen=True)

    bind: str = "127.0.0.1:8012"
    cpu_threads: int = Field(max(1, (os.cpu_count() or 1) // 2), ge=1)
    """CPU threads of one run of ONNX Runtime; the other half is for the CPU services."""
    max_items: int = Field(1024, ge=1)
    """Items waiting or running; more are sent back to be done elsewhere."""
    max_mbytes: int = Field(512, ge=1)
    """Megabytes of items waiting or running that all clients' grants add up to."""
    arena_mbytes: int = Field(48, ge=0, le=65536)
    """Megabytes of memory shared with the other services of this machine, for tensors that then
    need not be sent; Docker gives a container 64 in all unless told otherwise. 0: none."""
    hang_s: float = Field(30.0, gt=0)
    """A batch that runs for longer than this never ends: the process does, with status 70."""
    probe_s: float = Field(10.0, gt=0)
    """A lane without work for so long is checked with a batch whose answer is known."""
    faults: str = ""
    """Failures on purpose, for tests: `SEAM=RATE,…`, as `enqueue=0.01,stall=0.001:5`; the seams
    are in `infer_svc/faults.py`."""
    max_age_s: float = Field(float("inf"), gt=0)
    """A client's stream older than this moves to a new one, so that new replicas get traffic."""
    engine_cache: Annotated[Path, AfterValidator(_named)] = Path("~/.cache/trtmesh/engines")
    """Where TensorRT's engines are kept; for this user only, as a plan is a program."""
    cuda_graphs: bool = True
    """Whether runs on a GPU become CUDA graphs: one launch for each instead of hundreds."""
    kernels: Kernels = "eager"
    """When TensorRT-RTX compiles kernels for a shape: `eager` when it is warmed up, `lazy` in the
    background while a slower one serves, `none` never."""
    build_limit_s: float = Field(3600.0, gt=0)
    """Longest time for building one engine."""
    build_on_serving_gpu: bool = False
    """Whether full TensorRT may build on a GPU on which models of this process serve already; it
    measures kernels there and slows them down. While nothing is SERVING it always may, and
    TensorRT-RTX builds without a GPU."""
    gpu_mbytes: int = Field(0, ge=0)
    """MiB that may be in use on each GPU, by anybody, once a model is loaded; beyond it models go
    that nobody asks for, or the new one is refused. 0: all that there is."""
    client_memory: bool = False
    """Whether clients of the Open Inference Protocol may name shared memory of this machine, and of
    a GPU, in place of a tensor's bytes."""
    model_control: Mode = "poll"
    """`poll`: the repository is watched, and new versions are served; `explicit`: only what
    `load_models` names is loaded, and what somebody asks for; `none`: what is loaded at the start
    stays. In the first two, models can be loaded and unloaded by requests."""
    load_models: str = ""
    """Models, by name and with commas between, that are loaded at the start in `explicit`; `*`:
    all."""
    preload: str = ""
    """Models, by name and with commas between, or `*` for all that are not named, that are loaded
    in the background, in this order, once the others serve."""

    @property
    def loaded(self) -> tuple[str, ...]:
        """The names in `load_models`."""
        return tuple(name.strip() for name in self.load_models.split(",") if name.strip())

    @property
    def preloaded(self) -> tuple[str, ...]:
        """The names in `preload`."""
        return tuple(name.strip() for name in self.preload.split(",") if name.strip())
