"""Every name of TensorRT that we use is there in each version that we support.

The real wheels of the bindings are asked, which are small. Their libraries, of gigabytes, are
replaced by a stub that has the few symbols the bindings are linked to, and nothing is called.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = Path(__file__).with_name("trt_contract.py")
BACKENDS = ROOT / "infer_svc/backends"
API = BACKENDS / "trt_api.py"
SOURCES = [
    path
    for path in sorted(BACKENDS.glob("*.py"))
    if path.stem.startswith("trt_") or "trt_api" in path.read_text()
]
CACHE = ROOT / "build/trt-bindings"

SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRuntime_INTERNAL", "createInferRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getPluginRegistry",
    "getBuilderPluginRegistry", "getNvOnnxParserVersion", "initLibNvInferPlugins",
)  # fmt: skip


@dataclass(frozen=True)
class Flavour:
    """Where bindings come from, and the libraries that they are linked to."""

    wheel: str
    module: str
    libraries: tuple[str, ...]


def tensorrt(wheel: str, major: int) -> Flavour:
    names = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
    return Flavour(wheel, "tensorrt_bindings", tuple(f"lib{name}.so.{major}" for name in names))


FLAVOURS = {
    "10.12": tensorrt("tensorrt-cu12-bindings==10.12.0.36", 10),
    "10.16": tensorrt("tensorrt-cu12-bindings==10.16.1.11", 10),
    "11.1": tensorrt("tensorrt-cu13-bindings==11.1.0.106", 11),
    "11.4": tensorrt("tensorrt-cu13-bindings==11.4.0.106", 11),
    "rtx 1.7": Flavour(
        "tensorrt-rtx-cu13-bindings==1.7.1.116", "tensorrt_rtx_bindings",
        ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"),
    ),
    "rtx installed": Flavour("", "tensorrt_rtx_bindings", ()),
}  # fmt: skip

GUARDED = {
    "IRuntimeConfig": {"tensorrt", "rtx"},
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": {"tensorrt", "rtx"},
    "INetworkDefinition.add_plugin_v3": {"tensorrt"},
    "ComputeCapability": {"rtx"},
    "CudaGraphStrategy": {"rtx"},
    "IRuntimeConfig.create_runtime_cache": {"rtx"},
    "IRuntimeConfig.cuda_graph_strategy": {"rtx"},
    "Runtime.get_engine_validity": {"rtx"},
    "IAttentionInputLayer": {"10.16", "11.1", "11.4", "rtx"},
    "IKVCacheUpdateLayer": {"10.16", "11.1", "11.4", "rtx"},
}
"""Who has what stands in a `hasattr` of our sources."""

Check = Callable[..., dict[str, object]]


def fetch(wheel: str, cache: Path) -> Path:
    """Return a folder with an unpacked wheel for this Python, downloaded once."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache / f"{wheel}-python{version}"
    if not folder.exists():
        scratch = cache / f"{folder.name}.{os.getpid()}"
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
        ]
        done = subprocess.run(
            [*command, "-d", str(scratch), wheel], capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            pytest.fail(f"pip cannot download {wheel} for Python {version}: {done.stderr.strip()}")
        (found,) = scratch.glob("*.whl")
        with zipfile.ZipFile(found) as archive:
            archive.extractall(scratch)
        scratch.rename(folder)
    return folder


def stub(libraries: tuple[str, ...], folder: Path) -> None:
    """Compile a library with the symbols, under each name."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.fail("gcc is not there, which compiles the stub; install the package gcc")
    source = "".join(f"int {symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS)
    for name in libraries:
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, "-xc", "-"],
            input=source, text=True, check=True,
        )  # fmt: skip


@pytest.fixture(scope="module", params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def check(flavour: str, tmp_path_factory: pytest.TempPathFactory) -> Check:
    """A call that compares sources with a flavour, in a process of its own."""
    wanted = FLAVOURS[flavour]
    environment = dict(os.environ)
    if wanted.wheel:
        folder = tmp_path_factory.mktemp("libraries")
        stub(wanted.libraries, folder)
        environment["PYTHONPATH"] = str(fetch(wanted.wheel, CACHE))
        environment["LD_LIBRARY_PATH"] = str(folder)

    def run(*sources: Path) -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), wanted.module, *map(str, sources)],
            env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found

    return run


def test_every_name_that_we_use_is_there(check: Check, flavour: str) -> None:
    report = check(*SOURCES)
    assert report["missing"] == []
    if FLAVOURS[flavour].wheel:
        assert report["version"] == FLAVOURS[flavour].wheel.partition("==")[2]


def test_names_behind_hasattr_are_those_of_the_table(check: Check, flavour: str) -> None:
    family = "rtx" if flavour.startswith("rtx") else "tensorrt"
    wanted = {name: bool({family, flavour} & who) for name, who in GUARDED.items()}
    assert check(*SOURCES)["guards"] == wanted
    assert check(API)["guards"] == wanted, "differences between flavours stand in one file"


def test_names_are_found_over_calls_classes_and_branches(check: Check, flavour: str) -> None:
    """So that a reader which sees nothing cannot pass."""
    uses = check(*SOURCES)["uses"]
    assert isinstance(uses, list)
    always = {
        "Builder.create_network", "OnnxParser.parse_from_file", "ParserError.desc", "ITensor.name",
        "IBuilderConfig.progress_monitor", "IOptimizationProfile.set_shape",
        "Runtime.deserialize_cuda_engine", "ICudaEngine.get_tensor_name", "IProfiler",
        "IExecutionContext.execute_async_v3", "IExecutionContext.profiler", "nptype",
        "EngineInspector.get_engine_information", "IProgressMonitor.step_complete", "ILogger.log",
    }  # fmt: skip
    assert always <= set(uses)
    rtx = {"IRuntimeCache.deserialize", "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE"}
    other = {"IPluginRegistry.load_library", "init_libnvinfer_plugins"}
    has, lacks = (rtx, other) if flavour.startswith("rtx") else (other, rtx)
    assert has <= set(uses)
    assert not lacks & set(uses)


MADE_UP = """
class Api:
    def build(self, engine: Any, network: Any, given: Any):
        trt = self.trt
        if hasattr(trt, "NoSuchThing"):
            trt.NoSuchThing.whatever()
        if not hasattr(engine, "no_such_method"):
            return engine.num_io_tensors
        engine.no_such_method()

    def use(self, contexts, engine: TensorRTEngine):
        trt.NoSuchThing
        builder = self.trt.Builder(self._logger)
        builder.create_network().no_such_layer()
        config = builder.create_builder_config()
        config.no_such_property = trt.BuilderFlag.NO_SUCH_FLAG
        for context in self._contexts:
            context.no_such_run(trt.TensorIOMode.INPUT)
        self._contexts[0].no_such_address
        self._contexts.clear()
        engine.run()

    class Profiler(trt.IProfiler):
        def no_such_report(self): ...
"""


def test_name_that_no_tensorrt_has_trips(check: Check, flavour: str, tmp_path: Path) -> None:
    path = tmp_path / "made_up.py"
    path.write_text(MADE_UP)
    report = check(path)
    missing = report["missing"]
    assert isinstance(missing, list)
    assert sorted(line.partition(" ")[2] for line in missing) == [
        "BuilderFlag.NO_SUCH_FLAG", "IBuilderConfig.no_such_property",
        "IExecutionContext.no_such_address", "IExecutionContext.no_such_run",
        "INetworkDefinition.no_such_layer", "IProfiler.no_such_report", "NoSuchThing",
    ]  # fmt: skip
    assert report["guards"] == {"NoSuchThing": False, "ICudaEngine.no_such_method": False}
    assert f"{path}:12 NoSuchThing" in missing


def test_wheel_that_cannot_be_had_fails(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="pip cannot download tensorrt-cu12-bindings"):
        fetch("tensorrt-cu12-bindings==0.0.0.0", tmp_path)


def test_missing_compiler_fails_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match="install the package gcc"):
        stub(("libx.so.1",), tmp_path)
