"""Where the tokens of a step are, and what they see of the cache."""

from collections.abc import Sequence

import numpy as np
import pytest

from infer_svc.generation.cache import last_of_each_row, places, self_attention
from infer_svc.generation.graph import Graph
from tests.infer_svc.generation.networks import Tensors, run

LENGTH = 6


def found(start: Sequence[int], tokens: int, count: Sequence[int]) -> Tensors:
    """Run a step that returns places, and attends with keys of 0: to all that it sees alike."""
    graph, rows = Graph("g", {}, np.float32), len(start)
    at = places(graph, LENGTH)
    graph.output("positions", np.int64, ["rows", "tokens"], "Identity", at.positions)
    value = graph.input("x", np.float32, ["rows", "tokens", 4])
    zeros = graph.op("Sub", value, value)
    seen = self_attention(graph, 0, at, zeros, zeros, value, 1, 4)
    graph.output("seen", np.float32, ["rows", "tokens", 4], "Identity", seen)
    last = last_of_each_row(graph, seen, at)
    graph.output("last", np.float32, ["rows", 4], "Identity", last)
    cache = np.zeros((rows, 1, LENGTH, 4), np.float32)
    x = np.arange(1, tokens + 1, dtype=np.float32)[None, :, None] * np.ones(
        (rows, 1, 4), np.float32
    )
    return run(graph.model(), {
        "ids": np.zeros((rows, tokens), np.int64), "start": np.array(start),
        "x": x.astype(np.float32),
        "count": np.array(count), "k_0": cache, "v_0": cache + 100,
    })  # fmt: skip


def test_each_row_writes_at_its_own_place_and_sees_what_is_before() -> None:
    step = found([0, 3], 2, [1, 2])
    assert step["positions"].tolist() == [[0, 1], [3, 4]]
    assert step["v_0_out"][:, 0, :, 0].tolist() == [
        [1, 2, 100, 100, 100, 100], [100, 100, 100, 1, 2, 100],
    ]  # fmt: skip
    np.testing.assert_allclose(step["seen"][:, :, 0], [[1, 1.5], [301 / 4, 303 / 5]], rtol=1e-5)
    np.testing.assert_allclose(step["last"][:, 0], [1, 303 / 5], rtol=1e-5)


@pytest.mark.parametrize("start", [5, 6, 10**9])
def test_no_token_is_written_beyond_the_cache(start: int) -> None:
    step = found([start, 0], 2, [2, 2])
    assert step["positions"].tolist() == [[4, 5], [0, 1]]
    assert step["v_0_out"][0, 0, :, 0].tolist() == [100, 100, 100, 100, 1, 2]
