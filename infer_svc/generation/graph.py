"""A transformer's ONNX graph, written node by node from its weights."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer_svc.build.graph import package
from mesh.errors import SettingsError

OPSET = 24
"""The first with TensorScatter, which writes new keys and values into a cache in place."""
IR_VERSION = 11
"""As old as there is for that opset: every reader takes it."""

Shape = list[int | str]
"""Sizes; one that has a name is dynamic."""
Weights = Mapping[str, NDArray[Any]]
"""As a safetensors file has them."""


class Graph:
    """Collects nodes and weights; a value is known by its name.

    Args:
        name: of the graph.
        weights: of the network; matrices and vectors are kept in `dtype`.
        dtype: of all that is not an index: FP32 or FP16.
    """

    def __init__(self, name: str, weights: Weights, dtype: type[np.floating[Any]]) -> None:
        self.dtype = np.dtype(dtype)
        self._onnx = package()
        self._name = name
        self._weights = weights
        self._kept: dict[str, Any] = {}
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._count = Counter[str]()

    def input(self, name: str, dtype: Any, shape: Shape) -> str:
        """Declare an input."""
        self._inputs.append(self._declared(name, dtype, shape))
        return name

    def output(
        self,
        name: str,
        dtype: Any,
        shape: Shape,
        kind: str,
        *inputs: str,
        **attributes: Any,
    ) -> str:
        """Add a node whose output is one of the graph's, and return that; else as `op`."""
        self._outputs.append(self._declared(name, dtype, shape))
        self._add(kind, list(inputs), name, **attributes)
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output, and return that."""
        made = self._new(kind)
        self._add(kind, list(inputs), made, **attributes)
        return made

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """Return a value that is known now."""
        return self._keep(self._new("constant"), np.asarray(value, dtype))

    def weight(self, name: str, *, transpose: bool = False) -> str:
        """Return a tensor of the network.

        Raises:
            SettingsError: the network has none of that name.
        """
        key = f"{name}.T" if transpose else name
        if key in self._kept:
            return key
        if name not in self._weights:
            raise SettingsError(
                f"weight {name!r} is missing; there are {len(self._weights)} others"
            )
        array = self._weights[name].astype(self.dtype)
        return self._keep(key, np.ascontiguousarray(array.T) if transpose else array)

    def model(self) -> Any:
        """Return the whole as an ONNX model.

        Raises:
            SettingsError: the package onnx is not installed.
        """
        helper = self._onnx.helper
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, list(self._kept.values())
        )
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    def linear(self, value: str, name: str) -> str:
        """Return value · Wᵀ + b of a Linear layer."""
        product = self.op("MatMul", value, self.weight(f"{name}.weight", transpose=True))
        return self.op("Add", product, self.weight(f"{name}.bias"))

    def layer_norm(self, value: str, name: str, epsilon: float) -> str:
        """Return a LayerNorm over the last axis."""
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.op("LayerNormalization", value, scale, bias, axis=-1, epsilon=epsilon)

    def heads(self, value: str, count: int) -> str:
        """Split [B, Q, count · D] into [B, count, Q, D]."""
        split = self.op("Reshape", value, self.constant([0, 0, count, -1]))
        return self.op("Transpose", split, perm=[0, 2, 1, 3])

    def joined(self, value: str) -> str:
        """Undo `heads`."""
        return self.op(
            "Reshape", self.op("Transpose", value, perm=[0, 2, 1, 3]), self.constant([0, 0, -1])
        )

    def for_each_token(self, mask: str, tokens: str) -> str:
        """Repeat a mask [B, 1, 1, K] for so many queries: ONNX Runtime does not by itself.

        Args:
            mask: BOOL.
            tokens: a number, INT64.
        """
        one = self.constant([1])
        count = self.op("Unsqueeze", tokens, self.constant([0]))
        shape = self.op("Concat", one, one, count, one, axis=0)
        return self.op("Expand", mask, shape)

    def _declared(self, name: str, dtype: Any, shape: Shape) -> Any:
        helper = self._onnx.helper
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, kind, shape)

    def _keep(self, name: str, array: NDArray[Any]) -> str:
        self._kept[name] = self._onnx.numpy_helper.from_array(array, name)
        return name

    def _new(self, kind: str) -> str:
        self._count[kind] += 1
        return f"{kind}_{self._count[kind]}"

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        node = self._onnx.helper.make_node(kind, inputs, [output], output, **attributes)
        self._nodes.append(node)
