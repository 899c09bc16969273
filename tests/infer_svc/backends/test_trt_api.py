"""TensorRT's API as far as it goes without a GPU: TensorRT-RTX builds engines on a CPU."""

import logging
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from infer_svc.backends.shapes import profiles_of
from infer_svc.backends.tensorrt import onnx_inputs
from infer_svc.backends.trt_api import Api, Lines, load_api
from mesh.errors import EngineError, SettingsError


@pytest.fixture(scope="module")
def api() -> Api:
    return load_api()


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


@pytest.mark.parametrize(
    ("name", "max_rows", "profiles"),
    [("digits-classify", 32, 1), ("digits-detect", 8, 1), ("language", 32, 3)],
)
def test_engine_of_the_demo_model_is_built(
    api: Api, models: Path, name: str, max_rows: int, profiles: int
) -> None:
    path = models / name / "1/model.onnx"
    wanted = profiles_of(onnx_inputs(path), max_rows, (16, 32, 64))
    assert len(wanted) == profiles
    plan = api.build(path, wanted)
    assert len(plan) > path.stat().st_size / 4


def test_model_that_cannot_be_parsed_is_named_with_the_reason(api: Api, tmp_path: Path) -> None:
    path = one_node(tmp_path / "odd.onnx", "NoSuchOperator")
    with pytest.raises(EngineError, match=r"cannot parse .*odd\.onnx: .*NoSuchOperator"):
        api.build(path, [{"x": ((1, 4), (2, 4), (2, 4))}])
    (tmp_path / "no.onnx").write_bytes(b"not a model")
    with pytest.raises(EngineError, match=r"cannot parse .*no\.onnx"):
        api.build(tmp_path / "no.onnx", [{}])
    with pytest.raises(EngineError, match="cannot parse"):
        api.build(tmp_path / "missing.onnx", [{}])


def test_profile_that_does_not_fit_is_refused(api: Api, tmp_path: Path) -> None:
    path = one_node(tmp_path / "m.onnx", "Relu")
    with pytest.raises(EngineError):
        api.build(path, [{"x": ((4, 4), (2, 4), (1, 4))}])
    with pytest.raises(EngineError, match="cannot build"):
        api.build(path, [{}])


def test_the_next_build_works_after_one_that_failed(api: Api, tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        api.build(one_node(tmp_path / "odd.onnx", "NoSuchOperator"), [{}])
    path = one_node(tmp_path / "m.onnx", "Relu")
    assert api.build(path, [{"x": ((1, 4), (2, 4), (2, 4))}])


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


def test_lines_are_kept_for_each_thread_and_bounded() -> None:
    lines = Lines()
    lines.add("mine")
    other: list[str] = []

    def work() -> None:
        other.append(lines.text())
        for number in range(100):
            lines.add(str(number))
        other.append(lines.text())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert other[0] == "it said nothing"
    assert other[1].split("; ") == [str(number) for number in range(50, 100)]
    assert lines.text() == "mine"
    lines.clear()
    assert lines.text() == "it said nothing"


def test_log_lines_reach_python(api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(EngineError):
        api.build(one_node(tmp_path / "odd.onnx", "NoSuchOperator"), [{}])
    assert any("NoSuchOperator" in str(record.__dict__.get("line")) for record in caplog.records)
    assert max(record.levelno for record in caplog.records) <= logging.INFO


def test_types_are_numpys(api: Api) -> None:
    assert api.trt.nptype(api.trt.DataType.FLOAT) == np.float32
    assert (api.is_rtx, api.flavour) == (True, "tensorrt_rtx")
