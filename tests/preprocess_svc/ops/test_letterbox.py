"""`letterbox` keeps the aspect ratio, and its geometry leads back to the picture."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mesh.errors import InvalidInput
from mesh.op import make_op
from mesh.tensor import TensorSpec, bytes_tensor, check_tensors
from preprocess_svc.ops import OPS
from preprocess_svc.ops.letterbox import Letterbox
from tests.preprocess_svc.ops.pictures import (
    KINDS,
    QUARTERS,
    Pixels,
    close,
    corners,
    encode,
    exif,
    png,
    quarters,
    smooth,
    stored,
    with_exif,
)

SMALL = Letterbox(size=(64, 96))


def run(op: Letterbox, data: bytes) -> tuple[Pixels, list[float]]:
    tensors = {"image": bytes_tensor(data)}
    check_tensors(tensors, op.inputs)
    outcome = op(tensors, {})
    check_tensors(outcome.tensors, op.outputs)
    geometry = outcome.context["geometry"]
    check_tensors(outcome.context, [TensorSpec("geometry", "FP32", (1, 6))])
    return outcome.tensors["pixels"][0].astype(np.uint8), geometry[0].tolist()


def white_box(width: int, height: int) -> Pixels:
    """Black, with a white box from a quarter to three quarters of each side."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = 255
    return picture


def edges(line: NDArray[np.uint8]) -> tuple[int, int]:
    """Return where the white part of a line begins and ends."""
    white = np.flatnonzero(line > 127)
    return int(white[0]), int(white[-1]) + 1


def test_defaults_are_those_of_yolo() -> None:
    op = Letterbox()
    assert [str(spec) for spec in op.inputs] == ["image: BYTES[1]"]
    assert [str(spec) for spec in op.outputs] == ["pixels: UINT8[1,640,640,3]"]
    pixels, geometry = run(op, encode("png", quarters(480, 640)))
    assert geometry == [640, 480, 1, 1, 0, 80]
    assert np.array_equal(pixels[80:560], quarters(480, 640))
    assert (pixels[:80] == 114).all()
    assert (pixels[560:] == 114).all()


@pytest.mark.parametrize(
    ("width", "height", "geometry"),
    [
        (192, 64, [192, 64, 0.5, 0.5, 0, 16]),
        (32, 64, [32, 64, 1, 1, 32, 0]),
        (48, 32, [48, 32, 2, 2, 0, 0]),
        (1, 1, [1, 1, 64, 64, 16, 0]),
        (1000, 1, [1000, 1, 0.096, 1, 0, 31]),
    ],
    ids=["wide", "tall", "grows", "one-pixel", "line"],
)
def test_a_picture_is_scaled_to_fit_and_centred(
    width: int, height: int, geometry: list[float]
) -> None:
    pixels, found = run(SMALL, encode("png", np.full((height, width, 3), 255, np.uint8)))
    assert found == pytest.approx(geometry)
    _, _, scale_x, scale_y, left, top = (round(number) for number in geometry)
    inside = pixels[top : top + height * scale_y, left : left + width * scale_x]
    assert (inside == 255).all()
    assert (pixels == 255).all(2).sum() == round(width * found[2]) * round(height * found[3])


@settings(max_examples=60)
@given(
    width=st.integers(60, 900),
    height=st.integers(60, 900),
    kind=st.sampled_from(["jpeg", "bmp"]),
    orientation=st.integers(1, 8),
)
def test_geometry_leads_back_to_the_picture(
    width: int, height: int, kind: str, orientation: int
) -> None:
    data = encode(kind, stored(white_box(width, height), orientation if kind == "jpeg" else 1))
    if kind == "jpeg":
        data = with_exif(kind, data, exif(orientation))
    pixels, geometry = run(SMALL, data)
    assert geometry[:2] == [width, height]
    x, y = (int(geometry[i] / 2 * geometry[i + 2] + geometry[i + 4]) for i in (0, 1))
    for side, line in enumerate((pixels[y, :, 1], pixels[:, x, 1])):
        size, scale, pad = geometry[side], geometry[side + 2], geometry[side + 4]
        for found, wanted in zip(edges(line), (size // 4, size * 3 // 4), strict=True):
            assert found == pytest.approx(wanted * scale + pad, abs=1)  # model pixels
        room = SMALL.size[1 - side] - size * scale
        assert room >= -1e-3
        assert pad == pytest.approx(room / 2, abs=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_comes_out_upright(orientation: int) -> None:
    data = encode("jpeg", stored(quarters(400, 600), orientation))
    pixels, geometry = run(SMALL, with_exif("jpeg", data, exif(orientation)))
    assert geometry[:2] == [600, 400]
    assert close(corners(pixels), QUARTERS)


def test_a_reduced_jpeg_looks_like_the_whole_one() -> None:
    picture = smooth(775, 517)
    reduced, geometry = run(SMALL, encode("jpeg", picture))
    whole, exact = run(SMALL, encode("png", picture))
    assert geometry == pytest.approx(exact, rel=0.01)
    assert np.abs(reduced.astype(int) - whole).mean() < 1


def test_the_padding_has_the_value_asked_for() -> None:
    pixels, _ = run(Letterbox(size=(8, 32), pad_value=7), encode("png", quarters(8, 8)))
    assert (pixels[:, :12] == 7).all()
    assert (pixels[:, 20:] == 7).all()


@pytest.mark.parametrize("kind", KINDS)
def test_letterbox_refuses_truncated_file_with_invalid_input(kind: str) -> None:
    with pytest.raises(InvalidInput, match="is cut off"):
        run(Letterbox(), encode(kind, quarters())[:-1])


@pytest.mark.parametrize(
    ("op", "data", "reason"),
    [
        (Letterbox(), b"", "an empty file came"),
        (Letterbox(), b"no picture", "unknown type of file"),
        (Letterbox(), png(20_000, 20_000, b""), "20000x20000 pixels came, at most 50000000"),
        (Letterbox(max_bytes=50), encode("png", quarters()), "bytes came, at most 50 are taken"),
        (Letterbox(max_pixels=50), encode("png", quarters()), "at most 50 pixels are taken"),
    ],
    ids=["empty", "text", "huge", "max-bytes", "max-pixels"],
)
def test_letterbox_refuses_unusable_files_with_invalid_input(
    op: Letterbox, data: bytes, reason: str
) -> None:
    with pytest.raises(InvalidInput, match=reason):
        run(op, data)


def test_the_header_of_a_jpeg_limits_it_before_it_is_decoded() -> None:
    data = bytearray(encode("jpeg", quarters()))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(InvalidInput, match="60000x60000"):
        run(Letterbox(), bytes(data))


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        (b'{"sice": [8, 8]}', "sice: Unexpected keyword argument"),
        (b'{"size": [0, 8]}', "size.0: Input should be greater than 0"),
        (b'{"size": [8]}', "size.1: Field required"),
        (b'{"pad_value": 256}', "pad_value: Input should be less than or equal to 255"),
        (b'{"max_bytes": 0}', "max_bytes: Input should be greater than 0"),
    ],
    ids=["unknown", "no-height", "one-side", "pad-value", "max-bytes"],
)
def test_wrong_parameters_are_refused(parameters: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        make_op(OPS, "letterbox", parameters, Path())
