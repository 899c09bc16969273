"""A small model, and a TensorRT that needs no GPU."""

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
from onnx import TensorProto, helper

RELU_PROFILE = {"x": ((1, 4), (2, 4), (2, 4))}


def one_node(path: Path, node: str, outputs: int = 1, **attributes: int) -> Path:
    """Write a model of one node over x FP32[-1,4]."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    names = [f"y{index}" for index in range(outputs)]
    y = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    graph = helper.make_graph([helper.make_node(node, ["x"], names, **attributes)], "g", [x], y)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


class FakeCache:
    def __init__(self, module: "FakeModule") -> None:
        self.module = module
        self.data = b"empty"

    def deserialize(self, data: bytes) -> bool:
        self.data = data
        if not data.startswith(b"good"):
            self.module.say("made for another GPU")
            return False
        return True

    def serialize(self) -> bytes:
        return self.data


class PlainConfig:
    """A runtime config of `tensorrt`."""


class RtxConfig:
    """A runtime config of `tensorrt_rtx`."""

    cuda_graph_strategy = "DISABLED"
    dynamic_shapes_kernel_specialization_strategy = "LAZY"

    def __init__(self, module: "FakeModule") -> None:
        self.module = module
        self.cache: FakeCache | None = None

    def create_runtime_cache(self) -> FakeCache:
        return FakeCache(self.module)

    def set_runtime_cache(self, cache: FakeCache) -> None:
        self.cache = cache


class FakeContext:
    profiler: Any = None
    enqueue_emits_profile = False

    def execute_async_v3(self, stream: int) -> bool:
        if self.enqueue_emits_profile:
            for name, ms in (("relu", 1.0), ("conv", 2.0)):
                self.profiler.report_layer_time(name, ms)
        return True


class FakeEngine:
    device_memory_size_v2 = 4096

    def __init__(self, module: "FakeModule", memory: bool) -> None:
        self.module = module
        self.memory = memory

    def create_runtime_config(self) -> Any:
        return RtxConfig(self.module) if self.module.rtx else PlainConfig()

    def create_execution_context(self, config: Any) -> FakeContext | None:
        if not self.memory:
            self.module.say("out of memory")
            return None
        return FakeContext()

    def create_engine_inspector(self) -> Any:
        text = json.dumps({"Layers": ["conv", "relu"], "I/O Tensors": []})
        return SimpleNamespace(get_engine_information=lambda _: text)


class FakeLogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)
    made: "list[FakeLogger]" = []  # noqa: RUF012  the newest is the one in use

    def __init__(self) -> None:
        self.made.append(self)

    def log(self, severity: int, text: str) -> None:
        raise NotImplementedError


class FakeProfiler:
    def __init__(self) -> None:
        pass


class FakeModule(ModuleType):
    """TensorRT's module, as far as contexts, caches, plugins and layers go; it notes the calls."""

    __version__ = "0.1"
    ILogger = FakeLogger
    IProfiler = FakeProfiler
    IRuntimeConfig = PlainConfig
    LayerInformationFormat = SimpleNamespace(JSON="JSON")
    CudaGraphStrategy = SimpleNamespace(
        WHOLE_GRAPH_CAPTURE="WHOLE_GRAPH_CAPTURE", DISABLED="DISABLED"
    )
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(
        EAGER="EAGER", LAZY="LAZY", NONE="NONE"
    )

    def __init__(self, rtx: bool, complete: bool = True) -> None:
        super().__init__("tensorrt")
        self.rtx = rtx
        self.complete = complete
        self.calls: list[str] = []
        self.INetworkDefinition = SimpleNamespace(**({} if rtx else {"add_plugin_v3": None}))

    def say(self, text: str) -> None:
        FakeLogger.made[-1].log(FakeLogger.ERROR, text)

    def engine(self, memory: bool = True) -> FakeEngine:
        return FakeEngine(self, memory)

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        self.calls.append("init_libnvinfer_plugins")
        return self.complete

    def get_plugin_registry(self) -> Any:
        return SimpleNamespace(load_library=self.load_library)

    def load_library(self, path: str) -> object | None:
        self.calls.append(f"load_library {path}")
        if path.endswith("good.so"):
            return object()
        self.say("no symbol getCreators")
        return None
