"""TensorRT's Python API, one for `tensorrt` 10.12 and newer, 11.x and `tensorrt_rtx`.

Every difference between them is a `hasattr` in this file; versions are never compared.
"""

import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import onnxruntime  # noqa: F401  imported after tensorrt_rtx, it crashes the process

from infer_svc.backends import trt_inspect
from infer_svc.backends.trt_build import WORKSPACE_BYTES, Profile, Recipe, make_plan
from infer_svc.backends.trt_inspect import Layer, LayerTimes
from infer_svc.backends.trt_log import Lines, make_logger
from infer_svc.backends.trt_progress import Monitor, Progress
from mesh.errors import EngineError, SettingsError
from mesh.tensor import NUMPY_DTYPES

__all__ = [
    "WORKSPACE_BYTES", "Api", "Kernels", "Layer", "LayerTimes", "Profile", "Tensor", "load_api",
]  # fmt: skip

log = logging.getLogger(__name__)

MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "tensorrt_bindings")
"""The wheels of TensorRT-RTX bring the third name, the second is an alias of its source package."""
Kernels = Literal["eager", "lazy", "none"]
"""When TensorRT-RTX compiles kernels for the shapes of a run: before it, behind it while general
ones serve, or never. Only with `none` do all runs of a shape have the same bits."""


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
        own_logger: TensorRT writes its errors to stderr by itself and calls no Python for it; they
            are missing in the texts of errors. To tell whether a fault comes from such calls.

    Raises:
        SettingsError: it is older than 10.12.
    """

    def __init__(self, trt: ModuleType, *, own_logger: bool = False) -> None:
        self.trt: Any = trt
        self.version: str = trt.__version__
        self.is_rtx = hasattr(trt, "ComputeCapability")
        if not hasattr(self.trt, "IRuntimeConfig"):
            raise SettingsError(
                f"TensorRT {self.version} came, wanted 10.12 or newer; install that"
            )
        self.lines = Lines()
        self._logger: Any = (
            self.trt.Logger(self.trt.Logger.ERROR) if own_logger
            else make_logger(self.trt, self.lines)
        )  # fmt: skip
        self._runtime: Any = None

    @property
    def flavour(self) -> str:
        """`tensorrt` or `tensorrt_rtx`."""
        return "tensorrt_rtx" if self.is_rtx else "tensorrt"

    @property
    def captures_graphs(self) -> bool:
        """Tell whether contexts make CUDA graphs of their runs by themselves."""
        return hasattr(self.trt, "CudaGraphStrategy")

    @property
    def writes_caches(self) -> bool:
        """Tell whether an engine can write into a cache where it is."""
        return hasattr(self.trt, "IKVCacheUpdateLayer")

    def flush(self) -> None:
        """Pass on to `logging` what TensorRT said; each call of this class does so at its end."""
        self.lines.flush()

    def build(
        self,
        onnx: Path,
        profiles: Sequence[Profile],
        workspace_bytes: int = WORKSPACE_BYTES,
        *,
        tf32: bool = True,
        sparsity: bool = False,
        detailed: bool = False,
        progress: Progress | None = None,
    ) -> bytes:
        """Build an engine; the types are those of the ONNX file. TensorRT-RTX needs no GPU for it.

        Args:
            onnx: the model.
            profiles: at least one; each has every input with a size that is not fixed.
            workspace_bytes: that a layer may use.
            tf32: whether FP32 matrices may be multiplied with 10 bits of mantissa.
            sparsity: whether weights with two zeros in each four may be multiplied as such.
            detailed: whether `layers` tells all of each layer, not its name alone.
            progress: is told of each step, on threads of TensorRT; what it raises ends the build
                and is raised here.

        Raises:
            EngineError: the model cannot be parsed or built; the text has TensorRT's own lines.
        """
        recipe = Recipe(onnx, profiles, workspace_bytes, tf32, sparsity, detailed)
        flags, enum = 0, self.trt.NetworkDefinitionCreationFlag
        if hasattr(enum, "STRONGLY_TYPED"):  # 10.x; always so since
            flags = 1 << int(enum.STRONGLY_TYPED)
        monitor = Monitor(progress) if progress else None
        with self._heard():
            try:
                plan = make_plan(
                    self.trt, self._logger, flags, recipe, monitor, self._allow_any_attention
                )
            except EngineError as err:
                raise EngineError(f"{self._name()}: {err}; {self.lines.text()}") from err
            if monitor is not None and monitor.error is not None:
                raise monitor.error
            if plan is None:
                raise EngineError(f"{self._name()} cannot build {onnx}: {self.lines.text()}")
            return bytes(plan)

    def _allow_any_attention(self, network: Any) -> None:
        """Let attention for whose shapes and types there is no kernel of its own run in parts."""
        trt = self.trt
        if not hasattr(trt, "IAttentionInputLayer"):  # there is none
            return
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            if layer.type == trt.LayerType.ATTENTION_INPUT:
                layer.__class__ = trt.IAttentionInputLayer  # the bindings give each as an ILayer
                _let_decompose(layer)

    def load(self, plan: bytes) -> Any:
        """Return the engine of a plan.

        Raises:
            EngineError: it was built by another version or for another GPU, or is broken.
        """
        with self._heard():
            if self._runtime is None:
                self._runtime = self.trt.Runtime(self._logger)
            engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise EngineError(
                    f"{self._name()} cannot load a plan of {len(plan)} bytes: {self._why(plan)}; "
                    "build it anew with this version on this kind of GPU"
                )
            return engine

    def load_plugins(self, paths: Sequence[Path]) -> None:
        """Make TensorRT's own plugins known, and those of shared libraries. Call it before `build`.

        Raises:
            SettingsError: a library is missing or cannot be loaded, or this flavour has no plugins
                and `paths` has some.
        """
        if not hasattr(self.trt.INetworkDefinition, "add_plugin_v3"):
            if paths:
                raise SettingsError(
                    f"plugins {[str(path) for path in paths]} came, but {self._name()} has none; "
                    "install trtmesh[tensorrt], or use a model that needs no plugin"
                )
            return
        with self._heard():
            if not self.trt.init_libnvinfer_plugins(self._logger, ""):
                raise SettingsError(
                    f"the plugins of {self._name()} cannot be loaded: {self.lines.text()}; "
                    "install it anew"
                )
            registry = self.trt.get_plugin_registry()
            for path in paths:
                if not path.is_file():
                    raise SettingsError(f"plugin library {path} is no file; correct its path")
                if registry.load_library(str(path)) is None:
                    raise SettingsError(
                        f"plugin library {path} cannot be loaded: {self.lines.text()}; it must be "
                        f"built for {self._name()}, and have none of the plugins loaded so far"
                    )

    def tensors(self, engine: Any) -> list[Tensor]:
        """Return the inputs and outputs of an engine.

        Raises:
            EngineError: one has a type that NumPy has not.
        """
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return [
            Tensor(
                name, self._dtype(name, engine.get_tensor_dtype(name)),
                tuple(engine.get_tensor_shape(name)),
                engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT,
            )
            for name in names
        ]  # fmt: skip

    def memory_bytes(self, engine: Any) -> int:
        """Return what a context of an engine needs on the GPU, in bytes, beside the weights."""
        return int(engine.device_memory_size_v2)

    def layers(self, engine: Any) -> list[Layer]:
        """Return the layers of an engine; all is told of one that was built `detailed`.

        Raises:
            EngineError: TensorRT tells nothing that can be read.
        """
        with self._heard():
            return trt_inspect.layers(self.trt, engine)

    def watch(self, context: Any) -> LayerTimes:
        """Begin to measure the layers of a context that was opened without graphs."""
        with self._heard():
            return trt_inspect.watch(self.trt, context)

    def runtime_cache(self, engine: Any, data: bytes = b"") -> Any:
        """Return a cache of compiled kernels that contexts of an engine share; None: no such thing.

        Keep it longer than every context.

        Args:
            engine: as `load` returned it.
            data: as `dump_cache` returned it; what does not fit is dropped, and the cache is empty.
        """
        config = engine.create_runtime_config()
        if not hasattr(config, "create_runtime_cache"):
            return None
        with self._heard():
            cache = config.create_runtime_cache()
            if data and not cache.deserialize(data):
                cache = config.create_runtime_cache()
                log.warning(
                    "runtime cache dropped", extra={"bytes": len(data), "why": self.lines.text()}
                )
            return cache

    def dump_cache(self, cache: Any) -> bytes:
        """Return a cache as bytes for `runtime_cache`; nothing may compile into it meanwhile.

        Args:
            cache: as `runtime_cache` returned it; None has no bytes.
        """
        if cache is None:
            return b""
        with self._heard():
            data = cache.serialize()
            return b"" if data is None else bytes(data)

    def context(
        self,
        engine: Any,
        cache: Any,
        *,
        kernels: Kernels = "eager",
        graphs: bool = True,
        memory: tuple[int, int] | None = None,
    ) -> tuple[Any, Any]:
        """Return a new execution context and its config, which must live as long.

        Args:
            engine: as `load` returned it.
            cache: as `runtime_cache` returned it.
            kernels: when kernels are compiled, where they are at run time.
            graphs: whether runs become CUDA graphs, where TensorRT does that itself.
            memory: address and bytes on the GPU that the context works in, at least as many as
                `memory_bytes` tells; contexts that never run at the same time may share it. None:
                it gets its own.

        Raises:
            EngineError: there is no memory for it, or the GPU fails.
        """
        trt = self.trt
        config = engine.create_runtime_config()
        if memory is not None:
            config.set_execution_context_allocation_strategy(
                trt.ExecutionContextAllocationStrategy.USER_MANAGED
            )
        if hasattr(config, "cuda_graph_strategy"):
            if cache is not None:
                config.set_runtime_cache(cache)
            graph = trt.CudaGraphStrategy
            config.cuda_graph_strategy = graph.WHOLE_GRAPH_CAPTURE if graphs else graph.DISABLED
            when = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = {
                "eager": when.EAGER, "lazy": when.LAZY, "none": when.NONE,
            }[kernels]  # fmt: skip
        with self._heard():
            context = engine.create_execution_context(config)
            if context is None:
                raise EngineError(f"no execution context: {self.lines.text()}")
            if memory is not None:
                context.set_device_memory(*memory)
            return context, config

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Gather what TensorRT says of one call, and pass it on at its end."""
        self.lines.clear()
        try:
            yield
        finally:
            self.lines.flush()

    def _why(self, plan: bytes) -> str:
        if hasattr(self._runtime, "get_engine_validity"):
            validity, bits = self._runtime.get_engine_validity(plan)
            return f"{validity}, diagnostics {bits}; {self.lines.text()}"
        return self.lines.text()

    def _dtype(self, name: str, dtype: Any) -> Any:
        if dtype == self.trt.DataType.BF16:  # of which TensorRT says that numpy has it not
            return NUMPY_DTYPES["BF16"]
        try:
            return self.trt.nptype(dtype)
        except TypeError as err:
            raise EngineError(
                f"tensor {name!r} is {dtype}, which NumPy has not; cast it to FP32 in the model"
            ) from err

    def _name(self) -> str:
        return f"{self.flavour} {self.version}"


def _let_decompose(attention_input: Any) -> None:
    attention_input.attention.decomposable = True


def load_api(*, own_logger: bool = False) -> Api:
    """Import the TensorRT that is installed.

    Args:
        own_logger: as for `Api`.

    Raises:
        SettingsError: there is none, or its libraries are missing.
    """
    reasons = []
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as err:
            reasons.append(f"{name}: {err}")
        else:
            return Api(module, own_logger=own_logger)
    raise SettingsError(
        f"no TensorRT can be imported ({'; '.join(reasons)}); install trtmesh[tensorrt] or "
        "trtmesh[tensorrt-rtx]"
    )
