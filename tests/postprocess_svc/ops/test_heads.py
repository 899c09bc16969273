"""Heads are read as their models write them; rows that are no numbers are left out."""

import numpy as np
import pytest
from numpy.typing import NDArray

from postprocess_svc.ops.heads import DECODERS, Candidates, HeadName, input_shape

HEADS: list[HeadName] = ["yolov5", "yolov8"]


def decode(head: HeadName, *rows: list[float], threshold: float = 0.25) -> Candidates:
    """Decode rows of cx, cy, w, h, class scores; yolov5 gets objectness 1."""
    image = np.array(rows, np.float32)
    if head == "yolov5":
        return DECODERS[head](np.insert(image, 4, 1, axis=1), threshold)
    return DECODERS[head](np.ascontiguousarray(image.T), threshold)


def with_bits(bits: int) -> NDArray[np.float32]:
    return np.array([bits], np.uint32).view(np.float32)


@pytest.mark.parametrize(
    ("head", "shape"), [("yolov5", (-1, -1, 85)), ("yolov8", (-1, 84, -1))], ids=HEADS
)
def test_shape_of_80_classes(head: HeadName, shape: tuple[int, ...]) -> None:
    assert input_shape(head, 80) == shape


@pytest.mark.parametrize("head", HEADS)
def test_center_and_size_become_corners(head: HeadName) -> None:
    found = decode(head, [50, 40, 20, 10, 0.1, 0.75])
    assert found.boxes.tolist() == [[40, 35, 60, 45]]
    assert found.scores.tolist() == [0.75]
    assert found.classes.tolist() == [1]


def test_yolov5_multiplies_objectness_and_class_score() -> None:
    image = np.array([[0, 0, 2, 2, 0.5, 0.25, 0.75]], np.float32)
    assert DECODERS["yolov5"](image, 0.25).scores.tolist() == [0.375]
    assert DECODERS["yolov5"](image, 0.375).scores.tolist() == []


@pytest.mark.parametrize("head", HEADS)
def test_a_score_equal_to_the_threshold_is_no_candidate(head: HeadName) -> None:
    found = decode(head, [1, 1, 2, 2, 0.5], [2, 2, 2, 2, 0.500001], threshold=0.5)
    assert found.boxes[:, 0].tolist() == [1]


@pytest.mark.parametrize("head", HEADS)
def test_of_equal_class_scores_the_lower_class_is_best(head: HeadName) -> None:
    assert decode(head, [1, 1, 2, 2, 0.3, 0.6, 0.6]).classes.tolist() == [1]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("column", range(6), ids=["cx", "cy", "w", "h", "best", "other"])
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7F800000, 0xFF800000],
                         ids=["nan", "signalling-nan", "inf", "minus-inf"])  # fmt: skip
def test_a_row_with_a_nan_or_inf_is_no_candidate(head: HeadName, column: int, bits: int) -> None:
    rows = np.array([[1, 1, 2, 2, 0.9, 0.1], [5, 5, 2, 2, 0.8, 0.1]], np.float32)
    rows[0, column : column + 1] = with_bits(bits)
    image = np.insert(rows, 4, 1, axis=1) if head == "yolov5" else rows.T
    assert DECODERS[head](image, 0.25).scores.tolist() == [np.float32(0.8)]


@pytest.mark.parametrize("objectness", [np.nan, np.inf, -np.inf], ids=str)
def test_an_objectness_of_nan_or_inf_is_no_candidate(objectness: float) -> None:
    image = np.array([[1, 1, 2, 2, objectness, 0]], np.float32)
    assert not len(DECODERS["yolov5"](image, 0.25).scores)


def test_a_score_that_overflows_is_no_candidate() -> None:
    image = np.array([[1, 1, 2, 2, 3e38, 3e38]], np.float32)
    assert not len(DECODERS["yolov5"](image, 0.25).scores)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "box",
    [[1, 1, -2, 2], [1, 1, 2, -2], [3e38, 1, 3e38, 2]],
    ids=["width-below-0", "height-below-0", "corner-past-fp32"],
)
def test_a_box_that_is_none_is_no_candidate(head: HeadName, box: list[float]) -> None:
    assert not len(decode(head, [*box, 0.9]).scores)


@pytest.mark.parametrize("head", HEADS)
def test_a_small_box_far_out_keeps_its_size(head: HeadName) -> None:
    x1, _, x2, _ = decode(head, [2**24, 2**24, 0.5, 0.5, 0.9]).boxes[0]
    assert x2 - x1 == 0.5


@pytest.mark.parametrize("head", HEADS)
def test_no_rows_give_no_candidates(head: HeadName) -> None:
    image = np.zeros((0, 7) if head == "yolov5" else (6, 0), np.float32)
    assert DECODERS[head](image, 0.25).boxes.shape == (0, 4)
