"""Small models with weights, for conversions."""

from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from infer_svc.build.calibration import Samples
from tests.infer_svc.graphs import model, value

ROWS = 64


def perceptron(path: Path) -> Path:
    """Write x[n,16] → MatMul `wide` → Relu `fold` → MatMul `narrow` → y[n,4]."""
    rng = np.random.default_rng(1)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w", (16, 32)), ("v", (32, 4)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="wide"),
        helper.make_node("Relu", ["a"], ["b"], name="fold"),
        helper.make_node("MatMul", ["b", "v"], ["y"], name="narrow"),
    ]
    path.write_bytes(
        model(nodes, [value("x", "FP32", ("n", 16))], [value("y", "FP32", ("n", 4))], weights)
    )
    return path


def convolution(path: Path) -> Path:
    """Write x[n,3,8,8] → Conv `see` → Flatten `flat` → MatMul `name` → y[n,5]."""
    rng = np.random.default_rng(2)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w", (4, 3, 3, 3)), ("v", (144, 5)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="see"),
        helper.make_node("Flatten", ["a"], ["b"], name="flat"),
        helper.make_node("MatMul", ["b", "v"], ["y"], name="name"),
    ]
    inputs = [value("x", "FP32", ("n", 3, 8, 8))]
    path.write_bytes(model(nodes, inputs, [value("y", "FP32", ("n", 5))], weights))
    return path


def overflowing(path: Path) -> Path:
    """Write x[n,4] → times a thousand twice, `up` and `top`, and back, `down` and `end` → y."""
    thousand = helper.make_tensor("k", 1, [1], [1000.0])
    nodes = [
        helper.make_node("Mul", ["x", "k"], ["a"], name="up"),
        helper.make_node("Mul", ["a", "k"], ["b"], name="top"),
        helper.make_node("Div", ["b", "k"], ["c"], name="down"),
        helper.make_node("Div", ["c", "k"], ["y"], name="end"),
    ]
    path.write_bytes(model(nodes, [value("x")], [value("y")], [thousand]))
    return path


def rows(*sizes: int) -> Any:
    """Return rows of x: float32[64, *sizes]."""
    return np.random.default_rng(3).standard_normal((ROWS, *sizes)).astype(np.float32)


def samples(*sizes: int) -> Samples:
    """Return the same as checked data."""
    return Samples(({"x": rows(*sizes)},), True, "rows of the test")
