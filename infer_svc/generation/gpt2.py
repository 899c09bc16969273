"""GPT-2's step graph, from the weights of a Hugging Face folder."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from infer_svc.generation.cache import last_of_each_row, places, results, self_attention
from infer_svc.generation.graph import Graph, Weights
from mesh.errors import SettingsError

ACTIVATIONS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}
"""Names of GELU in configs, and which of ONNX's two it is."""


def gpt2_step(
    config: Mapping[str, Any], weights: Weights, length: int, dtype: type[np.floating[Any]]
) -> Any:
    """Return the ONNX model of a step: ids and a cache in, logits and the cache out.

    Inputs and outputs are those of `infer_svc.generation.cache`.

    Args:
        config: as `config.json`.
        weights: as `model.safetensors`.
        length: of the cache, at most `n_positions`.
        dtype: of weights and cache.

    Raises:
        SettingsError: it is no GPT-2 that this knows, or the cache is longer than its positions.
    """
    heads, width, epsilon = config["n_head"], config["n_embd"], config["layer_norm_epsilon"]
    activation = config.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise SettingsError(f"activation {activation!r} came, wanted one of {list(ACTIVATIONS)}")
    if config.get("scale_attn_by_inverse_layer_idx") or not config.get("scale_attn_weights", True):
        raise SettingsError("a GPT-2 came whose attention is scaled in another way than 1/sqrt(D)")
    if not 1 <= length <= config["n_positions"]:
        raise SettingsError(f"a cache of {length} came, wanted 1 to {config['n_positions']}")
    untied = config.get("tie_word_embeddings") is False
    graph = Graph("gpt2_step", _without_prefix(weights), dtype)
    at = places(graph, length)
    tokens = graph.op("Gather", graph.weight("wte.weight"), at.ids, axis=0)
    value = graph.op(
        "Add", tokens, graph.op("Gather", graph.weight("wpe.weight"), at.positions, axis=0)
    )
    for layer in range(config["n_layer"]):
        name = f"h.{layer}"
        query, key, new = _projected(graph, graph.layer_norm(value, f"{name}.ln_1", epsilon), name)
        found = self_attention(graph, layer, at, query, key, new, heads, width // heads)
        value = graph.op("Add", value, _conv(graph, found, f"{name}.attn.c_proj"))
        wide = _conv(graph, graph.layer_norm(value, f"{name}.ln_2", epsilon), f"{name}.mlp.c_fc")
        wide = graph.op("Gelu", wide, approximate=ACTIVATIONS[activation])
        value = graph.op("Add", value, _conv(graph, wide, f"{name}.mlp.c_proj"))
    last = graph.layer_norm(last_of_each_row(graph, value, at), "ln_f", epsilon)
    table = graph.weight("lm_head.weight" if untied else "wte.weight")
    results(graph, last, table, config["vocab_size"])
    return graph.model()


def _without_prefix(weights: Weights) -> Weights:
    return {name.removeprefix("transformer."): array for name, array in weights.items()}


def _conv(graph: Graph, value: str, name: str) -> str:
    """Return value · W + b: GPT-2's "Conv1D" has its matrix the other way round than a Linear."""
    product = graph.op("MatMul", value, graph.weight(f"{name}.weight"))
    return graph.op("Add", product, graph.weight(f"{name}.bias"))


def _projected(graph: Graph, value: str, name: str) -> tuple[str, str, str]:
    """Return query, key and value [B, Q, H · D], which are one matrix."""
    whole = _conv(graph, value, f"{name}.attn.c_attn")
    thirds = [graph.constant([third]) for third in range(3)]
    split = graph.op("Reshape", whole, graph.constant([0, 0, 3, -1]))
    query, key, new = (
        graph.op("Squeeze", graph.op("Gather", split, third, axis=2), graph.constant([2]))
        for third in thirds
    )
    return query, key, new
