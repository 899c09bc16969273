"""`top_k` gives the best classes, best first, with their probabilities and names."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mesh.errors import EngineError, InvalidInput
from mesh.op import Op, make_op
from mesh.tensor import Array, Tensors, check_tensors
from postprocess_svc.ops import OPS
from postprocess_svc.ops.top_k import TopK, softmax


def make(root: Path, names: int) -> Op:
    (root / "labels.txt").write_text("".join(f"name-{index}\n" for index in range(names)))
    return make_op(OPS, "top_k", json.dumps({"k": 2, "labels": "labels.txt"}).encode(), root)


def run(op: Op, logits: Array) -> Tensors:
    check_tensors({"logits": logits}, op.inputs)
    outcome = op({"logits": logits}, {})
    check_tensors(outcome.tensors, op.outputs)
    assert not outcome.context
    return outcome.tensors


def rows(*values: list[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def reference(row: list[float], k: int) -> list[int]:
    return sorted(range(len(row)), key=lambda index: -row[index])[:k]


numbers = st.integers(-2, 2).map(float) | st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(0, 3), st.integers(1, 9)), elements=numbers),
    st.integers(1, 12),
)
def test_order_is_by_logit_and_then_by_class(logits: NDArray[np.float32], k: int) -> None:
    best = [reference(row, k) for row in logits.tolist()]
    out = run(TopK(k=k, apply_softmax=False), logits)
    assert out["classes"].tolist() == best
    assert out["scores"].tolist() == [
        [row[c] for c in order] for row, order in zip(logits.tolist(), best, strict=True)
    ]


def test_scores_are_probabilities_over_all_classes() -> None:
    out = run(TopK(k=1), np.log(rows([1, 3, 4])))
    assert out["scores"].tolist() == [[pytest.approx(0.5)]]


@pytest.mark.parametrize(
    ("logits", "wanted"),
    [
        (rows([3e38, -3e38]), [[1, 0]]),
        (rows([1000, 1000]), [[0.5, 0.5]]),
        (rows([-1000, -1000]), [[0.5, 0.5]]),
        (rows([0, -np.inf]), [[1, 0]]),
    ],
    ids=["whole-range", "large", "very-negative", "ruled-out"],
)
def test_softmax_is_stable(logits: NDArray[np.float32], wanted: list[list[float]]) -> None:
    assert softmax(logits).tolist() == wanted


def test_rank_follows_logits_where_probabilities_are_equal() -> None:
    out = run(TopK(k=3), rows([-900, -800, 0]))
    assert out["scores"].tolist() == [[1, 0, 0]]
    assert out["classes"].tolist() == [[2, 1, 0]]


def test_half_precision_is_accepted_where_it_is_declared() -> None:
    out = run(TopK(k=1, dtype="FP16"), np.array([[1, 7]], np.float16))
    assert out["classes"].tolist() == [[1]]


def test_names_follow_classes(tmp_path: Path) -> None:
    out = run(make(tmp_path, 3), rows([1, 3, 2], [9, 0, 8]))
    assert out["labels"].tolist() == [[b"name-1", b"name-2"], [b"name-0", b"name-2"]]


def test_names_are_empty_without_a_file() -> None:
    assert run(TopK(k=2), rows([1, 2, 3]))["labels"].tolist() == [[b"", b""]]


@pytest.mark.parametrize("names", [2, 4], ids=["too-few", "too-many"])
def test_refuses_another_number_of_labels_and_names_both(tmp_path: Path, names: int) -> None:
    with pytest.raises(InvalidInput, match=f"3 classes, labels file .* has {names} lines; .* 3"):
        run(make(tmp_path, names), rows([1, 2, 3]))


def test_refuses_no_classes() -> None:
    with pytest.raises(InvalidInput, match="0 classes, wanted at least 1"):
        run(TopK(), np.zeros((2, 0), np.float32))


@pytest.mark.parametrize("bad", [[np.nan, 1], [np.inf, 1], [-np.inf, -np.inf]], ids=str)
@pytest.mark.parametrize("apply_softmax", [True, False], ids=["softmax", "raw"])
def test_a_nan_of_the_model_is_a_bug_that_names_the_tensor(
    bad: list[float], apply_softmax: bool
) -> None:
    with pytest.raises(EngineError, match=r"'logits' has a NaN or .* in rows \[1\]"):
        run(TopK(apply_softmax=apply_softmax), rows([1, 2], bad))


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"k": 0}, "k: .*greater than or equal to 1"),
        ({"labels": "missing.txt"}, "labels: .*missing.txt is not there"),
        ({"labels": "broken.txt"}, "broken.txt: line 2 is empty"),
        ({"labels": "../labels.txt"}, "outside the model repository"),
        ({"dtype": "INT8"}, "dtype: "),
        ({"K": 3}, "K: "),
    ],
    ids=["k-0", "no-file", "broken-file", "file-outside", "dtype", "unknown"],
)
def test_refuses_wrong_parameters_when_made(
    tmp_path: Path, parameters: dict[str, object], text: str
) -> None:
    (tmp_path / "broken.txt").write_text("a\n\nb\n")
    with pytest.raises(InvalidInput, match=text):
        make_op(OPS, "top_k", json.dumps(parameters).encode(), tmp_path)
