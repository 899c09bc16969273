"""A converted model as a GPU runs it, for the CPU.

ONNX Runtime has no FP16 kernels for most operators on a CPU. It computes in FP32 there and drops
the rounding between two such operators, so a model that overflows on a GPU looks perfect. Casts
that stand in the file are not dropped: here they stand after each operator.
"""

import copy
from typing import Any

from infer_svc.build import graph


def rehearsed(model: Any) -> Any:
    """Return a model in which every FP16 value is rounded, and computed from in FP32.

    Tensors keep their names and types. Nodes with inner graphs are left as they are.

    Args:
        model: any; not changed.
    """
    half = graph.package().TensorProto.FLOAT16
    made = copy.deepcopy(model)
    halves = {name for name, kind in graph.types(made).items() if kind == half}
    wide: dict[str, str] = {}
    nodes: list[Any] = []
    for node in made.graph.node:
        if _computes(node) and halves & {*node.input, *node.output}:
            nodes += _widened(node, halves, wide)
        else:
            nodes.append(node)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    del made.graph.value_info[:]
    return made


def _computes(node: Any) -> bool:
    inner = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
    return not inner and node.op_type not in ("Cast", "Constant", "ConstantOfShape")


def _widened(node: Any, halves: set[str], wide: dict[str, str]) -> list[Any]:
    """Return a node between casts from FP16 and to FP16.

    Args:
        node: is changed.
        halves: names of tensors in FP16.
        wide: names of their FP32 copies; those made here are added.
    """
    onnx = graph.package()
    make, kinds = onnx.helper.make_node, onnx.TensorProto
    before, after = [], []
    for index, name in enumerate(node.input):
        if name in halves:
            if name not in wide:
                wide[name] = f"{name}__wide"
                cast = make("Cast", [name], [wide[name]], name=f"{name}__widen", to=kinds.FLOAT)
                before.append(cast)
            node.input[index] = wide[name]
    for index, name in enumerate(node.output):
        if name in halves:
            exact = node.output[index] = f"{name}__exact"
            cast = make("Cast", [exact], [name], name=f"{name}__round", to=kinds.FLOAT16)
            after.append(cast)
    return [*before, node, *after]
