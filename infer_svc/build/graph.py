"""ONNX graphs as objects: loaded, named, sorted, typed, saved.

Serving on a CPU needs no package onnx; it is imported when an engine is looked for or built.
"""

import collections
import contextlib
import fnmatch
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from mesh.errors import EngineError, MeshError, SettingsError

IR_OF_OPSET_21 = 10


def package(name: str = "onnx") -> Any:
    """Import onnx, or a part of ONNX Runtime that needs it.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as err:
        raise SettingsError(
            f"reading and converting a model needs the package onnx ({err}); "
            "pip install 'onnx>=1.18'"
        ) from err


@contextlib.contextmanager
def foreign(step: str) -> Iterator[None]:
    """Tell what another package's converter raises as an error of ours.

    Args:
        step: what is tried.

    Raises:
        EngineError: it failed.
    """
    try:
        yield
    except MeshError:
        raise
    except Exception as err:  # a boundary: on an odd model they raise whatever comes up inside
        raise EngineError(f"{step} failed: {type(err).__name__}: {err}") from err


def load(path: Path) -> Any:
    """Return the model of an ONNX file, each of its nodes with a name.

    Raises:
        SettingsError: there is no such file, it is no model, or onnx is not installed.
    """
    onnx = package()
    try:
        model = onnx.load(str(path))
    except (OSError, DecodeError, onnx.checker.ValidationError) as err:
        raise SettingsError(f"{path} is no ONNX model: {err}") from err
    if not model.graph.node:
        raise SettingsError(f"{path} is no ONNX model: it has no nodes")
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            node.name = next(n for n in _names(f"{node.op_type}_{index}") if n not in taken)
            taken.add(node.name)
    return model


def save(model: Any, path: Path) -> None:
    """Sort the nodes, check the model and write it.

    Raises:
        EngineError: it is no valid model, or above 2 GB.
    """
    onnx = package()
    sort(model)
    try:
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
    except (onnx.checker.ValidationError, ValueError) as err:
        raise EngineError(f"the converted model {path} is not valid: {err}") from err


def types(model: Any) -> dict[str, int]:
    """Return the element types of all tensors whose type can be told.

    Raises:
        EngineError: the types that the model states contradict each other.
    """
    onnx = package()
    with foreign("shape inference"):
        graph = onnx.shape_inference.infer_shapes(model).graph
    found = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.HasField("tensor_type"):
            found[value.name] = value.type.tensor_type.elem_type
    return found


def opset(model: Any) -> int:
    """Return the version of the standard operators."""
    return max(
        (int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1
    )


def upgraded(model: Any, wanted: int) -> Any:
    """Return a model of at least an opset.

    Raises:
        EngineError: an operator cannot be converted.
    """
    if opset(model) >= wanted:
        return model
    with foreign(f"raising opset {opset(model)} to {wanted}"):
        made = package("onnx.version_converter").convert_version(model, wanted)
    made.ir_version = max(made.ir_version, IR_OF_OPSET_21)
    return made


def matching(model: Any, patterns: Sequence[str]) -> list[str]:
    """Return the names of the nodes that a name, a pattern or an operator is for.

    Raises:
        SettingsError: one is for no node; the text has the nearest names.
    """
    names = [node.name for node in model.graph.node]
    found: dict[str, None] = {}
    for pattern in patterns:
        hits = [
            node.name
            for node in model.graph.node
            if pattern in (node.name, node.op_type) or fnmatch.fnmatchcase(node.name, pattern)
        ]
        if not hits:
            near = [name for name in names if pattern.strip("*").lower() in name.lower()]
            raise SettingsError(
                f"the model has no node {pattern!r} to keep in FP32; it has "
                f"{(near or names)[:8]} and {max(0, len(near or names) - 8)} more"
            )
        found |= dict.fromkeys(hits)
    return list(found)


def sort(model: Any) -> None:
    """Bring the nodes into an order in which each comes after what it reads."""
    nodes = list(model.graph.node)
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    waits = [{maker[name] for name in reads(node) if name in maker} for node in nodes]
    users: dict[int, list[int]] = collections.defaultdict(list)
    for index, makers in enumerate(waits):
        for one in makers:
            users[one].append(index)
    ready = collections.deque(index for index, makers in enumerate(waits) if not makers)
    order = []
    while ready:
        index = ready.popleft()
        order.append(nodes[index])
        for user in users[index]:
            waits[user].discard(index)
            if not waits[user]:
                ready.append(user)
    del model.graph.node[:]
    model.graph.node.extend(order)


def reads(node: Any) -> Iterator[str]:
    """Yield the names that a node reads, those of its inner graphs too."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for child in inner.node:
                yield from reads(child)
            yield from (output.name for output in inner.output)


def _names(stem: str) -> Iterator[str]:
    yield stem
    number = 0
    while True:
        number += 1
        yield f"{stem}_{number}"
