"""Step graphs for TensorRT before 10.15, which knows neither TensorScatter nor Attention.

What takes their place gives the same numbers, but caches are copied as a whole: a run returns them
beside those that it was given.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from infer_svc.build import graph
from mesh.errors import SettingsError

OPSET, IR_VERSION = 20, 9
"""What a reader of 2024 takes; all other nodes of a step mean the same in it."""
KINDS = ("TensorScatter", "Attention")


def copied(model: Any) -> Any:
    """Return a model without the nodes of opset 24 that `infer_svc.generation.graph` writes.

    Args:
        model: with TensorScatter along axis 2 of caches [B, H, S, D], and Attention of queries
            [B, H, Q, D], keys and values [B, H, K, D] and a mask; not changed.

    Raises:
        SettingsError: one has an attribute or input that this does not know, or onnx is missing.
    """
    onnx = graph.package()
    made = onnx.ModelProto()
    made.CopyFrom(model)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in made.graph.input
    }
    replaced = _Replaced(onnx, made.graph)
    nodes = list(made.graph.node)
    del made.graph.node[:]
    for node in nodes:
        if node.op_type == "TensorScatter":
            replaced.scatter(node, shapes.get(node.input[0], []))
        elif node.op_type == "Attention":
            replaced.attention(node)
        else:
            made.graph.node.append(node)
    del made.opset_import[:]
    made.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    made.ir_version = IR_VERSION
    return made


class _Replaced:
    """Adds what takes the place of a node to a graph."""

    def __init__(self, onnx: Any, target: Any) -> None:
        self._onnx, self._target = onnx, target
        self._prefix = ""
        self._count = 0
        self._dtypes = {tensor.name: tensor.data_type for tensor in target.initializer}
        self._dtypes |= {
            value.name: value.type.tensor_type.elem_type
            for value in (*target.input, *target.output)
        }

    def scatter(self, node: Any, shape: list[int]) -> None:
        """Choose between old and new values at each place of the cache."""
        attributes = {a.name: self._onnx.helper.get_attribute_value(a) for a in node.attribute}
        if attributes != {"axis": 2, "mode": b"linear"} or len(shape) != 4 or len(node.input) != 3:
            raise SettingsError(f"TensorScatter {attributes} of {shape} came, wanted axis 2 of 4")
        op = self._begin(node)
        cache, new, start = node.input
        places = self._constant(np.arange(shape[2]).reshape(1, 1, -1, 1))
        begin = op("Unsqueeze", start, self._constant([1, 2, 3]))
        offset = op("Sub", places, begin)  # [B, 1, S, 1], of each place in what is new
        count = op("Gather", op("Shape", new), self._constant([2]))
        zero = self._constant([0])
        known = op("And", op("GreaterOrEqual", offset, zero), op("Less", offset, count))
        last = op("Sub", count, self._constant([1]))
        index = op("Max", op("Min", offset, last), zero)
        index = op("Expand", index, op("Shape", cache))
        op("Where", known, op("GatherElements", new, index, axis=2), cache, output=node.output[0])

    def attention(self, node: Any) -> None:
        """Softmax(query · keyᵀ / √D, where the mask lets through) · value."""
        if node.attribute or len(node.input) != 4:
            raise SettingsError(f"Attention {node.attribute} came, wanted no attributes and a mask")
        op = self._begin(node)
        query, key, value, mask = node.input
        dtype = self._dtype(key, value)
        size = op("Gather", op("Shape", query), self._constant([3]))
        root = op("Sqrt", op("Cast", size, to=self._onnx.TensorProto.FLOAT))
        scaled = op("Div", query, op("Cast", root, to=dtype))
        scores = op("MatMul", scaled, op("Transpose", key, perm=[0, 1, 3, 2]))
        least = np.finfo(self._onnx.helper.tensor_dtype_to_np_dtype(dtype)).min
        hidden = self._constant(least)
        weights = op("Softmax", op("Where", mask, scores, hidden), axis=-1)
        op("MatMul", weights, value, output=node.output[0])

    def _dtype(self, *names: str) -> int:
        """Return the element type of all floats: strongly typed graphs have one."""
        known = [self._dtypes[name] for name in names if name in self._dtypes]
        floats = {self._onnx.TensorProto.FLOAT, self._onnx.TensorProto.FLOAT16}
        return int(next(kind for kind in (*known, *self._dtypes.values()) if kind in floats))

    def _begin(self, node: Any) -> Callable[..., str]:
        self._prefix = node.output[0]

        def op(kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
            output = output or self._name()
            made = self._onnx.helper.make_node(kind, inputs, [output], output, **attributes)
            self._target.node.append(made)
            return output

        return op

    def _constant(self, value: Any) -> str:
        array = np.asarray(value)
        tensor = self._onnx.numpy_helper.from_array(array, self._name())
        self._target.initializer.append(tensor)
        return str(tensor.name)

    def _name(self) -> str:
        self._count += 1
        return f"{self._prefix}/{self._count}"
