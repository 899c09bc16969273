"""Suppression keeps what a plain reference and OpenCV keep, in their order."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from postprocess_svc.ops.suppress import overlaps, suppress

Boxes = NDArray[np.float64]


def reference(boxes: Boxes, groups: list[int], threshold: float, limit: int) -> list[int]:
    kept: list[int] = []
    for index, box in enumerate(boxes):
        rivals = [one for one in kept if groups[one] == groups[index]]
        if all(iou(box, boxes[one]) <= np.float32(threshold) for one in rivals):
            kept.append(index)
    return kept[:limit]


def iou(one: Boxes, other: Boxes) -> np.float32:
    width = max(min(one[2], other[2]) - max(one[0], other[0]), 0.0)
    height = max(min(one[3], other[3]) - max(one[1], other[1]), 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    if sum(areas) <= np.finfo(np.float64).eps:
        return np.float32(1)
    return np.float32(1) - np.float32(1 - width * height / (sum(areas) - width * height))


def opencv(boxes: Boxes, groups: NDArray[np.intp], threshold: float) -> list[int]:
    """Run OpenCV group by group; all scores are equal, so its order is that of the rows."""
    kept: list[int] = []
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        found = cv2.dnn.NMSBoxes(xywh(boxes[rows]).tolist(), [1.0] * len(rows), 0.5, threshold)
        kept += rows[np.asarray(found, int)].tolist()
    return sorted(kept)


def xywh(boxes: Boxes) -> Boxes:
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])


coordinates = st.integers(0, 12).map(float) | st.floats(-20, 20, width=32)
corners = st.tuples(coordinates, coordinates, coordinates, coordinates).map(
    lambda one: [min(one[0], one[2]), min(one[1], one[3]), max(one[0], one[2]), max(one[1], one[3])]
)
grouped_boxes = st.lists(st.tuples(corners, st.integers(0, 2)), max_size=30)
thresholds = st.sampled_from([0.0, 0.25, 0.45, 0.5, 1.0]) | st.floats(0, 1)


def crowd(count: int, seed: int) -> Boxes:
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 200, (count, 2))
    return np.hstack([start, start + rng.integers(0, 30, (count, 2))]).astype(np.float64)


@given(grouped_boxes, thresholds, st.integers(1, 40))
def test_keeps_what_the_plain_reference_keeps(
    rows: list[tuple[list[float], int]], threshold: float, limit: int
) -> None:
    boxes = np.array([box for box, _ in rows], np.float64).reshape(-1, 4)
    groups = [group for _, group in rows]
    kept = suppress(boxes, np.array(groups, np.intp), threshold, limit)
    assert kept.tolist() == reference(boxes, groups, threshold, limit)


@given(grouped_boxes, thresholds)
def test_keeps_what_opencv_keeps(rows: list[tuple[list[float], int]], threshold: float) -> None:
    boxes = np.array([box for box, _ in rows], np.float64).reshape(-1, 4)
    groups = np.array([group for _, group in rows], np.intp)
    assert suppress(boxes, groups, threshold, 30).tolist() == opencv(boxes, groups, threshold)


@pytest.mark.parametrize("count", [127, 128, 129, 600], ids=lambda n: f"{n}-boxes")
@pytest.mark.parametrize("groups", [1, 7], ids=lambda n: f"{n}-groups")
def test_blocks_change_nothing(count: int, groups: int) -> None:
    boxes, of = crowd(count, seed=count), np.arange(count) % groups
    assert suppress(boxes, of, 0.45, count).tolist() == opencv(boxes, of, 0.45)


@pytest.mark.parametrize("limit", [1, 127, 128, 129, 200], ids=lambda n: f"limit-{n}")
def test_the_limit_cuts_the_worst_boxes_off(limit: int) -> None:
    boxes, of = crowd(2000, seed=1), np.zeros(2000, np.intp)
    assert suppress(boxes, of, 0.45, limit).tolist() == opencv(boxes, of, 0.45)[:limit]


@pytest.mark.parametrize(
    ("threshold", "kept"),
    [(0.4, [0]), (0.45, [0, 1]), (0.5, [0, 1])],
    ids=["below", "equal", "above"],
)
def test_an_overlap_equal_to_the_threshold_stays(threshold: float, kept: list[int]) -> None:
    boxes = np.array([[0, 0, 20, 1], [0, 0, 9, 1]], np.float64)  # IoU 9/20
    assert suppress(boxes, np.zeros(2), threshold, 9).tolist() == kept


def test_groups_do_not_meet_however_far_out_the_boxes_are() -> None:
    far = 3e38
    boxes = np.array([[0, 0, 9, 9], [-far, -far, far, far], [0, 0, 9, 9]], np.float64)
    assert suppress(boxes, np.array([0, 1, 79]), 0.45, 9).tolist() == [0, 1, 2]


def test_boxes_without_area_overlap_each_other_and_nothing_else() -> None:
    boxes = np.array([[0, 0, 9, 9], [5, 5, 5, 5], [8, 1, 8, 1]], np.float64)
    assert overlaps(boxes, boxes).tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 1]]
