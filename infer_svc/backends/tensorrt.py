"""TensorRT on a GPU: an engine from a plan, or built from the ONNX file."""

import functools
import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from infer_svc.backends.contexts import Contexts
from infer_svc.backends.cuda import Device, Stream, device
from infer_svc.backends.machine import Machine
from infer_svc.backends.onnxruntime import load_onnxruntime
from infer_svc.backends.tensorrt_context import TensorRTContext
from infer_svc.backends.trt_api import Api, Tensor, load_api
from infer_svc.config import ModelConfig
from mesh.errors import EngineError, SettingsError
from mesh.tensor import TensorSpec, dtype_name

log = logging.getLogger(__name__)


class TensorRTEngine:
    """A loaded engine.

    Args:
        api: of TensorRT.
        gpu: that runs it.
        plan: the file of the serialized engine.
        machine: how it is run.
        kernels: file of the kernels that were compiled by an earlier process, and that `settle`
            writes; None: they are compiled each time.

    Raises:
        EngineError: the file cannot be read, or is no engine for this machine.
    """

    def __init__(
        self, api: Api, gpu: Device, plan: Path, machine: Machine, kernels: Path | None = None
    ) -> None:
        self._api = api
        self._gpu = gpu
        self._plan = plan
        self._machine = machine
        self._kernels = kernels
        self._kept = b""
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
                self._api, self._gpu, self._engine, self._cache, self._lock, self._machine
            )

    def contexts(self, stream: Stream, machine: Machine) -> Contexts:
        """Return what makes contexts for single shapes, with buffers that are the caller's.

        The GPU's context is current.

        Args:
            stream: that runs are queued on.
            machine: how they are run.
        """
        return Contexts(
            self._api, self._gpu, self._engine, self._cache, self._lock, stream, machine
        )

    def reload(self) -> None:
        """Load the plan anew; the engine's contexts are closed before."""
        self.close()
        self._kept = _read(self._kernels)
        try:
            plan = self._plan.read_bytes()
        except OSError as err:
            raise EngineError(f"plan {self._plan} cannot be read: {err.strerror}") from err
        with self._lock, self._gpu.current():
            try:
                self._engine = self._api.load(plan)
            except EngineError as err:
                raise type(err)(f"plan {self._plan}: {err}") from err
            self._cache = self._api.runtime_cache(self._engine, self._kept)

    def settle(self) -> None:
        """Keep the kernels that were compiled, for the next process; no failure is an error."""
        if self._kernels is None:
            return
        with self._lock, self._gpu.current():
            data = self._api.dump_cache(self._cache)
        if not data or data == self._kept:
            return
        new = self._kernels.with_name(f"{self._kernels.name}.{os.getpid()}")
        try:
            new.write_bytes(data)
            new.rename(self._kernels)
        except OSError as err:
            log.warning("kernels are not kept", extra={"file": str(new), "error": str(err)})
            return
        self._kept = data

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
    machine: Machine,
) -> TensorRTEngine:
    """Load the engine of a model: a plan of the repository, or one built from its ONNX file.

    Args:
        path: a file of the model, in the folder of its version.
        config: of the model.
        gpu: number among the visible ones.
        machine: where engines come from, and how they are run.

    Raises:
        SettingsError: there is no TensorRT, no such GPU, or no engine cache.
        EngineError: the engine cannot be built or loaded.
    """
    if machine.builds is None:
        raise SettingsError(f"model {config.name!r} wants TensorRT, this process has no engines")
    api, owner = tensorrt_api(), device(gpu)
    engine = machine.builds.engine_for(path, config, gpu)
    kernels = machine.builds.kernels_for(engine, gpu, machine.kernels, machine.graphs)
    return TensorRTEngine(api, owner, engine.plan, machine, kernels)


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


def _read(path: Path | None) -> bytes:
    try:
        return path.read_bytes() if path is not None else b""
    except OSError:
        return b""  # the first process of this engine


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tensor.name, dtype_name(np.empty(0, tensor.dtype)), tensor.shape)
