"""A known answer tells lanes that are wrong or late from those that are well."""

import time

import numpy as np
import pytest

from infer_svc import golden
from infer_svc.golden import Golden, difference
from mesh.tensor import Tensors, bytes_tensor


def answer(factor: float = 1.0, seconds: float = 0.0) -> golden.Answer:
    def run(inputs: Tensors) -> Tensors:
        time.sleep(seconds)
        return {"y": inputs["x"].astype(np.float32) * np.float32(factor)}

    return run


@pytest.fixture
def known() -> Golden:
    return Golden.record({"x": np.arange(1, 9, dtype=np.float32)}, answer())


@pytest.mark.parametrize("factor", [1.0, 1.001, 0.99])
def test_same_answer_but_for_rounding_is_well(known: Golden, factor: float) -> None:
    assert known.compare(answer(factor)) == ""


@pytest.mark.parametrize("factor", [1.1, 0.0, -1.0, float("nan"), float("inf")])
def test_other_answer_is_wrong_and_says_how_much(known: Golden, factor: float) -> None:
    assert known.compare(answer(factor)).startswith("output 'y' of a known batch is off by")


def test_late_answer_is_wrong(known: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "LATE_S", 0.02)
    monkeypatch.setattr(golden, "LATE_FACTOR", 0.0)
    assert known.compare(answer(seconds=0.03)) == "a known batch took 0.0 s, at most 0.0 is normal"


def test_answer_that_was_not_a_number_when_it_was_new_may_stay_so() -> None:
    known = Golden.record({"x": np.ones(3)}, answer(float("nan")))
    assert known.compare(answer(float("nan"))) == ""
    assert known.compare(answer()) != ""


@pytest.mark.parametrize(
    ("array", "known", "wanted"),
    [
        (bytes_tensor(b"a"), bytes_tensor(b"a"), 0.0),
        (bytes_tensor(b"a"), bytes_tensor(b"b"), 1.0),
        (np.zeros(3), np.zeros(2), 1.0),
        (np.zeros(3), np.zeros(3), 0.0),
        (np.array([3, 4]), np.array([3, 4]), 0.0),
        (np.array([0.0, 4.0]), np.array([3.0, 4.0]), 0.6),
        (np.array([-np.inf, 0.0, 4.0]), np.array([-np.inf, 3.0, 4.0]), 0.6),
        (np.array([np.nan, 4.0]), np.array([np.nan, 4.0001]), 0.0),
        (np.array([np.inf, 4.0]), np.array([-np.inf, 4.0]), 1.0),
    ],
    ids=[
        "text",
        "other-text",
        "other-shape",
        "zeros",
        "numbers",
        "distance",
        "infinite",
        "none",
        "other-sign",
    ],
)
def test_difference_is_the_relative_distance(
    array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]",
    known: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]",
    wanted: float,
) -> None:
    assert difference(array, known) == pytest.approx(wanted, abs=1e-4)
