"""Greedy non-maximum suppression."""

import numpy as np
from numpy.typing import NDArray

from mesh.tensor import Array

_BLOCK = 128
"""Boxes compared at once: measured the fastest of 32..256, the temporaries stay in the L2 cache."""


def suppress(
    boxes: NDArray[np.float64], groups: Array, iou_threshold: float, limit: int
) -> NDArray[np.intp]:
    """Keep each box whose overlap with every kept box of its group is at most the threshold.

    The kept boxes and their order are those of `cv2.dnn.NMSBoxes`, run on each group for itself.

    Boxes are taken a block at a time, best first: what a kept box overlaps goes out, the rest of
    the block is settled among itself. The work is thus at most n x limit overlaps plus n x 128,
    and ends with the block that fills `limit`.

    Args:
        boxes: float64[N, 4]: x1, y1, x2, y2 with x1 <= x2, y1 <= y2; the best box first.
        groups: [N]: boxes of different groups never suppress each other.
        iou_threshold: intersection over union, 0..1.
        limit: of kept boxes, all groups together.

    Returns:
        Indices of the kept boxes, rising.
    """
    kept = np.empty(0, np.intp)
    for start in range(0, len(boxes), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(boxes)))
        clash = _clash(boxes, groups, block, kept, iou_threshold)
        block = block[~clash.any(axis=1)]
        clash = _clash(boxes, groups, block, block, iou_threshold)
        kept = np.concatenate([kept, block[_greedy(clash)]])
        if len(kept) >= limit:
            break
    return kept[:limit]


def _clash(
    boxes: NDArray[np.float64],
    groups: Array,
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    iou_threshold: float,
) -> NDArray[np.bool_]:
    """Tell, as bool[rows, columns], which boxes of one group overlap too much."""
    clash = overlaps(boxes[rows], boxes[columns]) > np.float32(iou_threshold)
    clash &= groups[rows, None] == groups[columns]
    return clash


def _greedy(clash: NDArray[np.bool_]) -> NDArray[np.intp]:
    free = np.ones(len(clash), np.bool_)
    for row in range(len(clash)):
        if free[row]:
            free[row + 1 :] &= ~clash[row, row + 1 :]
    return np.flatnonzero(free)


def overlaps(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return intersection over union of each box with each other box.

    Args:
        one: float64[N, 4]: x1, y1, x2, y2 with x1 <= x2, y1 <= y2.
        other: float64[M, 4], likewise.

    Returns:
        FP32[N, M], 0..1; two boxes without area overlap by 1 wherever they are, as in OpenCV.
    """
    x1, y1, x2, y2 = one.T[:, :, None]
    u1, v1, u2, v2 = other.T[:, None, :]
    shared = np.maximum(np.minimum(x2, u2) - np.maximum(x1, u1), 0)
    shared *= np.maximum(np.minimum(y2, v2) - np.maximum(y1, v1), 0)
    total = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1)
    flat = total <= np.finfo(np.float64).eps
    shared[flat] = total[flat] = 1
    # OpenCV's detour over 1 - IoU and float32 decides overlaps that equal the threshold.
    distance = 1 - shared / (total - np.where(flat, 0, shared))
    iou: NDArray[np.float32] = 1 - distance.astype(np.float32)
    return iou
