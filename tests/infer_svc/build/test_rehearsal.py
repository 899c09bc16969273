"""On the CPU a model is as wrong as on a GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from infer_svc.backends.onnxruntime import load_onnxruntime
from infer_svc.build import graph
from infer_svc.build.half import halved
from infer_svc.build.rehearsal import rehearsed
from tests.infer_svc.build.nets import overflowing, perceptron
from tests.infer_svc.graphs import model, value


def run(path: Path, literal: bool, x: Any) -> Any:
    return load_onnxruntime(path, 1, literal=literal).open().run([{"x": x}])["y"]


@pytest.mark.parametrize("literal", [True, False], ids=["literal", "optimized"])
def test_overflow_that_onnx_runtime_hides_is_seen(literal: bool, tmp_path: Path) -> None:
    half = halved(graph.load(overflowing(tmp_path / "m.onnx")), [])
    x = np.ones((1, 4), np.float32)
    graph.save(half, tmp_path / "plain.onnx")
    assert (run(tmp_path / "plain.onnx", literal, x) == 1).all(), "then nothing need be rehearsed"
    graph.save(rehearsed(half), tmp_path / "rehearsed.onnx")
    assert np.isinf(run(tmp_path / "rehearsed.onnx", literal, x)).all()


def test_every_value_is_rounded_as_numpy_rounds_it(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["x", "x"], ["a"]), helper.make_node("Add", ["a", "x"], ["y"])]
    (tmp_path / "m.onnx").write_bytes(model(nodes, [value("x")], [value("y")]))
    graph.save(rehearsed(halved(graph.load(tmp_path / "m.onnx"), [])), tmp_path / "r.onnx")
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    half = x.astype(np.float16)
    square = (half.astype(np.float32) ** 2).astype(np.float16)
    wanted = (square.astype(np.float32) + half.astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(run(tmp_path / "r.onnx", True, x), wanted.astype(np.float32))


def test_tensors_keep_names_and_types_and_the_model_given_is_not_changed(tmp_path: Path) -> None:
    half = halved(graph.load(perceptron(tmp_path / "m.onnx")), [])
    before = half.SerializeToString()
    made = graph.types(rehearsed(half))
    assert {name: made[name] for name in graph.types(half)} == graph.types(half)
    assert half.SerializeToString() == before


def test_model_without_fp16_is_left_as_it_is(tmp_path: Path) -> None:
    loaded = graph.load(perceptron(tmp_path / "m.onnx"))
    assert rehearsed(loaded).graph.node == loaded.graph.node


def test_node_with_inner_graphs_is_left_as_it_is(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["z"])], "b", [], [value("z", "FP16")]
    )
    choice = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    inputs = [value("x", "FP16"), value("yes", "BOOL", ())]
    (tmp_path / "m.onnx").write_bytes(model([choice], inputs, [value("y", "FP16")]))
    assert [node.op_type for node in rehearsed(graph.load(tmp_path / "m.onnx")).graph.node] == [
        "If"
    ]
    assert graph.types(graph.load(tmp_path / "m.onnx"))["y"] == TensorProto.FLOAT16
