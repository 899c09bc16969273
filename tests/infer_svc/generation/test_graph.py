"""Graphs are written from weights, each kept once, and are valid ONNX."""

import numpy as np
import onnx
import pytest

from infer_svc.generation.graph import Graph
from mesh.errors import SettingsError
from tests.infer_svc.generation.networks import run

WEIGHTS = {
    "l.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "l.bias": np.ones(2, np.float32),
    "n.weight": np.full(2, 2, np.float32), "n.bias": np.zeros(2, np.float32),
}  # fmt: skip


def test_layers_compute_what_their_names_say() -> None:
    graph = Graph("g", WEIGHTS, np.float32)
    value = graph.input("x", np.float32, ["rows", 3])
    for name in ("y", "z"):
        graph.output(name, np.float32, ["rows", 2], "Identity", graph.linear(value, "l"))
    normal = graph.layer_norm("y", "n", 1e-5)
    graph.output("n", np.float32, ["rows", 2], "Identity", normal)
    model = graph.model()
    onnx.checker.check_model(model, full_check=True)
    assert len([1 for kept in model.graph.initializer if kept.name.startswith("l.")]) == 2
    x = np.array([[1, 2, 3], [0, 0, 1]], np.float32)
    found = run(model, {"x": x})
    np.testing.assert_allclose(found["y"], x @ WEIGHTS["l.weight"].T + 1)
    np.testing.assert_allclose(found["n"], [[-2, 2], [-2, 2]], atol=1e-3)


def test_heads_are_split_and_joined() -> None:
    graph = Graph("g", {}, np.float32)
    split = graph.heads(graph.input("x", np.float32, ["rows", "tokens", 6]), 2)
    graph.output("split", np.float32, ["rows", 2, "tokens", 3], "Identity", split)
    graph.output("same", np.float32, ["rows", "tokens", 6], "Identity", graph.joined(split))
    x = np.arange(60, dtype=np.float32).reshape(2, 5, 6)
    found = run(graph.model(), {"x": x})
    np.testing.assert_array_equal(found["split"], x.reshape(2, 5, 2, 3).transpose(0, 2, 1, 3))
    np.testing.assert_array_equal(found["same"], x)


def test_weight_that_is_missing_is_named() -> None:
    with pytest.raises(SettingsError, match=r"weight 'other\.weight' is missing; there are 4"):
        Graph("g", WEIGHTS, np.float32).weight("other.weight")
