"""TensorRT's Python API, one for `tensorrt` 10.12 and newer, 11.x and `tensorrt_rtx`.

Every difference between them is a `hasattr` in this file; versions are never compared.
"""

import collections
import importlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxruntime  # noqa: F401  imported after tensorrt_rtx, it crashes the process

from mesh.errors import EngineError, SettingsError

log = logging.getLogger(__name__)

MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "tensorrt_bindings")
"""The wheels of TensorRT-RTX bring the third name, the second is an alias of its source package."""
WORKSPACE_BYTES = 2 * 1024**3
KEPT_LINES = 50

Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, best and largest shape of an input."""
Profile = Mapping[str, Range]
"""What one optimization profile allows, by input."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine."""

    name: str
    dtype: Any
    """NumPy's."""
    shape: tuple[int, ...]
    """-1 is any size."""
    is_input: bool


class Api:
    """One flavour of TensorRT in this process.

    Args:
        trt: the module.

    Raises:
        SettingsError: it is older than 10.12.
    """

    def __init__(self, trt: ModuleType) -> None:
        self.trt: Any = trt
        self.version: str = trt.__version__
        self.is_rtx = hasattr(trt, "ComputeCapability")
        if not hasattr(self.trt, "IRuntimeConfig"):
            raise SettingsError(
                f"TensorRT {self.version} came, wanted 10.12 or newer; install that"
            )
        self.lines = Lines()
        self._logger = _make_logger(self.trt, self.lines)
        self._runtime: Any = None

    @property
    def flavour(self) -> str:
        """`tensorrt` or `tensorrt_rtx`."""
        return "tensorrt_rtx" if self.is_rtx else "tensorrt"

    @property
    def captures_graphs(self) -> bool:
        """Tell whether contexts make CUDA graphs of their runs by themselves."""
        return hasattr(self.trt, "CudaGraphStrategy")

    def build(
        self,
        onnx: Path,
        profiles: Sequence[Profile],
        workspace_bytes: int = WORKSPACE_BYTES,
        *,
        tf32: bool = True,
    ) -> bytes:
        """Build an engine; the types are those of the ONNX file. TensorRT-RTX needs no GPU for it.

        Args:
            onnx: the model.
            profiles: at least one; each has every input with a size that is not fixed.
            workspace_bytes: that a layer may use.
            tf32: whether FP32 matrices may be multiplied with 10 bits of mantissa.

        Raises:
            EngineError: the model cannot be parsed or built; the text has TensorRT's own lines.
        """
        trt = self.trt
        self.lines.clear()
        builder = trt.Builder(self._logger)
        flags = 0
        if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):  # 10.x; always so since
            flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flags)
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(onnx)):
            errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            raise EngineError(f"{self._name()} cannot parse {onnx}: {'; '.join(errors)}")
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
        if not tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        for profile in profiles:
            self._add_profile(builder, config, network, profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(f"{self._name()} cannot build {onnx}: {self.lines.text()}")
        return bytes(plan)

    def load(self, plan: bytes) -> Any:
        """Return the engine of a plan.

        Raises:
            EngineError: it was built by another version or for another GPU, or is broken.
        """
        if self._runtime is None:
            self._runtime = self.trt.Runtime(self._logger)
        self.lines.clear()
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"{self._name()} cannot load a plan of {len(plan)} bytes: {self._why(plan)}; "
                "build it anew with this version on this kind of GPU"
            )
        return engine

    def tensors(self, engine: Any) -> list[Tensor]:
        """Return the inputs and outputs of an engine."""
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return [
            Tensor(
                name, self.trt.nptype(engine.get_tensor_dtype(name)),
                tuple(engine.get_tensor_shape(name)),
                engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT,
            )
            for name in names
        ]  # fmt: skip

    def runtime_cache(self, engine: Any) -> Any:
        """Return a cache of compiled kernels that contexts of an engine share; None: no such thing.

        Keep it longer than every context.
        """
        config = engine.create_runtime_config()
        return config.create_runtime_cache() if hasattr(config, "create_runtime_cache") else None

    def context(self, engine: Any, cache: Any) -> tuple[Any, Any]:
        """Return a new execution context and its config, which must live as long.

        Args:
            engine: as `load` returned it.
            cache: as `runtime_cache` returned it.

        Raises:
            EngineError: there is no memory for it, or the GPU fails.
        """
        config = engine.create_runtime_config()
        if cache is not None:
            config.set_runtime_cache(cache)
            config.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            config.dynamic_shapes_kernel_specialization_strategy = (
                self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
        self.lines.clear()
        context = engine.create_execution_context(config)
        if context is None:
            raise EngineError(f"no execution context: {self.lines.text()}")
        return context, config

    def _add_profile(self, builder: Any, config: Any, network: Any, profile: Profile) -> None:
        given = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            name = network.get_input(index).name
            if name in profile:
                given.set_shape(name, *profile[name])
        if config.add_optimization_profile(given) < 0:
            raise EngineError(f"profile {dict(profile)} does not fit: {self.lines.text()}")

    def _why(self, plan: bytes) -> str:
        if hasattr(self._runtime, "get_engine_validity"):
            validity, bits = self._runtime.get_engine_validity(plan)
            return f"{validity}, diagnostics {bits}; {self.lines.text()}"
        return self.lines.text()

    def _name(self) -> str:
        return f"{self.flavour} {self.version}"


class Lines:
    """TensorRT's last lines, of each thread: its errors are nowhere else."""

    def __init__(self) -> None:
        self._local = threading.local()

    def add(self, text: str) -> None:
        """Keep a line."""
        self._kept().append(text)

    def clear(self) -> None:
        """Forget this thread's lines."""
        self._kept().clear()

    def text(self) -> str:
        """Return this thread's lines."""
        return "; ".join(self._kept()) or "it said nothing"

    def _kept(self) -> "collections.deque[str]":
        if not hasattr(self._local, "kept"):
            self._local.kept = collections.deque(maxlen=KEPT_LINES)
        kept: collections.deque[str] = self._local.kept
        return kept


def load_api() -> Api:
    """Import the TensorRT that is installed.

    Raises:
        SettingsError: there is none, or its libraries are missing.
    """
    reasons = []
    for name in MODULES:
        try:
            return Api(importlib.import_module(name))
        except (ImportError, OSError) as err:
            reasons.append(f"{name}: {err}")
    raise SettingsError(
        f"no TensorRT can be imported ({'; '.join(reasons)}); install trtmesh[tensorrt] or "
        "trtmesh[tensorrt-rtx]"
    )


def _make_logger(trt: Any, lines: Lines) -> Any:
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR, trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING, trt.ILogger.INFO: logging.DEBUG,
        trt.ILogger.VERBOSE: logging.NOTSET,
    }  # fmt: skip

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Must not raise: it is called from C++."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            """Keep what is wrong for the error's text, and pass all on."""
            level = levels.get(severity, logging.DEBUG)
            if level >= logging.WARNING:
                lines.add(text.strip())
            if level:
                log.log(min(level, logging.INFO), "tensorrt", extra={"line": text.strip()})

    return Logger()
