"""FP16: a model whose floats are halves, between inputs and outputs that stay as they are."""

import warnings
from collections.abc import Collection
from typing import Any

from infer_svc.build import graph

_NARROWED, _ENTERING = "_cast_to_fp16_node", "graph_input_cast"
"""How ONNX Runtime's converter names a cast behind a node that it left in FP32 (at the end), and
one behind an input (at the start)."""


def halved(model: Any, keep: Collection[str]) -> Any:
    """Return a model that computes in FP16. Its inputs and outputs keep their types.

    Weights beyond 65504 become 65504. INT8 quantization in it keeps its scales in FP32.

    Args:
        model: in FP32; not changed.
        keep: names of nodes that stay in FP32; no FP16 is passed between two of them, nor between
            one and an input or output.

    Raises:
        SettingsError: onnx is not installed.
        EngineError: the model cannot be converted.
    """
    converter = graph.package("onnxruntime.transformers.float16")
    blocked = [*converter.DEFAULT_OP_BLOCK_LIST, "QuantizeLinear", "DequantizeLinear"]
    with warnings.catch_warnings(), graph.foreign("the conversion to FP16"):
        warnings.simplefilter("ignore")  # one for each weight that becomes 65504 or tiny
        made = converter.convert_float_to_float16(
            model, keep_io_types=True, op_block_list=blocked, node_block_list=list(keep)
        )
    _join(made)
    graph.sort(made)
    return made


def _join(model: Any) -> None:
    """Pass FP32 between two nodes in FP32, where the converter put FP16 and two casts."""
    onnx = graph.package()
    narrowed = {
        node.output[0]: node
        for node in model.graph.node
        if node.name.endswith(_NARROWED) or node.name.startswith(_ENTERING)
    }
    for node in model.graph.node:
        widens = node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT
        if widens and node.input[0] in narrowed:
            node.op_type = "Identity"
            node.input[0] = narrowed[node.input[0]].input[0]
            del node.attribute[:]
    used = {name for node in model.graph.node for name in graph.reads(node)}
    used |= {output.name for output in model.graph.output}
    for name, node in narrowed.items():
        if name not in used:
            model.graph.node.remove(node)
    _rename(model, {node.input[0]: name for name, node in narrowed.items()})


def _rename(model: Any, wide: dict[str, str]) -> None:
    """Give what nodes in FP32 make the names that it had; its FP16 copies are `…__half`.

    Args:
        model: is changed.
        wide: tensors in FP32 and the names that they are to have.
    """
    fixed = {output.name for output in model.graph.output} | {
        name for node in model.graph.node for name in {*graph.reads(node)} - {*node.input}
    }
    names: dict[str, str] = {}
    inputs = {given.name for given in model.graph.input}
    for now, wanted in wide.items():
        if wanted not in fixed and now not in inputs:
            names |= {now: wanted, wanted: f"{wanted}__half"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in [value for value in model.graph.value_info if value.name in names]:
        model.graph.value_info.remove(value)
