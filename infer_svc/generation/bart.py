"""BART's graphs, from the weights of a Hugging Face folder: the encoder, and the decoder's step."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from infer_svc.generation.cache import (
    ROWS,
    last_of_each_row,
    places,
    results,
    self_attention,
    written,
)
from infer_svc.generation.graph import Graph, Shape, Weights
from mesh.errors import SettingsError

ACTIVATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "gelu": ("Gelu", {}), "relu": ("Relu", {}), "gelu_new": ("Gelu", {"approximate": "tanh"}),
}  # fmt: skip
"""Names in configs, and ONNX's operator."""
SHIFT = 2
"""BART's table of positions begins with two that no token has."""
EPSILON = 1e-5
"""Of every LayerNorm: BART's config does not name it."""


class Bart:
    """What both graphs are made from.

    Args:
        config: as `config.json`.
        weights: as `model.safetensors`.
        dtype: of weights, keys and values.

    Raises:
        SettingsError: it is no BART that this knows.
    """

    def __init__(
        self, config: Mapping[str, Any], weights: Weights, dtype: type[np.floating[Any]]
    ) -> None:
        activation = config.get("activation_function", "gelu")
        if activation not in ACTIVATIONS:
            raise SettingsError(f"activation {activation!r} came, wanted one of {[*ACTIVATIONS]}")
        if config.get("tie_word_embeddings") is False:
            raise SettingsError(
                "a BART came whose words have other vectors at the end, wanted tied"
            )
        self._activation = ACTIVATIONS[activation]
        self._config = config
        self._weights = _named(weights)
        self._dtype = dtype
        self._width: int = config["d_model"]
        self._heads: int = config["decoder_attention_heads"]
        self._scale = math.sqrt(self._width) if config.get("scale_embedding") else 1.0

    def encoder(self, source: int) -> Any:
        """Return the ONNX model of the encoder and of what the decoder attends to.

        Inputs `input_ids` and `attention_mask` INT64[B, N], N up to E, and `xk_<layer>` and
        `xv_<layer>` [B, H, E, D], keys and values of each layer of the decoder; outputs are the
        same with the first N written anew, and may be given the same memory.

        Args:
            source: E, at most `max_position_embeddings`.

        Raises:
            SettingsError: there are not so many positions.
        """
        most = self._config["max_position_embeddings"]
        if not 1 <= source <= most:
            raise SettingsError(f"a source of {source} came, wanted 1 to {most}")
        graph = Graph("bart_encoder", self._weights, self._dtype)
        ids = graph.input("input_ids", np.int64, [ROWS, "length"])
        given = graph.input("attention_mask", np.int64, [ROWS, "length"])
        mask = graph.op("Greater", given, graph.constant(0))
        mask = graph.op("Unsqueeze", mask, graph.constant([1, 2]))
        count = graph.op("Gather", graph.op("Shape", ids), graph.constant(1), axis=0)
        mask = graph.for_each_token(mask, count)
        positions = graph.op("Range", graph.constant(0), count, graph.constant(1))
        value = self._embedded(graph, "encoder", ids, positions)
        heads = self._config["encoder_attention_heads"]
        for layer in range(self._config["encoder_layers"]):
            name = f"encoder.layers.{layer}"
            query, key, new = (
                graph.heads(graph.linear(value, f"{name}.self_attn.{part}_proj"), heads)
                for part in "qkv"
            )
            found = graph.joined(graph.op("Attention", query, key, new, mask))
            value = self._closed(graph, value, found, f"{name}.self_attn")
            value = self._feed_forward(graph, value, name)
        rows = graph.op("Gather", graph.op("Shape", ids), graph.constant([0]), axis=0)
        begin = graph.op("Expand", graph.constant([0]), rows)
        shape: Shape = [ROWS, self._heads, source, self._width // self._heads]
        for layer in range(self._config["decoder_layers"]):
            for part in "kv":
                name = f"decoder.layers.{layer}.encoder_attn.{part}_proj"
                made = graph.heads(graph.linear(value, name), self._heads)
                written(graph, f"x{part}_{layer}", shape, made, begin)
        return graph.model()

    def step(self, length: int, source: int) -> Any:
        """Return the ONNX model of a step of the decoder.

        Inputs and outputs are those of `infer_svc.generation.cache`, and inputs `xlen` INT64[B],
        tokens of the source, `xk_<layer>` and `xv_<layer>` [B, H, E, D] as the encoder gave them.

        Args:
            length: of the cache, at most `max_position_embeddings`.
            source: E.

        Raises:
            SettingsError: there are not so many positions.
        """
        most = self._config["max_position_embeddings"]
        if not (1 <= length <= most and 1 <= source <= most):
            raise SettingsError(f"lengths {length} and {source} came, wanted 1 to {most}")
        graph = Graph("bart_step", self._weights, self._dtype)
        at = places(graph, length)
        xlen = graph.input("xlen", np.int64, [ROWS])
        columns = graph.constant(np.arange(source).reshape(1, 1, 1, source))
        mask = graph.op("Less", columns, graph.op("Unsqueeze", xlen, graph.constant([1, 2, 3])))
        mask = graph.for_each_token(mask, at.tokens)
        value = self._embedded(graph, "decoder", at.ids, at.positions)
        size = self._width // self._heads
        shape: Shape = [ROWS, self._heads, source, size]
        for layer in range(self._config["decoder_layers"]):
            name = f"decoder.layers.{layer}"
            query, key, new = (
                graph.linear(value, f"{name}.self_attn.{part}_proj") for part in "qkv"
            )
            found = self_attention(graph, layer, at, query, key, new, self._heads, size)
            value = self._closed(graph, value, found, f"{name}.self_attn")
            crossed = [graph.input(f"x{part}_{layer}", graph.dtype, shape) for part in "kv"]
            query = graph.heads(graph.linear(value, f"{name}.encoder_attn.q_proj"), self._heads)
            found = graph.joined(graph.op("Attention", query, *crossed, mask))
            value = self._closed(graph, value, found, f"{name}.encoder_attn")
            value = self._feed_forward(graph, value, name)
        last = last_of_each_row(graph, value, at)
        table, bias = graph.weight("shared.weight"), graph.weight("final_logits_bias")
        results(graph, last, table, self._config["vocab_size"], bias)
        return graph.model()

    def _embedded(self, graph: Graph, side: str, ids: str, positions: str) -> str:
        tokens = graph.op("Gather", graph.weight("shared.weight"), ids, axis=0)
        tokens = graph.op("Mul", tokens, graph.constant(self._scale, graph.dtype))
        shifted = graph.op("Add", positions, graph.constant(SHIFT))
        table = graph.weight(f"{side}.embed_positions.weight")
        whole = graph.op("Add", tokens, graph.op("Gather", table, shifted, axis=0))
        return graph.layer_norm(whole, f"{side}.layernorm_embedding", EPSILON)

    def _closed(self, graph: Graph, value: str, found: str, name: str) -> str:
        """Return LayerNorm(value + projection of what an attention found)."""
        whole = graph.op("Add", value, graph.linear(found, f"{name}.out_proj"))
        return graph.layer_norm(whole, f"{name}_layer_norm", EPSILON)

    def _feed_forward(self, graph: Graph, value: str, name: str) -> str:
        operator, attributes = self._activation
        wide = graph.op(operator, graph.linear(value, f"{name}.fc1"), **attributes)
        whole = graph.op("Add", value, graph.linear(wide, f"{name}.fc2"))
        return graph.layer_norm(whole, f"{name}.final_layer_norm", EPSILON)


def _named(weights: Weights) -> dict[str, Any]:
    """Return weights without the prefix that some files have."""
    return {name.removeprefix("model."): array for name, array in weights.items()}
