"""Orders for tiny models, and programs that stand in for a builder."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from onnx import TensorProto, helper

from infer_svc.build.child import Child
from infer_svc.build.manifest import PORTABLE, Key, Manifest, Target, plan_hash
from infer_svc.build.order import Order, order_for
from infer_svc.config import read_config
from tests.infer_svc import graphs
from tests.infer_svc.graphs import write_model

RTX = Target("tensorrt_rtx", "1.5.0", PORTABLE)
FULL = Target("tensorrt", "10.16.1", "sm_90")


def relu() -> bytes:
    """x → the larger of x and 0."""
    node = helper.make_node("Relu", ["x"], ["y"])
    return graphs.model([node], [graphs.value("x")], [graphs.value("y")])


def product() -> bytes:
    """x → x times a matrix."""
    values = [float(number % 7) / 7 for number in range(16)]
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], values)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    return graphs.model([node], [graphs.value("x")], [graphs.value("y")], [weights])


def unbuildable() -> bytes:
    """A graph that ONNX Runtime runs and TensorRT-RTX does not build."""
    node = helper.make_node("NonZero", ["x"], ["y"])
    return graphs.model([node], [graphs.value("x")], [graphs.value("y", "INT64", (2, "m"))])


def model_folder(root: Path, name: str = "m", content: bytes | None = None) -> Path:
    """Write a model for a GPU, with a batch dimension."""
    text = "max_batch_size: 4 instance_group [ { kind: KIND_GPU } ]"
    return write_model(root, name, content or relu(), text)


def order(root: Path, content: bytes | None = None, **changes: object) -> Order:
    """Return an order of a new model."""
    folder = model_folder(root / "models", content=content)
    made = order_for(folder / "1/model.onnx", read_config(folder), 0, root / "engines")
    return replace(made, **changes)  # type: ignore[arg-type]


def key(onnx: str = "a" * 64, target: Target = RTX) -> Key:
    return Key(onnx=onnx, target=target, recipe="b" * 64, profiles="[]")


def manifest(of: Key, plan: bytes, model: str = "m") -> Manifest:
    return Manifest(
        key=of, model=model, recipe={"precision": "fp16"}, plan_sha256=plan_hash(plan),
        plan_bytes=len(plan), created="2026-11-26T18:30:00Z", build_s=1.5, trtmesh="0.1.0",
    )  # fmt: skip


def builder(source: str) -> Callable[[Order, float], Child]:
    """Return what starts a program of Python in the place of a builder."""
    return lambda order, limit_s: Child(order, limit_s, (sys.executable, "-c", source))
