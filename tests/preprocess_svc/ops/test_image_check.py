"""Files that cannot be used are refused by their header, each with its own reason."""

import struct
import tracemalloc

import numpy as np
import pytest

from mesh.errors import InvalidInput
from preprocess_svc.ops.image import MAX_BYTES, MAX_PIXELS
from preprocess_svc.ops.image_check import check_image
from tests.preprocess_svc.ops.pictures import (
    DATA,
    KINDS,
    bmp,
    encode,
    jpeg_segment,
    png,
    png_chunk,
    quarters,
    riff,
    webp_chunk,
)

HUGE_PNG = png(20_000, 20_000, b"")
HUGE = {
    "png": HUGE_PNG,
    "png-header-only": HUGE_PNG[:33],
    "jpeg": b"\xff\xd8" + jpeg_segment(0xC0, struct.pack(">BHHB", 8, 20_000, 20_000, 3)),
    "webp": riff(webp_chunk(b"VP8X", bytes(4) + (19_999).to_bytes(3, "little") * 2)),
    "bmp": bmp(20_000, -20_000, 24, b""),
}


def refusal(data: bytes, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(InvalidInput) as refused:
        check_image(data, max_bytes, max_pixels)
    return str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_passes_at_its_limits_and_is_refused_below(kind: str) -> None:
    data = encode(kind, quarters())
    assert check_image(data, len(data), 48 * 32).upright_size == (48, 32)
    assert f"{len(data)} bytes came, at most {len(data) - 1}" in refusal(data, len(data) - 1)
    assert "48x32 pixels came, at most 1535 pixels" in refusal(data, max_pixels=48 * 32 - 1)


@pytest.mark.parametrize("data", HUGE.values(), ids=HUGE.keys())
def test_a_huge_picture_is_refused_without_an_allocation(data: bytes) -> None:
    tracemalloc.start()
    text = refusal(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "20000x20000 pixels came, at most 50000000 pixels are taken" in text
    assert peak < 100_000


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file came"),
        (b"hello, this is text", "unknown type of file (it begins with b'hello, this ')"),
        (b"BMW builds cars, and motorcycles", "unknown type of file"),
        (b"GIF89a" + bytes(20), "a GIF came, wanted a JPEG, a PNG, a WebP or a BMP"),
        (b"II*\0" + bytes(20), "a TIFF came"),
        (b"MM\0*" + bytes(20), "a TIFF came"),
        (b"\0\0\0\x1cftypavif" + bytes(20), "an AVIF came"),
        (b"\0\0\0\x1cftypheic" + bytes(20), "a HEIC came"),
        (b"%PDF-1.7", "a PDF came"),
        (b"\n <svg xmlns=", "an SVG or a web page came"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "unknown type of file"),
        (b"\xff\xd8\xff", "0x0 pixels came that is cut off: it has only 3 bytes"),
        (HUGE_PNG[:20], "a file came that is cut off in its header (20 bytes)"),
        ((DATA / "animated.webp").read_bytes(), "a WebP of 48x32 pixels came that is animated"),
        (
            png(1, 1, b"\0\1", extra=png_chunk(b"acTL", bytes(8))),
            "a PNG of 1x1 pixels came that is",
        ),
        (bmp(0, 5, 24, b""), "a BMP of 0x5 pixels came, wanted 1x1 or more"),
        (bmp(-5, 5, 24, b""), "a BMP of -5x5 pixels came, wanted 1x1 or more"),
    ],
    ids=[
        *("empty", "text", "text-like-bmp", "gif", "tiff-little", "tiff-big", "avif", "heic"),
        *("pdf", "svg", "wav", "jpeg-start", "png-start", "animated-webp", "animated-png"),
        *("no-width", "negative-width"),
    ],
)
def test_another_file_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    assert reason in refusal(data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused_wherever_it_is_cut(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    data = encode(kind, noise)
    for end in (len(data) - 1, len(data) - 2, len(data) - 13, len(data) * 2 // 3, len(data) // 2):
        text = refusal(data[:end])
        assert f"50x40 pixels came that is cut off: it has only {end} bytes" in text
