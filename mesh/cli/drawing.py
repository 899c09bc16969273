"""Boxes and labels drawn on a picture."""

from collections.abc import Iterable

import cv2
import numpy as np

from mesh.errors import InvalidInput
from protos.mesh.v1.mesh_pb2 import Detection

COLOURS = [
    (56, 56, 255), (49, 210, 207), (10, 249, 72), (255, 115, 100), (236, 24, 0),
    (132, 56, 255), (255, 149, 200), (29, 178, 255), (61, 219, 134), (187, 212, 0),
]  # fmt: skip
"""BGR, one for each class id, around again after the last."""


def draw_detections(picture: bytes, detections: Iterable[Detection]) -> bytes:
    """Return the picture, upright, with its boxes drawn, as a PNG file.

    Args:
        picture: an image file as it was sent.
        detections: in pixels of the upright picture.

    Raises:
        InvalidInput: OpenCV cannot decode the picture.
    """
    # OpenCV takes no empty buffer.
    canvas = cv2.imdecode(np.frombuffer(picture or b" ", np.uint8), cv2.IMREAD_COLOR)
    if canvas is None:
        raise InvalidInput("the picture cannot be decoded, so nothing can be drawn on it")
    unit = max(1, round(max(canvas.shape[:2]) / 640))
    for found in detections:
        colour = COLOURS[found.class_id % len(COLOURS)]
        left, top = round(found.x1), round(found.y1)
        cv2.rectangle(canvas, (left, top), (round(found.x2), round(found.y2)), colour, 2 * unit)
        text = f"{found.label or found.class_id} {found.score:.2f}"
        scale = 0.5 * unit
        (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, unit)
        foot = max(top, height + base)
        cv2.rectangle(canvas, (left, foot - height - base), (left + width, foot), colour, -1)
        origin = (left, foot - base)
        white = (255, 255, 255)
        cv2.putText(canvas, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, white, unit, cv2.LINE_AA)
    _, png = cv2.imencode(".png", canvas)
    return png.tobytes()
