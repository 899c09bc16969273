"""Detector heads: what the rows of a model's output mean."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

HeadName = Literal["yolov5", "yolov8"]
"""Heads that `DECODERS` reads."""


@dataclass(frozen=True)
class Candidates:
    """Boxes of one image above the score threshold, in the order of the model's rows."""

    boxes: NDArray[np.float64]
    """[N, 4]: x1, y1, x2, y2 in model pixels, 0 <= x2 - x1, 0 <= y2 - y1, each fits in FP32."""
    scores: NDArray[np.float32]
    """[N], finite."""
    classes: NDArray[np.intp]
    """[N]: the one best class of a box, the lower one where two are equal."""


def input_shape(head: HeadName, classes: int) -> tuple[int, int, int]:
    """Return the shape of the model's output, batch dimension first."""
    return (-1, -1, 5 + classes) if head == "yolov5" else (-1, 4 + classes, -1)


def decode_yolov5(image: NDArray[np.float32], threshold: float) -> Candidates:
    """Read a head with an objectness column: score = objectness x best class score.

    A row with a NaN or Inf, or a size below 0, is no candidate; the same for `decode_yolov8`.

    Args:
        image: FP32[N, 5 + C]: center x, center y, width, height in model pixels, objectness, C
            class scores; scores 0..1 (after the sigmoid).
        threshold: only scores above it count, 0..1.
    """
    # A class score is at most 1, so these are all that can pass; 4 ms less for 25200 rows of 85.
    rows = _usable(image[image[:, 4] > threshold])
    with np.errstate(over="ignore"):
        scores = rows[:, 4] * rows[:, 5:].max(axis=1)
    return _above(threshold, rows[:, :4], scores, rows[:, 5:].argmax(axis=1))


def decode_yolov8(image: NDArray[np.float32], threshold: float) -> Candidates:
    """Read a head without objectness: score = best class score.

    Args:
        image: FP32[4 + C, N]: center x, center y, width, height in model pixels, C class scores.
        threshold: only scores above it count, 0..1.
    """
    rows = _usable(image[:, image[4:].max(axis=0) > threshold].T)
    return _above(threshold, rows[:, :4], rows[:, 4:].max(axis=1), rows[:, 4:].argmax(axis=1))


DECODERS: dict[HeadName, Callable[[NDArray[np.float32], float], Candidates]] = {
    "yolov5": decode_yolov5,
    "yolov8": decode_yolov8,
}
"""By the value of parameter `head`."""


def _usable(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows[np.isfinite(rows).all(axis=1) & (rows[:, 2:4] >= 0).all(axis=1)]


def _above(
    threshold: float,
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.intp],
) -> Candidates:
    # float64: a small box far from the origin keeps its size.
    center, half = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64) / 2
    corners = np.hstack([center - half, center + half])
    fits = np.abs(corners).max(axis=1) <= np.finfo(np.float32).max
    kept = fits & (scores > threshold) & np.isfinite(scores)
    return Candidates(corners[kept], scores[kept], classes[kept])
