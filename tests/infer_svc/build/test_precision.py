"""Models in another precision: accurate as wished, or refused with the report."""

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from infer_svc.backends.onnxruntime import load_onnxruntime
from infer_svc.build.precision import convert, ranges_path, report_path
from infer_svc.build.recipe import Recipe
from infer_svc.build.report import Report
from mesh.errors import EngineError, Refused, SettingsError
from tests.infer_svc.build.nets import convolution, overflowing, perceptron, rows


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """The perceptron, with data.npz beside it."""
    np.savez(tmp_path / "data.npz", x=rows(16))
    return perceptron(tmp_path / "model.onnx")


def test_fp32_is_the_file_itself(net: Path, tmp_path: Path) -> None:
    made = convert(net, tmp_path / "new.onnx", Recipe())
    assert (made.path, made.report) == (net, None)
    assert not (tmp_path / "new.onnx").exists()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_model_is_written_with_its_report(precision: str, net: Path, tmp_path: Path) -> None:
    target = tmp_path / "new.onnx"
    made = convert(net, target, Recipe(precision, calibration=tmp_path / "data.npz"))
    assert made.path == target
    assert made.report is not None
    assert 0 < made.report.worst.error < made.report.tolerance
    assert Report.from_json(report_path(target).read_text()) == made.report
    old, new = (load_onnxruntime(path, 1) for path in (net, target))
    assert (old.inputs, old.outputs) == (new.inputs, new.outputs)
    wanted, given = (
        np.asarray(engine.open().run([{"x": rows(16)}])["y"], np.float64) for engine in (old, new)
    )
    assert np.linalg.norm(given - wanted) / np.linalg.norm(wanted) < made.report.tolerance
    assert not list(tmp_path.glob(".convert-*"))


def test_int8_keeps_its_ranges_and_is_fp16_around(net: Path, tmp_path: Path) -> None:
    target = tmp_path / "new.onnx"
    made = convert(net, target, Recipe("int8", calibration=tmp_path / "data.npz"))
    assert (made.quantized, made.kept) == (("wide", "narrow"), ())
    assert made.ranges == ranges_path(target)
    assert {"x", "b"} <= json.loads(made.ranges.read_text())["data"].keys()
    inferred = onnx.shape_inference.infer_shapes(onnx.load(str(target)))
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    assert kinds["a"] == onnx.TensorProto.FLOAT16


def test_node_that_is_kept_is_not_quantized(net: Path, tmp_path: Path) -> None:
    recipe = Recipe("int8", keep=("wide",), calibration=tmp_path / "data.npz")
    made = convert(net, tmp_path / "new.onnx", recipe)
    assert (made.quantized, made.kept) == (("narrow",), ("wide",))
    assert made.report is not None
    assert made.report.kept == ("wide",)


def test_fp16_without_data_is_checked_with_made_up_values(net: Path, tmp_path: Path) -> None:
    made = convert(net, tmp_path / "new.onnx", Recipe("fp16"))
    assert made.report is not None
    assert "random" in made.report.data


def test_int8_without_data_is_refused_by_name(net: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"int8 of .*model\.onnx: INT8 needs .*\['x'\]"):
        convert(net, tmp_path / "new.onnx", Recipe("int8"))
    assert not (tmp_path / "new.onnx").exists()


def test_data_that_does_not_fit_is_refused_by_name(net: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "odd.npz", z=np.zeros((1, 16), np.float32))
    with pytest.raises(SettingsError, match=r"fp16 of .*model\.onnx: .*odd\.npz.*\['z'\] came"):
        convert(net, tmp_path / "new.onnx", Recipe("fp16", calibration=tmp_path / "odd.npz"))


def test_unknown_node_to_keep_is_refused_by_name(net: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"fp16 of .*model\.onnx: .*no node 'widest'"):
        convert(net, tmp_path / "new.onnx", Recipe("fp16", keep=("widest",)))


