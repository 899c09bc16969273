"""FP16 inside, the same outside, and FP32 where it is kept."""

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from infer_svc.backends.onnxruntime import load_onnxruntime
from infer_svc.build import graph
from infer_svc.build.half import halved
from infer_svc.build.rehearsal import rehearsed
from tests.infer_svc.build.nets import overflowing, perceptron, rows

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def run(model: Any, path: Path, x: Any) -> Any:
    """Run a model as a GPU would."""
    graph.save(rehearsed(model), path)
    return load_onnxruntime(path, 1, literal=True).open().run([{"x": x}])["y"]


def test_inside_is_fp16_and_inputs_and_outputs_stay(tmp_path: Path) -> None:
    made = halved(graph.load(perceptron(tmp_path / "m.onnx")), [])
    kinds = graph.types(made)
    assert [kinds[name] for name in "xywvab"] == [FLOAT, FLOAT, HALF, HALF, HALF, HALF]
    x = rows(16)
    wanted = load_onnxruntime(tmp_path / "m.onnx", 1).open().run([{"x": x}])["y"]
    given = run(made, tmp_path / "h.onnx", x)
    assert 0 < np.abs(given - wanted).max() < 0.05


def test_model_given_is_not_changed(tmp_path: Path) -> None:
    loaded = graph.load(perceptron(tmp_path / "m.onnx"))
    before = loaded.SerializeToString()
    halved(loaded, ["fold"])
    assert loaded.SerializeToString() == before


def test_node_that_is_kept_computes_in_fp32_under_its_old_names(tmp_path: Path) -> None:
    made = halved(graph.load(perceptron(tmp_path / "m.onnx")), ["fold"])
    kinds = graph.types(made)
    (fold,) = [node for node in made.graph.node if node.name == "fold"]
    assert [kinds[name] for name in (*fold.input, *fold.output)] == [FLOAT, FLOAT]
    assert list(fold.output) == ["b"]
    assert kinds["a"] == HALF


def test_no_fp16_is_passed_between_two_nodes_that_are_kept(tmp_path: Path) -> None:
    """A thousand times a thousand is beyond FP16: only FP32 from one to the other saves it."""
    loaded = graph.load(overflowing(tmp_path / "m.onnx"))
    x = np.array([[1, 2, 3, 4]], np.float32)
    assert np.isinf(run(halved(loaded, []), tmp_path / "h.onnx", x)).all()
    assert np.isinf(run(halved(loaded, ["top"]), tmp_path / "h.onnx", x)).all()
    saved = run(halved(loaded, ["top", "down"]), tmp_path / "h.onnx", x)
    np.testing.assert_allclose(saved, x, rtol=2e-3)


def test_last_node_can_be_kept(tmp_path: Path) -> None:
    made = halved(graph.load(perceptron(tmp_path / "m.onnx")), ["wide", "fold", "narrow"])
    x = rows(16)
    wanted = load_onnxruntime(tmp_path / "m.onnx", 1, literal=True).open().run([{"x": x}])["y"]
    given = run(made, tmp_path / "h.onnx", x)
    assert np.abs(given - wanted).max() < 0.05
    assert [output.name for output in made.graph.output] == ["y"]


def test_node_that_is_kept_reads_the_input_as_it_came(tmp_path: Path) -> None:
    loaded = graph.load(overflowing(tmp_path / "m.onnx"))
    for weight in loaded.graph.initializer:
        weight.float_data[:] = [0.5]
    x = np.full((1, 4), 1e6, np.float32)
    given = run(halved(loaded, ["up", "top", "down", "end"]), tmp_path / "h.onnx", x)
    np.testing.assert_array_equal(given, x)
    assert np.isinf(run(halved(loaded, ["top"]), tmp_path / "h.onnx", x)).all()
