"""Errors of outputs and layers, told by running both models."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from infer_svc.build import graph
from infer_svc.build.accuracy import ROWS, compare, sensitive
from infer_svc.build.calibration import Samples
from infer_svc.build.half import halved
from infer_svc.build.report import Report
from mesh.errors import EngineError
from tests.infer_svc.build.nets import overflowing, perceptron, samples
from tests.infer_svc.graphs import model, value

DATA = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32)


def scaled(path: Path, *factors: float, bias: Sequence[float] = (0, 0, 0, 0)) -> Path:
    """Write x → times each factor, t0, t1, … → plus bias → y."""
    names = ["x", *(f"t{n}" for n in range(len(factors)))]
    constants = [helper.make_tensor(f"k{n}", 1, [1], [f]) for n, f in enumerate(factors)]
    constants.append(helper.make_tensor("bias", 1, [4], bias))
    nodes = [
        helper.make_node("Mul", [a, f"k{n}"], [b], name=f"times{n}")
        for n, (a, b) in enumerate(itertools.pairwise(names))
    ]
    nodes.append(helper.make_node("Add", [names[-1], "bias"], ["y"], name="plus"))
    path.write_bytes(model(nodes, [value("x")], [value("y")], constants))
    return path


def between(a: Path, b: Path, data: Any = DATA, **options: Any) -> Report:
    return compare(a, b, Samples(({"x": data},), True, "test"), **options)


def test_equal_models_have_no_error(tmp_path: Path) -> None:
    net = perceptron(tmp_path / "m.onnx")
    found = compare(net, net, samples(16), precision="fp32", tolerance=0)
    (output,) = found.outputs
    assert (output.name, output.error, output.max_abs, output.agreement) == ("y", 0, 0, 1)
    assert output.cosine == pytest.approx(1)
    assert [one.error for one in found.layers] == [0, 0, 0]
    assert (found.rows, found.holds, found.model) == (64, True, str(net))


def test_errors_are_those_of_numpy(tmp_path: Path) -> None:
    bias = (0, 0, 0, 9)
    a, b = scaled(tmp_path / "a.onnx", 1.0), scaled(tmp_path / "b.onnx", 1.0, bias=bias)
    (output,) = between(a, b).outputs
    out = DATA + np.array(bias, np.float32)
    assert output.error == pytest.approx(np.linalg.norm(out - DATA) / np.linalg.norm(DATA))
    assert output.max_abs == 9
    cosine = (out * DATA).sum() / np.linalg.norm(out) / np.linalg.norm(DATA)
    assert output.cosine == pytest.approx(cosine)
    assert output.agreement == 0.5


def test_output_of_one_class_has_no_agreement(tmp_path: Path) -> None:
    node = helper.make_node("ReduceMax", ["x"], ["y"], axes=[1])
    (tmp_path / "m.onnx").write_bytes(model([node], [value("x")], [value("y", "FP32", ("n", 1))]))
    assert between(tmp_path / "m.onnx", tmp_path / "m.onnx").outputs[0].agreement is None


def test_layers_are_told_worst_first_with_their_own_part(tmp_path: Path) -> None:
    a = scaled(tmp_path / "a.onnx", 2.0, 1.0, 2.0)
    b = scaled(tmp_path / "b.onnx", 2.2, 1.0, 2.4)
    found = between(a, b)
    errors = {one.node: (one.error, one.own) for one in found.layers}
    assert errors["times0"] == pytest.approx((0.1, 0.1))
    assert errors["times1"] == pytest.approx((0.1, 0.0))
    assert errors["times2"] == pytest.approx((0.32, 0.2))
    assert errors["plus"] == pytest.approx((0.32, 0.0))
    assert [one.error for one in found.layers] == sorted((e for e, _ in errors.values()))[::-1]


def test_overflow_is_infinite_and_its_own_only_where_it_begins(tmp_path: Path) -> None:
    net = overflowing(tmp_path / "m.onnx")
    graph.save(halved(graph.load(net), []), tmp_path / "h.onnx")
    found = between(net, tmp_path / "h.onnx")
    own = {one.node: one.own for one in found.layers}
    assert found.worst.error == math.inf
    assert not found.holds
    # The third cannot even read what the second has to write.
    assert (own["top"], own["down"]) == (math.inf, math.inf)
    assert own["up"] < 0.001
    assert own["end"] < 0.001
    assert sensitive(found, 5) == ["top", "down"]


def test_mask_of_attention_is_no_error_inside_but_is_as_an_output(tmp_path: Path) -> None:
    a = scaled(tmp_path / "a.onnx", 1.0, 0.0, bias=(0, 0, 0, 1))
    b = scaled(tmp_path / "b.onnx", 1.0, 0.0, bias=(0, 0, 0, 1))
    for path, low in ((a, -3e38), (b, -65504.0)):
        loaded = onnx.load(str(path))
        loaded.graph.initializer[0].float_data[:] = [low]
        onnx.save(loaded, str(path))
    found = between(a, b, np.ones((2, 4), np.float32))
    assert {one.tensor: one.error for one in found.layers}["t0"] == 0
    outside = between(
        scaled(tmp_path / "c.onnx", -3e38), scaled(tmp_path / "d.onnx", -65504.0),
        np.ones((2, 4), np.float32),
    )  # fmt: skip
    assert outside.worst.error == pytest.approx(1)


def test_reference_of_zeros_allows_no_difference(tmp_path: Path) -> None:
    a, b = scaled(tmp_path / "a.onnx", 0.0), scaled(tmp_path / "b.onnx", 1e-6)
    assert between(a, b).worst.error == math.inf
    assert between(a, a).worst.error == 0


def test_no_more_rows_are_run_than_needed(tmp_path: Path) -> None:
    net = scaled(tmp_path / "m.onnx", 1.0)
    assert between(net, net, np.ones((ROWS + 50, 4), np.float32)).rows == ROWS


def test_model_that_does_not_run_is_told(tmp_path: Path) -> None:
    net = scaled(tmp_path / "m.onnx", 1.0)
    loaded = onnx.load(str(net))
    loaded.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(loaded, str(tmp_path / "odd.onnx"))
    with pytest.raises(EngineError, match=r"cannot be compared.*NoSuchOperator"):
        between(net, tmp_path / "odd.onnx")


def test_sensitive_nodes_are_the_worst_by_themselves_and_none_twice(tmp_path: Path) -> None:
    a = scaled(tmp_path / "a.onnx", 2.0, 1.0, 2.0)
    b = scaled(tmp_path / "b.onnx", 2.2, 1.0, 2.4)
    assert sensitive(between(a, b), 2) == ["times2", "times0"]
    assert sensitive(between(a, b, kept=["times2"]), 1) == ["times0"]
    assert sensitive(between(a, b), 9, among=["times0", "times1"]) == ["times0", "times1"]
    assert sensitive(between(a, b, kept=["times0", "times1", "times2", "plus"]), 9) == []