def test_model_that_overflows_is_refused_with_the_report(tmp_path: Path) -> None:
    source, target = overflowing(tmp_path / "model.onnx"), tmp_path / "new.onnx"
    with pytest.raises(Refused, match=r"output 'y' has the error inf") as caught:
        convert(source, target, Recipe("fp16", tolerance=1000))
    assert "Mul top" in str(caught.value)
    assert not target.exists()
    assert Report.from_json(report_path(target).read_text()).worst.error == math.inf


def test_model_that_loses_more_than_stated_is_refused(net: Path, tmp_path: Path) -> None:
    recipe = Recipe("int8", calibration=tmp_path / "data.npz", tolerance=1e-4)
    with pytest.raises(Refused, match=r"int8 of .*model\.onnx is refused: output 'y'"):
        convert(net, tmp_path / "new.onnx", recipe)
    made = convert(net, tmp_path / "new.onnx", recipe, checked=False)
    assert made.report is not None
    assert not made.report.holds
    assert made.path.exists()


def test_nodes_that_overflow_are_found_and_kept(tmp_path: Path) -> None:
    source = overflowing(tmp_path / "model.onnx")
    made = convert(source, tmp_path / "new.onnx", Recipe("fp16", auto=True))
    assert set(made.kept) == {"top", "down"}
    assert made.report is not None
    assert made.report.holds
    assert "kept in FP32: " in made.report.text()


def test_sensitive_node_is_found_and_kept_out_of_int8(tmp_path: Path) -> None:
    """One input a hundred thousand times the others: its range leaves nothing for them."""
    odd = rows(16)
    odd[:, 0] *= 1e5
    np.savez(tmp_path / "data.npz", x=odd)
    net = perceptron(tmp_path / "model.onnx")
    loaded = onnx.load(str(net))
    weight = np.frombuffer(loaded.graph.initializer[0].raw_data, np.float32).reshape(16, 32).copy()
    weight[0] *= 1e-5
    loaded.graph.initializer[0].raw_data = weight.tobytes()
    onnx.save(loaded, str(net))
    recipe = Recipe("int8", calibration=tmp_path / "data.npz", tolerance=0.05)
    with pytest.raises(Refused):
        convert(net, tmp_path / "new.onnx", recipe)
    auto = Recipe("int8", auto=True, calibration=tmp_path / "data.npz", tolerance=0.05)
    made = convert(net, tmp_path / "new.onnx", auto)
    assert (made.kept, made.quantized) == (("wide",), ("narrow",))


def test_search_that_would_leave_nothing_in_int8_is_refused(net: Path, tmp_path: Path) -> None:
    recipe = Recipe("int8", auto=True, calibration=tmp_path / "data.npz", tolerance=1e-6)
    with pytest.raises(Refused, match="kept in FP32: "):
        convert(net, tmp_path / "new.onnx", recipe)


def test_rtx_refuses_int8_convolutions_by_name_and_takes_the_rest(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=rows(3, 8, 8))
    source, target = convolution(tmp_path / "model.onnx"), tmp_path / "new.onnx"
    recipe = Recipe("int8", calibration=tmp_path / "data.npz")
    with pytest.raises(SettingsError, match=r"int8 of .*model\.onnx: tensorrt_rtx.*operator Conv"):
        convert(source, target, recipe, "tensorrt_rtx")
    assert convert(source, target, recipe, "tensorrt").quantized == ("see", "name")
    kept = Recipe("int8", keep=("Conv",), calibration=tmp_path / "data.npz")
    assert convert(source, target, kept, "tensorrt_rtx").quantized == ("name",)


def test_model_that_cannot_be_converted_is_named(net: Path, tmp_path: Path) -> None:
    loaded = onnx.load(str(net))
    loaded.graph.node[1].op_type = "NoSuchOperator"
    onnx.save(loaded, str(net))
    with pytest.raises((SettingsError, EngineError), match=r"fp16 of .*model\.onnx: .*NoSuchOp"):
        convert(net, tmp_path / "new.onnx", Recipe("fp16"))
