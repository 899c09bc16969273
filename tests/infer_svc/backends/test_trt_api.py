"""TensorRT's API as far as it goes without a GPU: TensorRT-RTX builds engines on a CPU."""

import logging
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from infer_svc.backends.shapes import profiles_of
from infer_svc.backends.tensorrt import onnx_inputs
from infer_svc.backends.trt_api import Api, Kernels, load_api
from mesh.errors import EngineError, SettingsError
from tests.infer_svc.backends.engines import RELU_PROFILE, FakeModule, one_node


@pytest.fixture(scope="module")
def api() -> Api:
    return load_api()


@pytest.fixture(scope="module")
def relu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return one_node(tmp_path_factory.mktemp("relu") / "m.onnx", "Relu")


def test_the_next_build_works_after_one_that_failed(api: Api, tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        api.build(one_node(tmp_path / "odd.onnx", "NoSuchOperator"), [{}])
    path = one_node(tmp_path / "m.onnx", "Relu")
    assert api.build(path, [RELU_PROFILE])


def test_broken_plan_is_refused(api: Api) -> None:
    with pytest.raises(EngineError, match="build it anew with this version"):
        api.load(b"no plan at all")


def test_version_without_what_is_needed_is_refused() -> None:
    old = ModuleType("tensorrt")
    old.__dict__["__version__"] = "8.6.1"
    with pytest.raises(SettingsError, match=r"TensorRT 8\.6\.1 came, wanted 10\.12 or newer"):
        Api(old)


def test_no_module_at_all_is_told_with_the_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer_svc.backends.trt_api.MODULES", ("no_such_tensorrt",))
    with pytest.raises(SettingsError, match=r"no_such_tensorrt.*install trtmesh\[tensorrt\]"):
        load_api()


def test_types_are_numpys(api: Api) -> None:
    assert api.trt.nptype(api.trt.DataType.FLOAT) == np.float32
    assert (api.is_rtx, api.flavour) == (True, "tensorrt_rtx")


def test_tensor_of_a_type_that_numpy_has_not_is_refused_by_its_name(api: Api) -> None:
    engine = SimpleNamespace(
        num_io_tensors=1, get_tensor_name=lambda index: "x",
        get_tensor_dtype=lambda name: api.trt.fp8,
    )  # fmt: skip
    with pytest.raises(EngineError, match=r"tensor 'x' is DataType\.FP8, which NumPy has not"):
        api.tensors(engine)


def test_progress_is_told_by_phases_up_to_their_last_step(api: Api, relu: Path) -> None:
    told: list[tuple[str, int, int]] = []
    api.build(relu, [RELU_PROFILE], progress=lambda *step: told.append(step))
    phase, step, steps = told[0]
    assert (phase, step) == ("Building engine", 0)
    assert steps > 1
    assert (phase, steps, steps) in told
    assert all(0 <= step <= steps for _, step, steps in told)


def test_what_the_progress_raises_ends_the_build_and_the_next_one_works(
    api: Api, relu: Path
) -> None:
    def stop(phase: str, step: int, steps: int) -> None:
        raise TimeoutError(f"enough of {phase}")

    with pytest.raises(TimeoutError, match="enough of Building engine"):
        api.build(relu, [RELU_PROFILE], progress=stop)
    assert api.build(relu, [RELU_PROFILE])


def test_plugins_are_refused_by_name_where_there_are_none(api: Api) -> None:
    api.load_plugins([])
    with pytest.raises(SettingsError, match=r"\['a\.so'\] came, but tensorrt_rtx .* has none"):
        api.load_plugins([Path("a.so")])


def test_plugin_libraries_are_loaded_after_tensorrts_own(tmp_path: Path) -> None:
    (tmp_path / "good.so").touch()
    (tmp_path / "bad.so").touch()
    module = FakeModule(rtx=False)
    api = Api(module)
    api.load_plugins([tmp_path / "good.so"])
    assert module.calls == ["init_libnvinfer_plugins", f"load_library {tmp_path}/good.so"]
    with pytest.raises(SettingsError, match=r"bad\.so cannot be loaded: no symbol getCreators"):
        api.load_plugins([tmp_path / "good.so", tmp_path / "bad.so"])
    with pytest.raises(SettingsError, match=r"missing\.so is no file"):
        api.load_plugins([tmp_path / "missing.so"])


def test_tensorrt_whose_own_plugins_are_broken_is_told() -> None:
    with pytest.raises(SettingsError, match=r"plugins of tensorrt 0\.1 cannot be loaded"):
        Api(FakeModule(rtx=False, complete=False)).load_plugins([])


def test_runtime_cache_goes_to_bytes_and_back() -> None:
    module = FakeModule(rtx=True)
    api, engine = Api(module), module.engine()
    assert api.dump_cache(api.runtime_cache(engine)) == b"empty"
    assert api.dump_cache(api.runtime_cache(engine, b"good kernels")) == b"good kernels"


def test_runtime_cache_that_does_not_fit_is_dropped_with_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = FakeModule(rtx=True)
    api = Api(module)
    assert api.dump_cache(api.runtime_cache(module.engine(), b"other GPU")) == b"empty"
    (record,) = [record for record in caplog.records if record.message == "runtime cache dropped"]
    assert (record.__dict__["bytes"], record.__dict__["why"]) == (9, "made for another GPU")


def test_flavour_without_a_runtime_cache_has_none() -> None:
    module = FakeModule(rtx=False)
    api = Api(module)
    assert api.runtime_cache(module.engine(), b"good kernels") is None
    assert api.dump_cache(None) == b""


@pytest.mark.parametrize(
    ("kernels", "graphs", "wanted"),
    [
        ("eager", True, ("EAGER", "WHOLE_GRAPH_CAPTURE")),
        ("lazy", True, ("LAZY", "WHOLE_GRAPH_CAPTURE")),
        ("none", False, ("NONE", "DISABLED")),
    ],
)
def test_context_has_the_strategies_that_were_chosen(
    kernels: Kernels, graphs: bool, wanted: tuple[str, str]
) -> None:
    module = FakeModule(rtx=True)
    api, engine = Api(module), module.engine()
    cache = api.runtime_cache(engine)
    _, config = api.context(engine, cache, kernels=kernels, graphs=graphs)
    assert config.cache is cache
    assert (
        config.dynamic_shapes_kernel_specialization_strategy, config.cuda_graph_strategy
    ) == wanted  # fmt: skip


def test_context_is_eager_with_graphs_by_default_and_needs_no_cache() -> None:
    module = FakeModule(rtx=True)
    _, config = Api(module).context(module.engine(), None)
    assert config.cache is None
    assert config.dynamic_shapes_kernel_specialization_strategy == "EAGER"
    assert config.cuda_graph_strategy == "WHOLE_GRAPH_CAPTURE"


def test_context_of_a_flavour_without_strategies_has_a_plain_config() -> None:
    module = FakeModule(rtx=False)
    _, config = Api(module).context(module.engine(), None, kernels="none", graphs=False)
    assert vars(config) == {}


def test_context_that_cannot_be_made_is_an_error_with_tensorrts_lines() -> None:
    module = FakeModule(rtx=True)
    engine = module.engine(memory=False)
    with pytest.raises(EngineError, match="no execution context: out of memory"):
        Api(module).context(engine, None)


def test_memory_of_a_context_is_told_in_bytes() -> None:
    module = FakeModule(rtx=True)
    assert Api(module).memory_bytes(module.engine()) == 4096


def test_layers_and_their_times_come_by_the_api() -> None:
    module = FakeModule(rtx=True)
    api, engine = Api(module), module.engine()
    assert [layer.name for layer in api.layers(engine)] == ["conv", "relu"]
    context, _ = api.context(engine, None, graphs=False)
    times = api.watch(context)
    context.execute_async_v3(0)
    assert [(time.name, time.ms) for time in times.worst()] == [("conv", 2.0), ("relu", 1.0)]


def test_what_tensorrt_said_reaches_python_at_the_end_of_a_call_and_by_flush(
    api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(EngineError):
        api.build(one_node(tmp_path / "odd.onnx", "NoSuchOperator"), [{}])
    assert any("NoSuchOperator" in str(record.__dict__.get("line")) for record in caplog.records)
    assert max(record.levelno for record in caplog.records) <= logging.INFO
    caplog.clear()
    api.lines.add(logging.ERROR, "said outside of any call")
    assert not caplog.records
    api.flush()
    assert [record.__dict__["line"] for record in caplog.records] == ["said outside of any call"]


def test_tensorrts_own_logger_calls_no_python(
    api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    quiet = Api(api.trt, own_logger=True)
    with pytest.raises(EngineError, match=re.compile("cannot parse.*it said nothing", re.DOTALL)):
        quiet.build(one_node(tmp_path / "odd.onnx", "NoSuchOperator"), [{}])
    assert not caplog.records
    assert "NoSuchOperator" in "".join(capfd.readouterr())


def test_layers_of_an_engine_on_a_cpu_cannot_be_had(api: Api, relu: Path) -> None:
    plan = api.build(relu, [RELU_PROFILE], detailed=True)
    with pytest.raises(EngineError, match="cannot load"):
        api.load(plan)


@pytest.mark.gpu
def test_real_engine_tells_its_layers_their_times_and_its_cache(api: Api, models: Path) -> None:
    import numpy as np

    from infer_svc.backends.cuda import Stream, device

    path = models / "digits-classify/1/model.onnx"
    with device(0).current():
        plan = api.build(path, profiles_of(onnx_inputs(path), 4, (16,)), detailed=True)
        engine = api.load(plan)
        layers = api.layers(engine)
        assert layers
        assert all(layer.name and layer.kind for layer in layers)
        assert api.memory_bytes(engine) >= 0
        cache = api.runtime_cache(engine, b"no cache at all")
        context, config = api.context(engine, cache, kernels="none", graphs=False)
        times = api.watch(context)
        stream = Stream(device(0).driver)
        context.set_input_shape("pixels", (4, 32, 32, 3))
        buffers: list[Any] = []
        for tensor in api.tensors(engine):
            size = int(np.prod(context.get_tensor_shape(tensor.name)))
            buffers.append(device(0).driver.mem_alloc(size * np.dtype(tensor.dtype).itemsize))
            context.set_tensor_address(tensor.name, int(buffers[-1]))
        for _ in range(3):
            assert context.execute_async_v3(stream.handle)
            stream.wait()
        assert times.worst()
        assert {time.runs for time in times.worst()} == {3}
        data = api.dump_cache(cache)
        assert bool(data) == api.is_rtx
        again = api.runtime_cache(engine, data)
        assert api.dump_cache(again) or not api.is_rtx
        del context, config, again, cache, engine
        for buffer in buffers:
            buffer.free()
