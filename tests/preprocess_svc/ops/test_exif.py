"""The orientation is read from any EXIF block, and every orientation is turned upright."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess_svc.ops.exif import read_orientation, upright
from tests.preprocess_svc.ops.pictures import exif, quarters, stored


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_read_in_both_byte_orders(orientation: int, order: str) -> None:
    assert read_orientation(exif(orientation, order)) == orientation


def test_orientation_is_read_behind_an_exif_prefix() -> None:
    assert read_orientation(b"Exif\0\0" + exif(6)) == 6


@pytest.mark.parametrize(
    "block",
    [b"", b"II*\0", exif(0), exif(9), exif(6)[:20], b"XX" + exif(6)[2:], b"II*\0\xff\xff\xff\xff"],
    ids=["empty", "cut", "0", "9", "cut-in-entry", "no-order", "far-offset"],
)
def test_damaged_exif_means_upright(block: bytes) -> None:
    assert read_orientation(block) == 1


@given(order=st.sampled_from([b"II*\0", b"MM\0*"]), rest=st.binary(max_size=60))
def test_no_exif_block_makes_the_reader_fail(order: bytes, rest: bytes) -> None:
    assert 1 <= read_orientation(order + rest) <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(orientation: int) -> None:
    picture = quarters()
    assert np.array_equal(upright(stored(picture, orientation), orientation), picture)
