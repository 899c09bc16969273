"""TensorRT on a GPU: an engine from a plan, or built from the ONNX file."""

import functools
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infer_svc.backends.cuda import Device, device
from infer_svc.backends.onnxruntime import load_onnxruntime
from infer_svc.backends.tensorrt_context import TensorRTContext
from infer_svc.backends.trt_api import Api, Tensor, load_api
from infer_svc.config import ModelConfig
from infer_svc.faults import NO_FAULTS, Faults
from mesh.errors import EngineError, SettingsError
from mesh.tensor import TensorSpec, dtype_name

if TYPE_CHECKING:
    from infer_svc.build.builds import Builds


class TensorRTEngine:
    """A loaded engine.

    Args:
        api: of TensorRT.
        gpu: that runs it.
        plan: the serialized engine.
        faults: on purpose.
    """

    def __init__(self, api: Api, gpu: Device, plan: bytes, faults: Faults = NO_FAULTS) -> None:
        self._api = api
        self._gpu = gpu
        self._plan = plan
        self._faults = faults
        # Contexts of one engine are made and ended one by one.
        self._lock = threading.Lock()
        self._engine: Any = None
        self._cache: Any = None
        self.reload()
        tensors = api.tensors(self._engine)
        self.inputs = tuple(_spec(tensor) for tensor in tensors if tensor.is_input)
        self.outputs = tuple(_spec(tensor) for tensor in tensors if not tensor.is_input)

    def open(self) -> TensorRTContext:
        """Return a context with its buffers, warmed up at every shape that it runs."""
        with self._lock, self._gpu.current():
            return TensorRTContext(
                self._api, self._gpu, self._engine, self._cache, self._lock, self._faults
            )

    def reload(self) -> None:
        """Load the plan anew; the engine's contexts are closed before."""
        self.close()
        with self._lock, self._gpu.current():
            self._engine = self._api.load(self._plan)
            self._cache = self._api.runtime_cache(self._engine)

    def close(self) -> None:
        """Give back the engine's memory; its contexts are closed before."""
        with self._lock, self._gpu.current():
            # In this order: a cache is used by the contexts' configs, and is the engine's.
            self._cache = None
            self._engine = None


def load_tensorrt(
    path: Path,
    config: ModelConfig,
    gpu: int,
    builds: "Builds | None",
    faults: Faults = NO_FAULTS,
) -> TensorRTEngine:
    """Load the engine of a model: a plan of the repository, or one built from its ONNX file.

    Args:
        path: a file of the model, in the folder of its version.
        config: of the model.
        gpu: number among the visible ones.
        builds: where engines come from.
        faults: on purpose.

    Raises:
        SettingsError: there is no TensorRT, no such GPU, or no engine cache.
        EngineError: the engine cannot be built or loaded.
    """
    if builds is None:
        raise SettingsError(f"model {config.name!r} wants TensorRT, this process has no engines")
    api, owner = tensorrt_api(), device(gpu)
    engine = builds.engine_for(path, config, gpu)
    try:
        return TensorRTEngine(api, owner, engine.plan.read_bytes(), faults)
    except OSError as err:
        raise EngineError(f"plan {engine.plan} cannot be read: {err.strerror}") from err
    except EngineError as err:
        raise EngineError(f"plan {engine.plan}: {err}") from err


def onnx_inputs(path: Path) -> list[TensorSpec]:
    """Return the inputs that an ONNX file declares.

    Raises:
        SettingsError: the file is no model.
    """
    return list(load_onnxruntime(path, 1).inputs)


@functools.cache
def tensorrt_api() -> Api:
    """Return the TensorRT of this process, which has one logger and one runtime."""
    return load_api()


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tensor.name, dtype_name(np.empty(0, tensor.dtype)), tensor.shape)
