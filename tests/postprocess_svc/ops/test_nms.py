"""`nms` gives the detections that a plain reference and OpenCV give, in picture pixels."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mesh.errors import InvalidInput
from mesh.op import make_op
from mesh.tensor import Array, Tensors, check_tensors
from postprocess_svc.ops import OPS
from postprocess_svc.ops.heads import HeadName
from postprocess_svc.ops.nms import Nms

HEADS: list[HeadName] = ["yolov5", "yolov8"]
CLASSES = 3

Rows = NDArray[np.float32]
"""FP32[N, 4 + C]: cx, cy, w, h, class scores; what both heads are made from here."""
Detection = tuple[float, float, float, float, float, int]


def predictions(head: HeadName, *images: Rows) -> Rows:
    """Return what a model with this head would give; objectness is 1."""
    batch = np.stack(images)
    if head == "yolov5":
        return np.insert(batch, 4, 1, axis=2)
    return np.ascontiguousarray(batch.transpose(0, 2, 1))


def run(op: Nms, tensor: Array, context: Tensors | None = None) -> Tensors:
    check_tensors({"predictions": tensor}, op.inputs)
    outcome = op({"predictions": tensor}, context or {})
    check_tensors(outcome.tensors, op.outputs)
    assert not outcome.context
    return outcome.tensors


def detect(op: Nms, rows: Rows, context: Tensors | None = None) -> list[list[float]]:
    found: list[list[float]] = run(op, predictions(op.head, rows), context)["detections"][
        0
    ].tolist()
    return found


def box(*values: float) -> Rows:
    """Return one row with CLASSES classes."""
    return np.array([values], np.float32)


def reference(op: Nms, rows: Rows) -> list[Detection]:
    """Suppress in plain Python: one candidate after the other, best first."""
    found = [one for row in rows if (one := candidate(row, op.score_threshold)) is not None]
    kept: list[Detection] = []
    for one in sorted(found, key=lambda one: -one[4]):
        rivals = [other for other in kept if not op.class_aware or other[5] == one[5]]
        if all(iou(one, other) <= np.float32(op.iou_threshold) for other in rivals):
            kept.append(one)
    return kept[: op.max_detections]


def candidate(row: Rows, threshold: float) -> Detection | None:
    cx, cy, w, h, *scores = row.tolist()
    if not all(map(math.isfinite, row)) or w < 0 or h < 0 or max(scores) <= np.float32(threshold):
        return None
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, max(scores), scores.index(max(scores))


def iou(one: Detection, other: Detection) -> np.float32:
    width = max(min(one[2], other[2]) - max(one[0], other[0]), 0.0)
    height = max(min(one[3], other[3]) - max(one[1], other[1]), 0.0)
    total = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    if total <= np.finfo(np.float64).eps:
        return np.float32(1)
    return np.float32(1) - np.float32(1 - width * height / (total - width * height))


# Few different numbers, so that ties, equal boxes and boxes without area are the rule.
places = st.integers(0, 12).map(float) | st.floats(0, 640, width=32)
scores = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1, width=32)
oddities = st.sampled_from([math.nan, math.inf, -math.inf, -1.0])


@st.composite
def images(draw: st.DrawFn) -> Rows:
    count = draw(st.integers(0, 25))
    boxes = draw(hnp.arrays(np.float32, (count, 4), elements=places))
    classes = draw(hnp.arrays(np.float32, (count, CLASSES), elements=scores))
    rows = np.hstack([boxes, classes])
    spots = st.tuples(st.integers(0, max(count - 1, 0)), st.integers(0, 3 + CLASSES), oddities)
    for row, column, value in draw(st.lists(spots, max_size=3 if count else 0)):
        rows[row, column] = value
    return rows


def crowd(count: int, classes: int = CLASSES, seed: int = 0) -> Rows:
    """Return positive boxes in a 640 x 640 picture, scores with many ties."""
    rng = np.random.default_rng(seed)
    boxes = np.hstack([rng.uniform(50, 590, (count, 2)), rng.uniform(5, 100, (count, 2))])
    return np.hstack([boxes, rng.integers(0, 65, (count, classes)) / 64]).astype(np.float32)


@pytest.mark.parametrize("class_aware", [True, False], ids=["class-aware", "any-class"])
@pytest.mark.parametrize("head", HEADS)
@given(
    rows=images(), threshold=st.sampled_from([0.0, 0.25, 0.45, 0.5, 1.0]), limit=st.integers(1, 9)
)
def test_detects_what_the_plain_reference_detects(
    head: HeadName, class_aware: bool, rows: Rows, threshold: float, limit: int
) -> None:
    op = Nms(head, CLASSES, iou_threshold=threshold, class_aware=class_aware, max_detections=limit)
    wanted = np.array(reference(op, rows), np.float32)
    assert detect(op, rows) == wanted.tolist()


@pytest.mark.parametrize("head", HEADS)
@settings(max_examples=300)
@given(
    rows=hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 6), st.just(4 + CLASSES)),
        elements=st.floats(width=32),
    )
)
def test_no_bytes_of_a_model_crash_it_or_come_back_as_nan_or_inf(
    head: HeadName, rows: Rows
) -> None:
    tensor = predictions(head, rows, rows[::-1])
    detections = run(Nms(head, CLASSES), tensor)["detections"]
    assert np.isfinite(detections.astype(np.float32)).all()


@pytest.mark.parametrize("class_aware", [True, False], ids=["class-aware", "any-class"])
@pytest.mark.parametrize("count", [1, 200, 3000], ids=lambda n: f"{n}-boxes")
@pytest.mark.parametrize("head", HEADS)
def test_detects_what_opencv_detects(head: HeadName, count: int, class_aware: bool) -> None:
    rows = crowd(count)
    center, size = rows[:, :2].astype(np.float64), rows[:, 2:4].astype(np.float64)
    boxes, best = np.hstack([center - size / 2, size]).tolist(), rows[:, 4:]
    of = best.argmax(1).astype(np.int32)
    if class_aware:
        kept = cv2.dnn.NMSBoxesBatched(boxes, best.max(1), of, 0.25, 0.45)
    else:
        kept = cv2.dnn.NMSBoxes(boxes, best.max(1), 0.25, 0.45)
    wanted = np.column_stack([center - size / 2, center + size / 2, best.max(1), of])[kept]
    op = Nms(head, CLASSES, class_aware=class_aware, max_detections=count)
    assert detect(op, rows) == wanted.astype(np.float32).tolist()


def test_classes_do_not_meet_however_large_the_coordinates() -> None:
    far = 2.0**24  # the usual offset of class x width would round such a box away in FP32
    rows = np.vstack([box(far, far, 4, 4, *np.eye(CLASSES)[one]) for one in (0, 1, 2, 0)])
    assert [one[5] for one in detect(Nms("yolov8", CLASSES), rows)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("limits", "kept"),
    [({"max_detections": 2}, [0.9, 0.7]), ({"max_candidates": 2}, [0.9])],
    ids=["kept-boxes", "boxes-looked-at"],
)
def test_limits_leave_the_best(limits: dict[str, int], kept: list[float]) -> None:
    at = [(10, 0.6), (50, 0.7), (90, 0.9), (90, 0.8)]
    rows = np.vstack([box(x, 9, 8, 8, score, 0, 0) for x, score in at])
    found = detect(Nms("yolov8", CLASSES, **limits), rows)  # type: ignore[arg-type]
    assert [one[4] for one in found] == np.array(kept, np.float32).tolist()


def test_images_are_padded_to_the_most_detections() -> None:
    one, two = box(10, 10, 4, 4, 0.5, 0, 0), box(50, 50, 4, 4, 0, 0.75, 0)
    none = np.zeros_like(one)
    batch = predictions("yolov8", *(np.vstack(p) for p in [(one, two), (none, none), (none, two)]))
    out = run(Nms("yolov8", CLASSES), batch)
    assert out["num_detections"].tolist() == [2, 0, 1]
    first, second = [8, 8, 12, 12, 0.5, 0], [48, 48, 52, 52, 0.75, 1]
    assert out["detections"].tolist() == [[second, first], [[0] * 6] * 2, [second, [0] * 6]]
    assert out["labels"].tolist() == [[b"", b""]] * 3


@pytest.mark.parametrize("shape", [(2, 7, 9), (2, 7, 0), (0, 7, 9)], ids=str)
def test_nothing_found_gives_empty_tensors(shape: tuple[int, ...]) -> None:
    out = run(Nms("yolov8", CLASSES), np.zeros(shape, np.float32))
    assert out["detections"].shape == (shape[0], 0, 6)
    assert out["num_detections"].tolist() == [0] * shape[0]
    assert out["labels"].shape == (shape[0], 0)


def geometry(*rows: list[float]) -> Tensors:
    return {"geometry": np.array(rows, np.float32)}


def test_corners_are_those_of_the_picture_and_inside_it() -> None:
    # 1280 x 640 halved into 640 x 640: 160 model pixels of padding above and below.
    context = geometry([1280, 640, 0.5, 0.5, 0, 160])
    rows = np.vstack([box(100, 200, 40, 20, 0.9, 0, 0), box(630, 160, 40, 100, 0.5, 0, 0)])
    boxes = [one[:4] for one in detect(Nms("yolov8", CLASSES), rows, context)]
    assert boxes == [[160, 60, 240, 100], [1220, 0, 1280, 100]]


def test_each_axis_and_each_image_has_its_own_geometry() -> None:
    rows = box(100, 200, 40, 20, 0.5, 0, 0)
    context = geometry([999, 999, 2, 4, 10, 20], [999, 999, 1, 1, 0, 0])
    out = run(Nms("yolov5", CLASSES), predictions("yolov5", rows, rows), context)
    assert out["detections"][:, 0, :4].tolist() == [[35, 42.5, 55, 47.5], [80, 190, 120, 210]]


def test_suppression_sees_boxes_before_they_are_clipped() -> None:
    rows = np.vstack([box(0, 5, 60, 10, 0.9, 0, 0), box(10, 5, 20, 10, 0.8, 0, 0)])
    assert len(detect(Nms("yolov8", CLASSES), rows, geometry([20, 20, 1, 1, 0, 0]))) == 2


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ([[9, 9, 1, 1, 0, 0]] * 2, r"shape \[2, 6\], wanted \[1, 6\]: one row per image"),
        ([[9, 9, 1, 1]], r"shape \[1, 4\], wanted \[1, 6\]"),
        ([[9, 9, 0, 1, 0, 0]], "scales above 0"),
        ([[9, 9, 1, np.nan, 0, 0]], "finite numbers"),
    ],
    ids=["other-batch", "other-columns", "scale-0", "nan"],
)
def test_refuses_a_geometry_that_is_not_of_this_batch(row: list[list[float]], text: str) -> None:
    with pytest.raises(InvalidInput, match=f"'geometry'.*{text}.*letterbox"):
        detect(Nms("yolov8", CLASSES), box(1, 1, 2, 2, 0.5, 0, 0), geometry(*row))


@pytest.mark.parametrize(
    ("head", "shape", "wanted"),
    [("yolov5", (1, 9, 7), r"\[-1,-1,8\]"), ("yolov8", (1, 8, 9), r"\[-1,7,-1\]")],
    ids=HEADS,
)
def test_refuses_another_number_of_classes_and_says_what_to_set(
    head: HeadName, shape: tuple[int, ...], wanted: str
) -> None:
    with pytest.raises(InvalidInput, match=f"{wanted} for head {head!r} with 3 .* set head and"):
        Nms(head, CLASSES)({"predictions": np.zeros(shape, np.float32)}, {})


def make(root: Path, **parameters: object) -> Nms:
    op = make_op(OPS, "nms", json.dumps(parameters).encode(), root)
    assert isinstance(op, Nms)
    return op


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "labels.txt").write_text("zero\none\ntwo\n")
    return tmp_path


def test_labels_name_detections_and_count_the_classes(repository: Path) -> None:
    op = make(repository, head="yolov8", labels="labels.txt")
    one, two = box(9, 9, 4, 4, 0.5, 0, 0), box(40, 9, 4, 4, 0, 0, 0.75)
    batch = predictions("yolov8", np.vstack([one, two]), np.vstack([one, one]))
    assert run(op, batch)["labels"].tolist() == [[b"two", b"zero"], [b"zero", b""]]


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"head": "yolov8"}, "neither classes nor labels came"),
        ({"classes": 3}, "head: "),
        ({"head": "yolo", "classes": 3}, "head: .*'yolov5' or 'yolov8'"),
        ({"head": "yolov8", "classes": 0}, "classes: "),
        ({"head": "yolov8", "classes": 4, "labels": "labels.txt"}, "classes is 4, labels has 3"),
        ({"head": "yolov8", "labels": "none.txt"}, "none.txt is not there"),
        ({"head": "yolov8", "classes": 3, "iou_threshold": 1.5}, "iou_threshold: "),
        ({"head": "yolov8", "classes": 3, "score_threshold": math.nan}, "score_threshold: "),
        ({"head": "yolov8", "classes": 3, "iou": 0.5}, "iou: "),
    ],
    ids=["no-classes", "no-head", "other-head", "0-classes", "count", "file", "iou", "nan", "name"],
)
def test_refuses_wrong_parameters_when_made(
    repository: Path, parameters: dict[str, object], text: str
) -> None:
    with pytest.raises(InvalidInput, match=text):
        make(repository, **parameters)
