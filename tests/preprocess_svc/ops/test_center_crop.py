"""`center_crop` gives the middle of a picture, whatever its shape."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import InvalidInput
from mesh.op import make_op
from mesh.tensor import bytes_tensor, check_tensors
from preprocess_svc.ops import OPS
from preprocess_svc.ops.center_crop import CenterCrop
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


def run(op: CenterCrop, data: bytes) -> Pixels:
    tensors = {"image": bytes_tensor(data)}
    check_tensors(tensors, op.inputs)
    outcome = op(tensors, {})
    check_tensors(outcome.tensors, op.outputs)
    assert outcome.context == {}
    assert outcome.tensors["pixels"].flags.c_contiguous
    pixels: Pixels = outcome.tensors["pixels"][0].astype(np.uint8)
    return pixels


def test_defaults_are_those_of_image_net() -> None:
    op = CenterCrop()
    assert [str(spec) for spec in op.inputs] == ["image: BYTES[1]"]
    assert [str(spec) for spec in op.outputs] == ["pixels: UINT8[1,224,224,3]"]
    coarse = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    picture = cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC)
    scaled = cv2.resize(picture, (341, 256), interpolation=cv2.INTER_AREA)
    wanted = scaled[16:240, 58:282].astype(int)
    # Cut before scaling, so half a pixel of rounding may lie between the two.
    assert np.abs(run(op, encode("png", picture)) - wanted).mean() < 4
    assert np.abs(run(op, encode("png", picture[:, ::-1])) - wanted).mean() > 20


def test_without_resize_the_picture_just_covers_the_crop() -> None:
    picture = quarters(60, 100)
    picture[:, :20] = picture[:, 80:] = 0
    pixels = run(CenterCrop(size=(120, 120), resize=None), encode("png", picture))
    assert not (pixels[:, 2:118] == 0).all(2).any()
    assert close(corners(pixels), QUARTERS)


@settings(max_examples=60)
@given(
    width=st.integers(8, 400),
    height=st.integers(8, 400),
    kind=st.sampled_from(["jpeg", "bmp"]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    resize=st.sampled_from([None, 40, 64]),
)
def test_the_middle_of_the_picture_is_the_middle_of_the_crop(
    width: int, height: int, kind: str, size: tuple[int, int], resize: int | None
) -> None:
    scale = resize / min(width, height) if resize else max(size[0] / height, size[1] / width)
    for axis, side in ((0, height), (1, width)):
        slope = np.linspace(0, 255, side).reshape(-1 if axis == 0 else 1, -1 if axis else 1)
        picture = np.broadcast_to(slope, (height, width)).astype(np.uint8)
        pixels = run(CenterCrop(size, resize), encode(kind, picture))
        step = 255 / (side - 1)
        within = step + step / scale + 6  # a pixel of the picture, one of the crop, JPEG losses
        assert float(pixels.mean()) == pytest.approx(127, abs=within)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_comes_out_upright(orientation: int) -> None:
    data = encode("jpeg", stored(quarters(600, 800), orientation))
    pixels = run(CenterCrop(), with_exif("jpeg", data, exif(orientation)))
    assert close(corners(pixels), QUARTERS)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 10_000), (10_000, 1), (2, 3)])
@pytest.mark.parametrize("resize", [256, None])
def test_pictures_of_any_shape_are_cropped(width: int, height: int, resize: int | None) -> None:
    data = encode("png", np.full((height, width, 3), 50, np.uint8))
    assert np.array_equal(run(CenterCrop(resize=resize), data), np.full((224, 224, 3), 50))


def test_a_reduced_jpeg_looks_like_the_whole_one() -> None:
    picture = smooth(1601, 1203)
    reduced = run(CenterCrop(), encode("jpeg", picture)).astype(int)
    assert np.abs(reduced - run(CenterCrop(), encode("png", picture))).mean() < 1


@pytest.mark.parametrize("kind", KINDS)
def test_center_crop_refuses_truncated_file_with_invalid_input(kind: str) -> None:
    with pytest.raises(InvalidInput, match="is cut off"):
        run(CenterCrop(), encode(kind, quarters())[:-1])


@pytest.mark.parametrize(
    ("op", "data", "reason"),
    [
        (CenterCrop(), b"", "an empty file came"),
        (CenterCrop(), b"no picture", "unknown type of file"),
        (CenterCrop(), png(20_000, 20_000, b""), "20000x20000 pixels came, at most 50000000"),
        (CenterCrop(max_bytes=50), encode("png", quarters()), "bytes came, at most 50 are taken"),
        (CenterCrop(max_pixels=50), encode("png", quarters()), "at most 50 pixels are taken"),
    ],
    ids=["empty", "text", "huge", "max-bytes", "max-pixels"],
)
def test_center_crop_refuses_unusable_files_with_invalid_input(
    op: CenterCrop, data: bytes, reason: str
) -> None:
    with pytest.raises(InvalidInput, match=reason):
        run(op, data)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        (b'{"crop": 224}', "crop: Unexpected keyword argument"),
        (b'{"size": [300, 200]}', "resize 256 leaves pictures smaller than the crop of 300x200"),
        (b'{"size": "big"}', "size: Input should be a valid tuple"),
        (b'{"resize": 0}', "resize: Input should be greater than 0"),
    ],
    ids=["unknown", "crop-too-large", "no-size", "no-resize"],
)
def test_wrong_parameters_are_refused(parameters: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        make_op(OPS, "center_crop", parameters, Path())
