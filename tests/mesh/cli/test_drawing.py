"""Boxes are drawn where they are, on a picture that may be of any kind."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mesh.cli.drawing import COLOURS, draw_detections
from mesh.errors import InvalidInput
from protos.mesh.v1.mesh_pb2 import Detection


def encoded(pixels: NDArray[np.uint8], kind: str = ".png") -> bytes:
    return bytes(cv2.imencode(kind, pixels)[1])


def drawn(picture: bytes, *detections: Detection) -> NDArray[np.uint8]:
    png = draw_detections(picture, detections)
    assert png.startswith(b"\x89PNG")
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return np.asarray(pixels, np.uint8)


BLACK = np.zeros((200, 300, 3), np.uint8)
BOX = Detection(x1=100, y1=80, x2=200, y2=150, score=0.5, class_id=3, label="three")


def test_edges_have_the_colour_of_the_class_and_the_inside_stays() -> None:
    pixels = drawn(encoded(BLACK), BOX)
    for x, y in ((100, 120), (200, 120), (150, 150)):
        assert tuple(pixels[y, x]) == COLOURS[3]
    assert not pixels[110:145, 110:190].any()
    assert not pixels[160:].any()


def test_label_is_above_the_box_and_below_its_top_at_the_edge_of_the_picture() -> None:
    assert drawn(encoded(BLACK), BOX)[60:75, 105:140].any()
    top = Detection(x1=100, y1=0, x2=200, y2=150, class_id=3, label="three")
    assert drawn(encoded(BLACK), top)[5:10, 105:140].any()


@pytest.mark.parametrize("kind", [".png", ".jpg", ".bmp", ".webp"])
def test_picture_of_any_kind_keeps_its_size(kind: str) -> None:
    assert drawn(encoded(BLACK, kind), BOX).shape == BLACK.shape


def test_grey_picture_gets_coloured_boxes() -> None:
    pixels = drawn(encoded(np.zeros((200, 300), np.uint8)), BOX)
    assert tuple(pixels[120, 100]) == COLOURS[3]


def test_nothing_found_leaves_the_picture() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    assert (drawn(encoded(noise)) == noise).all()


def test_class_beyond_the_colours_begins_again() -> None:
    far = Detection(x1=100, y1=80, x2=200, y2=150, class_id=len(COLOURS) + 3)
    assert tuple(drawn(encoded(BLACK), far)[120, 100]) == COLOURS[3]


@settings(max_examples=30)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4),
    st.integers(0, 2**31 - 1),
    st.text(max_size=20),
)
def test_box_anywhere_is_no_error(corners: list[float], class_id: int, label: str) -> None:
    x1, y1, x2, y2 = corners
    box = Detection(x1=x1, y1=y1, x2=x2, y2=y2, class_id=class_id, label=label)
    assert drawn(encoded(BLACK), box).shape == BLACK.shape


@pytest.mark.parametrize("picture", [b"", b"no picture", encoded(BLACK)[:50]], ids=range(3))
def test_what_is_no_picture_is_refused(picture: bytes) -> None:
    with pytest.raises(InvalidInput, match="cannot be decoded"):
        draw_detections(picture, [BOX])
