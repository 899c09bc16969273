"""`pool` averages the tokens of each sentence and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mesh.errors import EngineError, InvalidInput
from mesh.tensor import Array, check_tensors
from postprocess_svc.ops.pool import Pool

POOL = Pool()


def pool(hidden: Array, counts: list[int], op: Pool = POOL) -> NDArray[np.float32]:
    tensors = {"last_hidden_state": hidden}
    check_tensors(tensors, op.inputs)
    outcome = op(tensors, {"token_count": np.array(counts, np.int32)})
    check_tensors(outcome.tensors, op.outputs)
    return outcome.tensors["embedding"].astype(np.float32)


def sentences(*rows: list[list[float]]) -> NDArray[np.float32]:
    return np.array(rows, np.float32)


@given(
    hnp.arrays(np.float32, (3, 5, 4), elements=st.floats(-100, 100, width=32)),
    st.lists(st.integers(0, 5), min_size=3, max_size=3),
)
def test_equals_the_masked_mean(hidden: NDArray[np.float32], counts: list[int]) -> None:
    mask = np.arange(5) < np.array(counts)[:, None]
    total = (hidden.astype(np.float64) * mask[:, :, None]).sum(axis=1)
    mean = total / np.maximum(mask.sum(axis=1, keepdims=True), 1)
    pooled = pool(hidden, counts, Pool(normalize=False))
    assert pooled == pytest.approx(mean, rel=1e-6, abs=1e-37)


def test_an_embedding_has_length_1() -> None:
    assert pool(sentences([[1, 0], [5, 8]]), [2]).tolist() == [[np.float32(0.6), np.float32(0.8)]]


def test_padding_does_not_matter_whatever_it_holds() -> None:
    hidden = sentences([[3, 4], [np.nan, np.inf]], [[0, 2], [0, 4]])
    assert pool(hidden, [1, 2]) == pytest.approx(np.array([[0.6, 0.8], [0, 1]]))


@pytest.mark.parametrize("hidden", [np.zeros((1, 2, 3)), np.ones((1, 2, 3))], ids=["zeros", "ones"])
def test_a_sentence_without_tokens_gives_zeros(hidden: Array) -> None:
    assert pool(hidden.astype(np.float32), [0]).tolist() == [[0, 0, 0]]


def test_a_mean_of_zeros_stays_zeros() -> None:
    assert pool(sentences([[1, 2], [-1, -2]]), [2]).tolist() == [[0, 0]]


def test_large_numbers_do_not_overflow() -> None:
    assert pool(sentences([[3e38, 0], [3e38, 0]]), [2]).tolist() == [[1, 0]]


@pytest.mark.parametrize(
    "shape", [(0, 4, 3), (2, 0, 3)], ids=["no-sentences", "no-room-for-tokens"]
)
def test_nothing_to_pool_gives_zeros_of_the_right_shape(shape: tuple[int, ...]) -> None:
    assert pool(np.zeros(shape, np.float32), [0] * shape[0]).shape == (shape[0], 3)


@pytest.mark.parametrize("tokens", [[np.nan], [np.inf], [np.inf, -np.inf]], ids=str)
def test_a_nan_or_inf_of_the_model_is_a_bug_that_names_the_tensor(tokens: list[float]) -> None:
    with pytest.raises(EngineError, match="'last_hidden_state' has a NaN or Inf"):
        pool(sentences([[one] for one in tokens]), [len(tokens)])


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([1], r"is \[1\], wanted 2 numbers of 0..4"),
        ([1, 5], r"is \[1, 5\], wanted 2 numbers of 0..4"),
        ([1, -1], r"is \[1, -1\], wanted 2 numbers of 0..4"),
    ],
    ids=["other-batch", "more-than-the-model-saw", "below-0"],
)
def test_refuses_counts_that_do_not_fit(counts: list[int], text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        pool(np.zeros((2, 4, 3), np.float32), counts)


def test_refuses_a_context_without_counts_and_names_the_op_that_leaves_them() -> None:
    with pytest.raises(InvalidInput, match=r"'token_count' INT32.* needs preprocess op 'tokenize'"):
        Pool()({"last_hidden_state": np.zeros((1, 2, 3), np.float32)}, {})
