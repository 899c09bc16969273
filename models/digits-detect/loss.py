"""What the detector is trained to do: task-aligned targets, box overlap and class scores."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CANDIDATES = 10
BOX_WEIGHT = 5.0


class Truth(NamedTuple):
    """The digits of a batch, padded to the same number M per page."""

    boxes: Tensor
    """float32[N, M, 4]: left, top, right, bottom in pixels."""
    labels: Tensor
    """int64[N, M]."""
    real: Tensor
    """bool[N, M], False for padding."""


class Targets(NamedTuple):
    """What each of the A cells should say."""

    boxes: Tensor
    """float32[N, A, 4]."""
    scores: Tensor
    """float32[N, A, 10], 0 for background."""
    weight: Tensor
    """float32[N, A], the largest score of the cell."""


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU of boxes [..., 4] that broadcast against each other."""
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(0)
    both = size.prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return both / (areas - both + 1e-7)


def complete_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return the CIoU of box pairs [K, 4]: IoU less centre distance and shape difference."""
    iou = overlap(a, b)
    hull = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    apart = (a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]).square().sum(1) / 4
    shape_a, shape_b = (torch.atan2(*(box[:, 2:] - box[:, :2]).clamp(1e-3).T) for box in (a, b))
    shape = (4 / math.pi**2) * (shape_a - shape_b).square()
    with torch.no_grad():
        trade = shape / (1 - iou + shape + 1e-7)
    return iou - apart / (hull.square().sum(1) + 1e-7) - trade * shape


@torch.no_grad()
def assign(boxes: Tensor, scores: Tensor, points: Tensor, truth: Truth) -> Targets:
    """Give each digit the cells inside it that already see it best.

    Args:
        boxes: Predicted corners float32[N, A, 4].
        scores: Predicted class scores float32[N, A, 10].
        points: Cell centres float32[A, 2].
        truth: The digits.
    """
    iou = overlap(truth.boxes[:, :, None], boxes[:, None])
    named = truth.labels[:, :, None].expand(-1, -1, boxes.shape[1])
    said = scores.transpose(1, 2).gather(1, named)
    low, high = truth.boxes[:, :, None, :2], truth.boxes[:, :, None, 2:]
    inside = ((points > low) & (points < high)).all(-1) & truth.real[:, :, None]
    fit = said.sqrt() * iou.pow(6) * inside + 1e-12 * inside
    best = fit.topk(CANDIDATES, dim=2)
    chosen = torch.zeros_like(fit).scatter(2, best.indices, best.values) > 0
    owner = torch.where(chosen, iou + 1e-6, 0).max(dim=1)
    mine = torch.zeros_like(chosen).scatter(1, owner.indices[:, None], owner.values[:, None] > 0)
    fit, iou = fit * mine, iou * mine
    # The best cell of a digit is asked for its overlap, the others for less in proportion.
    weight = fit / fit.amax(2, keepdim=True).clamp(1e-12) * iou.amax(2, keepdim=True)
    weight = weight.amax(1)
    label = truth.labels.gather(1, owner.indices)
    wanted = F.one_hot(label, scores.shape[2]) * weight[:, :, None]
    target = truth.boxes.gather(1, owner.indices[:, :, None].expand(-1, -1, 4))
    return Targets(target, wanted.float(), weight)


def loss(corners: Tensor, logits: Tensor, points: Tensor, truth: Truth) -> Tensor:
    """Return the training loss.

    Args:
        corners: Predicted corners float32[N, 4, A].
        logits: Class logits float32[N, 10, A].
        points: Cell centres float32[2, A].
        truth: The digits.
    """
    boxes, logits = corners.transpose(1, 2), logits.transpose(1, 2)
    targets = assign(boxes.detach(), logits.detach().sigmoid(), points.T, truth)
    total = targets.weight.sum().clamp(1.0)
    classes = F.binary_cross_entropy_with_logits(logits, targets.scores, reduction="sum")
    mine = targets.weight > 0
    apart = 1 - complete_overlap(boxes[mine], targets.boxes[mine])
    return (classes + BOX_WEIGHT * (apart * targets.weight[mine]).sum()) / total
