"""Headers give the size, the orientation and the flags of a file, and tell a cut file."""

import struct
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess_svc.ops.image_header import Header, read_bmp, read_jpeg, read_png, read_webp
from tests.preprocess_svc.ops.pictures import (
    DATA,
    KINDS,
    bmp,
    encode,
    exif,
    jpeg_segment,
    png,
    png_chunk,
    quarters,
    riff,
    webp_chunk,
    with_exif,
)

READERS: dict[str, Callable[[bytes], Header]] = {
    "jpeg": read_jpeg,
    "png": read_png,
    "webp": read_webp,
    "bmp": read_bmp,
}
FILES = {kind: encode(kind, quarters()) for kind in KINDS}
LOSSY_WEBP = encode("webp", quarters(), 64, 80)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(width=st.integers(1, 300), height=st.integers(1, 300))
def test_size_is_that_of_the_picture(kind: str, width: int, height: int) -> None:
    header = READERS[kind](encode(kind, np.zeros((height, width, 3), np.uint8)))
    assert (header.width, header.height) == (width, height)
    assert header.kind.lower() == kind
    assert header.complete
    assert (header.orientation, header.alpha, header.animated) == (1, False, False)


def test_size_of_a_lossy_webp_is_read() -> None:
    assert LOSSY_WEBP[12:16] == b"VP8 "
    header = read_webp(LOSSY_WEBP)
    assert (header.width, header.height, header.complete) == (48, 32, True)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_size_follows_the_orientation(kind: str, orientation: int) -> None:
    header = READERS[kind](with_exif(kind, FILES[kind], exif(orientation)))
    assert header.orientation == orientation
    assert header.upright_size == ((48, 32) if orientation < 5 else (32, 48))
    assert header.complete


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_never_complete(kind: str) -> None:
    for end in range(16, len(FILES[kind])):
        try:
            assert not READERS[kind](FILES[kind][:end]).complete, end
        except struct.error:
            assert end < 200  # inside the header


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_behind_the_end_are_ignored(kind: str) -> None:
    assert READERS[kind](FILES[kind] + b"IEND" + bytes(40)).complete


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_no_bytes_make_a_reader_fail_with_anything_but_a_cut_header(
    kind: str, data: st.DataObject
) -> None:
    file = bytearray(FILES[kind])
    spots = st.tuples(st.integers(8, min(len(file), 200) - 1), st.integers(0, 255))
    for at, value in data.draw(st.lists(spots, max_size=8)):
        file[at] = value
    with suppress(struct.error):
        READERS[kind](bytes(file[: data.draw(st.integers(0, len(file)))]))


def test_the_end_of_an_embedded_thumbnail_does_not_complete_a_jpeg() -> None:
    with_thumbnail = FILES["jpeg"][:2] + jpeg_segment(0xE1, FILES["jpeg"]) + FILES["jpeg"][2:]
    assert read_jpeg(with_thumbnail).complete
    assert not read_jpeg(with_thumbnail[:-2]).complete


def test_fill_bytes_before_a_jpeg_marker_are_skipped() -> None:
    assert read_jpeg(FILES["jpeg"][:2] + b"\xff" * 9 + FILES["jpeg"][2:]).width == 48


@pytest.mark.parametrize(
    ("data", "alpha"),
    [
        (encode("png", np.zeros((2, 2, 4), np.uint8)), True),
        (encode("webp", np.zeros((2, 2, 4), np.uint8)), True),
        (png(1, 1, b"\0\1\2\3", colour=2, extra=png_chunk(b"tRNS", bytes(6))), True),
        (png(1, 1, b"\0\1", extra=png_chunk(b"tRNS", bytes(2))), False),
        (bmp(1, 1, 32, bytes(4), bytes(84)), True),
        (bmp(1, 1, 32, bytes(4)), False),
    ],
    ids=["png", "webp", "png-colour", "png-grey", "bmp-with-masks", "bmp"],
)
def test_alpha_is_seen_where_it_is_taken_into_account(data: bytes, alpha: bool) -> None:
    reader = {b"\x89": read_png, b"R": read_webp, b"B": read_bmp}[data[:1]]
    assert reader(data).alpha is alpha


def test_animations_are_seen() -> None:
    assert read_webp((DATA / "animated.webp").read_bytes()).animated
    assert read_png(png(1, 1, b"\0\1", extra=png_chunk(b"acTL", bytes(8)))).animated


def test_a_bmp_stored_from_the_top_has_a_height_above_0() -> None:
    assert read_bmp(bmp(2, -3, 24, bytes(24))).height == 3


def test_a_webp_without_a_picture_has_no_size() -> None:
    header = read_webp(riff(webp_chunk(b"ICCP", bytes(9))))
    assert (header.width, header.height) == (0, 0)


@pytest.mark.parametrize(
    ("reader", "data"),
    [
        (read_jpeg, b"\xff\xd8" + b"\xff" * 20_000_000),
        (read_jpeg, b"\xff\xd8" + b"\xff\xe0\0\2" * 5_000_000),
        (read_png, png(1, 1, b"", extra=bytes(20_000_000))),
        (read_webp, riff(webp_chunk(b"VP8X", bytes(10)), bytes(20_000_000))),
    ],
    ids=["jpeg-fill", "jpeg-segments", "png-chunks", "webp-chunks"],
)
def test_twenty_megabytes_of_empty_parts_are_read_quickly(
    reader: Callable[[bytes], Header], data: bytes
) -> None:
    began = time.process_time()
    reader(data)
    assert time.process_time() - began < 0.5
