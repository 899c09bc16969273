"""Tiny ONNX models, and repositories made of them."""

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

Dims = Sequence[int | str]
"""Sizes; a name is a size that is free."""

DTYPES = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING, "BF16": TensorProto.BFLOAT16,
}  # fmt: skip


def value(name: str, dtype: str = "FP32", dims: Dims = ("n", 4)) -> onnx.ValueInfoProto:
    """Declare an input or output."""
    return helper.make_tensor_value_info(name, DTYPES[dtype], list(dims))


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto] = (),
    opset: int = 17,
) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    imports = [helper.make_opsetid("", opset)]
    made = helper.make_model(graph, opset_imports=imports, ir_version=9 if opset > 18 else 8)
    serialized: bytes = made.SerializeToString()
    return serialized


def identity(dtype: str = "FP32", dims: Dims = ("n", 4)) -> bytes:
    """x → y, unchanged."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return model([node], [value("x", dtype, dims)], [value("y", dtype, dims)])


def addition(dims: Dims = ("n", 4)) -> bytes:
    """left + right → sum."""
    node = helper.make_node("Add", ["left", "right"], ["sum"])
    inputs = [value("left", "FP32", dims), value("right", "FP32", dims)]
    return model([node], inputs, [value("sum", "FP32", dims)])


def total() -> bytes:
    """ids of any length → their total in each row."""
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    node = helper.make_node("ReduceSum", ["ids", "axis"], ["total"], keepdims=0)
    inputs = [value("ids", "INT64", ("n", "length"))]
    return model([node], inputs, [value("total", "INT64", ("n",))], [axis])


def lookup() -> bytes:
    """x → ten times x; the runtime fails the batch for an x beyond 3."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [4], [0.0, 10.0, 20.0, 30.0])
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    return model([node], [value("x", "INT64", ("n", 1))], [value("y", "FP32", ("n", 1))], [table])


def many_kinds() -> bytes:
    """half, number, flag and text → the same with `_out` in their names."""
    kinds = {"half": "FP16", "number": "INT64", "flag": "BOOL", "text": "BYTES"}
    return model(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds],
        [value(name, dtype, ("n", 2)) for name, dtype in kinds.items()],
        [value(f"{name}_out", dtype, ("n", 2)) for name, dtype in kinds.items()],
    )


def without_inputs() -> bytes:
    """Nothing → y, of some rows."""
    nodes = [
        helper.make_node("RandomNormal", [], ["noise"], shape=[4]),
        helper.make_node("NonZero", ["noise"], ["found"]),
        helper.make_node("Transpose", ["found"], ["y"]),
    ]
    return model(nodes, [], [value("y", "INT64", ("n", 1))])


def write_model(
    root: Path,
    name: str,
    serialized: bytes | None,
    config: str | None = None,
    *,
    versions: Sequence[str] = ("1",),
    filename: str = "model.onnx",
) -> Path:
    """Write a model's folder; without bytes, its versions are empty."""
    folder = root / name
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    for version in versions:
        (folder / version).mkdir()
        if serialized is not None:
            (folder / version / filename).write_bytes(serialized)
    return folder
