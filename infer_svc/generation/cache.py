"""The part of a step graph that all decoders share: where tokens are, and the cache they fill.

Rows are generations. Each row has its own place in the cache, so that one step runs generations of
any age: the ids of a row are the next ones of its text, one when it is generated, several when it
begins or goes on from a text that is known.
"""

from dataclasses import dataclass

import numpy as np

from infer_svc.generation.graph import Graph, Shape

ROWS, TOKENS = "rows", "tokens"


@dataclass(frozen=True)
class Places:
    """Values about the tokens of a step."""

    ids: str
    """INT64[B, Q]."""
    start: str
    """INT64[B], where the first id of each row goes in the cache; at most S - Q."""
    positions: str
    """INT64[B, Q], of each id in its text."""
    mask: str
    """BOOL[B, 1, Q, S], which keys of the cache a token sees."""
    count: str
    """INT64[B], how many ids of a row are there; the others fill it up."""
    tokens: str
    """INT64, Q."""
    length: int
    """S, the tokens that the cache holds."""


def places(graph: Graph, length: int) -> Places:
    """Declare the inputs of a step: ids INT64[B, Q], start INT64[B], count INT64[B].

    Args:
        graph: of the decoder.
        length: of the cache.
    """
    ids = graph.input("ids", np.int64, [ROWS, TOKENS])
    given = graph.input("start", np.int64, [ROWS])
    count = graph.input("count", np.int64, [ROWS])
    tokens = graph.op("Gather", graph.op("Shape", ids), graph.constant(1), axis=0)
    # A write beyond the cache would be one beyond its memory on a GPU, which ends the process.
    start = graph.op("Min", given, graph.op("Sub", graph.constant(length), tokens))
    steps = graph.op("Range", graph.constant(0), tokens, graph.constant(1))
    positions = graph.op("Add", graph.op("Unsqueeze", start, graph.constant([1])), steps)
    keys = graph.constant(np.arange(length).reshape(1, 1, 1, length))
    mask = graph.op("LessOrEqual", keys, graph.op("Unsqueeze", positions, graph.constant([1, 3])))
    return Places(ids, start, positions, mask, count, tokens, length)


def self_attention(
    graph: Graph,
    layer: int,
    places: Places,
    query: str,
    key: str,
    value: str,
    heads: int,
    size: int,
) -> str:
    """Write keys and values into the layer's cache, and attend to what is there by now.

    The cache is `k_<layer>` and `v_<layer>` [B, H, S, D], given and returned.

    Args:
        graph: of the decoder.
        layer: number.
        places: of the step.
        query: [B, Q, H · D]; key and value too.
        key: see query.
        value: see query.
        heads: H.
        size: D.

    Returns:
        [B, Q, H · D].
    """
    shape: Shape = [ROWS, heads, places.length, size]
    caches = [
        written(graph, f"{name}_{layer}", shape, graph.heads(new, heads), places.start)
        for name, new in (("k", key), ("v", value))
    ]
    found = graph.op("Attention", graph.heads(query, heads), *caches, places.mask)
    return graph.joined(found)


def written(graph: Graph, name: str, shape: Shape, new: str, start: str) -> str:
    """Declare a cache as input and, `<name>_out`, as output with new values; return the latter.

    Both may be given the same memory: nothing is copied then.

    Args:
        graph: that has it.
        name: of the input.
        shape: [B, H, S, D].
        new: [B, H, Q, D].
        start: INT64[B], where new values go along S.
    """
    old = graph.input(name, graph.dtype, shape)
    return graph.output(
        f"{name}_out", graph.dtype, shape, "TensorScatter", old, new, start, axis=2, mode="linear"
    )


def results(graph: Graph, last: str, table: str, vocabulary: int, *bias: str) -> None:
    """Declare the outputs of a step: `logits` [B, V], `best` INT64[B] and its logit `top` [B].

    Args:
        graph: of the decoder.
        last: [B, E] of the last id of each row.
        table: [V, E], the embeddings of all tokens.
        vocabulary: V.
        bias: [V], or nothing.
    """
    shape: Shape = [ROWS, vocabulary]
    logits = graph.output("logits", graph.dtype, shape, "Gemm", last, table, *bias, transB=1)
    graph.output("best", np.int64, [ROWS], "ArgMax", logits, axis=-1, keepdims=0)
    last_axis = graph.constant([-1])
    graph.output("top", graph.dtype, [ROWS], "ReduceMax", logits, last_axis, keepdims=0)


def last_of_each_row(graph: Graph, value: str, places: Places) -> str:
    """Return [B, E] of [B, Q, E]: what belongs to the last id of each row."""
    index = graph.op("Sub", places.count, graph.constant(1))
    index = graph.op("Unsqueeze", index, graph.constant([1]))
    return graph.op("GatherND", value, index, batch_dims=1)
