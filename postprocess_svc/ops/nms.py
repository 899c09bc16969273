"""Op `nms`: the boxes of a detector, overlapping ones taken out."""

from functools import cached_property
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from mesh.errors import InvalidInput
from mesh.op import Outcome, RepositoryPath
from mesh.tensor import Array, Tensors, TensorSpec
from postprocess_svc.ops.heads import DECODERS, HeadName, input_shape
from postprocess_svc.ops.labels import name_classes, read_labels
from postprocess_svc.ops.suppress import suppress

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Nms:
    """Detections of a YOLO head: score threshold, suppression, boxes in the picture's pixels.

    A box counts once, with its one best class. Boxes come best first; of equal scores the one
    that the model gave first. Rows of the model with a NaN or Inf are left out.

    Context: `geometry` FP32[B, 6] = width, height (of the upright picture, in pixels), scale_x,
    scale_y, pad_left, pad_top, where model pixel = picture pixel x scale + pad; preprocess op
    `letterbox` leaves it. With it, corners are those of the picture, inside 0..width and
    0..height; without it they stay in model pixels.

    Outputs: `detections` FP32[B, M, 6] = x1, y1, x2, y2, score, class; `num_detections`
    INT32[B]; `labels` BYTES[B, M], empty without a labels file. M is the largest count of the
    call; what is past the count of an image is 0 and empty.
    """

    head: HeadName
    """yolov5: FP32[B, N, 5 + C] with objectness; yolov8: FP32[B, 4 + C, N] without."""
    classes: Count | None = None
    """C; where it is not given, the number of labels."""
    labels: RepositoryPath | None = None
    """File with the name of each class in a line."""
    score_threshold: Fraction = 0.25
    """Only scores above it count."""
    iou_threshold: Fraction = 0.45
    """A box goes out when it overlaps a better one by more than this."""
    class_aware: bool = True
    """Suppress only among boxes of one class."""
    max_detections: Count = 300
    """Per image, the best ones."""
    max_candidates: Count = 30_000
    """Boxes per image that suppression looks at, the best ones; bounds the time of a call."""
    input: str = "predictions"
    """Name of the model's output tensor."""

    def __post_init__(self) -> None:
        """Refuse a number of classes that is not known or not the number of labels."""
        if self.classes is None and self.labels is None:
            raise ValueError("neither classes nor labels came, wanted one of them")
        if self.classes and self.labels and len(self._names) != self.classes:
            raise ValueError(f"classes is {self.classes}, labels has {len(self._names)} lines")

    @cached_property
    def _names(self) -> Array:
        return read_labels(self.labels)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's raw output, center x, center y, width and height in model pixels."""
        return (TensorSpec(self.input, "FP32", input_shape(self.head, self._class_count)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Detections, their number, their labels."""
        return (
            TensorSpec("detections", "FP32", (-1, -1, 6)),
            TensorSpec("num_detections", "INT32", (-1,)),
            TensorSpec("labels", "BYTES", (-1, -1)),
        )

    @property
    def _class_count(self) -> int:
        return self.classes or len(self._names)

    def __call__(self, tensors: Tensors, context: Tensors) -> Outcome:
        """Find the detections of each image.

        Raises:
            InvalidInput: the predictions are not those of this head and number of classes, or the
                geometry is not one row per image with scales above 0.
        """
        images = self._checked(tensors[self.input])
        detections = [self._detect(image) for image in images]
        if "geometry" in context:
            rows = _checked_geometry(context["geometry"], len(images))
            for found, row in zip(detections, rows, strict=True):
                found[:, :4] = _to_picture(found[:, :4], row)
        return Outcome(self._packed(detections))

    def _checked(self, predictions: Array) -> NDArray[np.float32]:
        try:
            self.inputs[0].check(predictions)
        except InvalidInput as err:
            raise InvalidInput(
                f"{err} for head {self.head!r} with {self._class_count} classes; "
                "set head and classes (or labels) of op 'nms' to those of the model"
            ) from err
        return predictions.astype(np.float32, copy=False)

    def _detect(self, image: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return float64[M, 6], best first, corners in model pixels."""
        found = DECODERS[self.head](image, self.score_threshold)
        order = np.argsort(-found.scores, kind="stable")[: self.max_candidates]
        groups = found.classes[order] if self.class_aware else np.zeros_like(order)
        kept = order[suppress(found.boxes[order], groups, self.iou_threshold, self.max_detections)]
        return np.column_stack([found.boxes[kept], found.scores[kept], found.classes[kept]])

    def _packed(self, found: list[NDArray[np.float64]]) -> Tensors:
        counts = np.array([len(rows) for rows in found], np.int32)
        detections = np.zeros((len(found), counts.max(initial=0), 6), np.float32)
        labels = np.full(detections.shape[:2], b"", object)
        for image, rows in enumerate(found):
            detections[image, : len(rows)] = rows
            labels[image, : len(rows)] = name_classes(self._names, rows[:, 5].astype(np.intp))
        return {"detections": detections, "num_detections": counts, "labels": labels}


def _checked_geometry(geometry: Array, images: int) -> NDArray[np.float64]:
    if geometry.shape != (images, 6):
        raise InvalidInput(
            f"context 'geometry' has the shape {list(geometry.shape)}, wanted {[images, 6]}: one "
            "row per image; use preprocess op 'letterbox' with the same batch"
        )
    rows = geometry.astype(np.float64)
    if not (np.isfinite(rows).all() and (rows[:, :4] > 0).all()):
        raise InvalidInput(
            f"context 'geometry' is {rows.tolist()}, wanted finite numbers with sizes and scales "
            "above 0, as preprocess op 'letterbox' leaves them"
        )
    return rows


def _to_picture(corners: NDArray[np.float64], row: NDArray[np.float64]) -> NDArray[np.float64]:
    size, scale, pad = row[[0, 1, 0, 1]], row[[2, 3, 2, 3]], row[[4, 5, 4, 5]]
    return np.clip((corners - pad) / scale, 0, size)
