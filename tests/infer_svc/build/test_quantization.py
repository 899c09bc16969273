"""Q/DQ nodes where a flavour can run them, with ranges from data."""

import collections
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from infer_svc.build import graph
from infer_svc.build.quantization import calibrate, prepared, quantizable, quantize
from mesh.errors import EngineError, SettingsError
from mesh.tensor import Tensors
from tests.infer_svc.build.nets import convolution, perceptron, samples
from tests.infer_svc.graphs import identity, model, value


def made(net: Callable[[Path], Path], folder: Path, nodes: list[str], *sizes: int) -> Any:
    """Return a quantized model."""
    graph.save(prepared(graph.load(net(folder / "m.onnx"))), folder / "p.onnx")
    calibrate(folder / "p.onnx", folder / "r.json", samples(*sizes).batches(16), nodes)
    quantize(folder / "p.onnx", folder / "q.onnx", folder / "r.json", nodes)
    return graph.load(folder / "q.onnx")


def test_inputs_of_the_named_nodes_are_quantized_and_no_outputs(tmp_path: Path) -> None:
    quantized = made(perceptron, tmp_path, ["wide", "narrow"], 16)
    count = collections.Counter(node.op_type for node in quantized.graph.node)
    # Two inputs; their weights are quantized ahead and need no node for it.
    assert (count["QuantizeLinear"], count["DequantizeLinear"]) == (2, 4)
    maker = {name: node for node in quantized.graph.node for name in node.output}
    for node in quantized.graph.node:
        if node.op_type == "MatMul":
            assert {maker[name].op_type for name in node.input} == {"DequantizeLinear"}
    assert maker["y"].op_type == "MatMul"


def test_zero_is_zero_and_weights_have_a_scale_for_each_channel(tmp_path: Path) -> None:
    quantized = made(perceptron, tmp_path, ["wide"], 16)
    arrays = {one.name: numpy_helper.to_array(one) for one in quantized.graph.initializer}
    points = [array for name, array in arrays.items() if name.endswith("_zero_point")]
    assert points
    for point in points:
        assert point.dtype == np.int8
        assert not point.any()
    assert arrays["w_scale"].shape == (32,)
    assert arrays["w_quantized"].dtype == np.int8


def test_only_the_named_nodes_are_quantized(tmp_path: Path) -> None:
    quantized = made(convolution, tmp_path, ["name"], 3, 8, 8)
    (see,) = [node for node in quantized.graph.node if node.name == "see"]
    assert list(see.input) == ["x", "w"]


def test_ranges_are_kept_as_json_with_the_size_of_the_data(tmp_path: Path) -> None:
    made(perceptron, tmp_path, ["wide"], 16)
    found = json.loads((tmp_path / "r.json").read_text())
    low, high = (found["data"]["x"][key] for key in ("lowest", "highest"))
    assert -5 < low < -1
    assert 1 < high < 5


def test_batches_of_several_lengths_are_measured_together(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")]
    sizes = ("n", "length", 4)
    serialized = model(nodes, [value("x", "FP32", sizes)], [value("y", "FP32", sizes)], [weight])
    (tmp_path / "m.onnx").write_bytes(serialized)
    graph.save(prepared(graph.load(tmp_path / "m.onnx")), tmp_path / "p.onnx")
    batches: list[Tensors] = [{"x": np.full((2, n, 4), float(n), np.float32)} for n in (1, 3, 5)]
    calibrate(tmp_path / "p.onnx", tmp_path / "r.json", batches, ["m"])
    quantize(tmp_path / "p.onnx", tmp_path / "q.onnx", tmp_path / "r.json", ["m"])
    arrays = {
        one.name: numpy_helper.to_array(one)
        for one in graph.load(tmp_path / "q.onnx").graph.initializer
    }
    assert arrays["x_scale"] * 127 > 2.5


def test_data_that_the_model_cannot_run_is_told(tmp_path: Path) -> None:
    graph.save(prepared(graph.load(perceptron(tmp_path / "m.onnx"))), tmp_path / "p.onnx")
    odd: list[Tensors] = [{"x": np.zeros((1, 3), np.float32)}]
    with pytest.raises(EngineError, match=r"calibration failed: InvalidArgument: .*x"):
        calibrate(tmp_path / "p.onnx", tmp_path / "r.json", odd, ["wide"])
    assert not (tmp_path / "r.json").exists()


def test_constants_count_as_weights(tmp_path: Path) -> None:
    constant = numpy_helper.from_array(np.ones((4, 4), np.float32))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=constant),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="m"),
    ]
    (tmp_path / "m.onnx").write_bytes(model(nodes, [value("x")], [value("y")]))
    ready = prepared(graph.load(tmp_path / "m.onnx"))
    assert [one.name for one in ready.graph.initializer] == ["w"]
    assert [node.op_type for node in ready.graph.node] == ["MatMul"]
    assert graph.opset(ready) == 21
    assert graph.types(ready)["w"] == TensorProto.FLOAT


@pytest.mark.parametrize("flavour", ["onnxruntime", "tensorrt"])
def test_convolutions_are_quantized_where_they_run(flavour: str, tmp_path: Path) -> None:
    loaded = graph.load(convolution(tmp_path / "m.onnx"))
    assert quantizable(loaded, flavour, []) == ["see", "name"]
    assert quantizable(loaded, flavour, ["see"]) == ["name"]


def test_rtx_refuses_convolutions_by_name_and_says_what_to_do(tmp_path: Path) -> None:
    loaded = graph.load(convolution(tmp_path / "m.onnx"))
    told = (
        r"tensorrt_rtx cannot run the operator Conv in INT8.* 1 such nodes \(see.*fp16.*keep 'Conv'"
    )
    with pytest.raises(SettingsError, match=told):
        quantizable(loaded, "tensorrt_rtx", [])
    assert quantizable(loaded, "tensorrt_rtx", ["see"]) == ["name"]


def test_rtx_takes_a_model_of_matrices(tmp_path: Path) -> None:
    loaded = graph.load(perceptron(tmp_path / "m.onnx"))
    assert quantizable(loaded, "tensorrt_rtx", []) == ["wide", "narrow"]


def test_model_with_nothing_to_quantize_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(identity())
    with pytest.raises(SettingsError, match=r"no MatMul, Gemm, Conv to quantize.*fp16"):
        quantizable(graph.load(tmp_path / "m.onnx"), "tensorrt", [])


def test_unknown_flavour_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="flavour 'cuda' came, wanted one of"):
        quantizable(graph.load(perceptron(tmp_path / "m.onnx")), "cuda", [])


def test_nothing_is_printed_and_the_log_is_as_loud_as_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    level = logging.getLogger().level
    made(perceptron, tmp_path, ["wide"], 16)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().level == level
