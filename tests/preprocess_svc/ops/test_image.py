"""Every kind of picture file becomes the same upright RGB pixels."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from mesh.errors import InvalidInput
from preprocess_svc.ops.image import (
    MAX_BYTES,
    MAX_PIXELS,
    choose_reduction,
    decode,
    resize,
    silence_opencv,
)
from preprocess_svc.ops.image_check import check_image
from preprocess_svc.ops.image_header import Header
from tests.preprocess_svc.ops.pictures import (
    BLUE,
    DATA,
    GREEN,
    KINDS,
    QUARTERS,
    RED,
    WHITE,
    Pixels,
    bmp,
    close,
    corners,
    encode,
    exif,
    png,
    png_chunk,
    quarters,
    stored,
    with_exif,
)

LOSSLESS = ["png", "webp", "bmp"]


def read(data: bytes, reduction: int = 1) -> Pixels:
    pixels = decode(data, check_image(data, MAX_BYTES, MAX_PIXELS), reduction)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2:] == (3,)
    return pixels


def rows(values: list[list[int]], depth: int = 8) -> bytes:
    return b"".join(b"\0" + np.array(row, f">u{depth // 8}").tobytes() for row in values)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_files_give_their_pixels(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)
    assert np.array_equal(read(encode(kind, noise)), noise)


@pytest.mark.parametrize("progressive", [0, 1], ids=["baseline", "progressive"])
def test_a_jpeg_gives_its_colours(progressive: int) -> None:
    pixels = read(encode("jpeg", quarters(), cv2.IMWRITE_JPEG_PROGRESSIVE, progressive))
    assert close(corners(pixels), QUARTERS)


@pytest.mark.parametrize("name", ["cmyk.jpg", "ycck.jpg"])
def test_a_cmyk_jpeg_gives_its_colours(name: str) -> None:
    assert close(corners(read((DATA / name).read_bytes())), QUARTERS)


@pytest.mark.parametrize("kind", ["jpeg", "png", "bmp"])
def test_grey_becomes_equal_red_green_and_blue(kind: str) -> None:
    pixels = read(encode(kind, np.full((16, 16), 90, np.uint8)))
    assert np.array_equal(pixels, np.full((16, 16, 3), 90))


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [(b"", [RED, GREEN]), (png_chunk(b"tRNS", b"\0"), [WHITE, GREEN])],
    ids=["opaque", "first-transparent"],
)
def test_a_palette_is_looked_up(extra: bytes, wanted: list[tuple[int, ...]]) -> None:
    palette = png_chunk(b"PLTE", bytes(RED + GREEN))
    data = png(2, 1, rows([[0, 1]]), colour=3, extra=palette + extra)
    assert read(data)[0].tolist() == [list(colour) for colour in wanted]


@pytest.mark.parametrize("colours", [1, 3], ids=["grey", "rgb"])
def test_sixteen_bits_are_scaled_to_eight(colours: int) -> None:
    levels = [level * 257 for level in (0, 1, 127, 254, 255) for _ in range(colours)]
    data = png(5, 1, rows([levels], 16), colour=colours - 1, depth=16)
    assert read(data)[0, :, 0].tolist() == [0, 1, 127, 254, 255]


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_alpha_is_composited_over_white(kind: str) -> None:
    rgba = np.array([[[*RED, 255], [*RED, 128], [*BLUE, 51], [9, 9, 9, 0]]], np.uint8)
    wanted = [RED, (255, 127, 127), (204, 204, 255), WHITE]
    assert close(read(encode(kind, rgba)), [wanted], 1)


@pytest.mark.parametrize(
    ("colour", "pixel"),
    [(4, [25700, 32768]), (6, [25700, 25700, 25700, 32768])],
    ids=["la", "rgba"],
)
def test_alpha_of_sixteen_bits_is_composited_over_white(colour: int, pixel: list[int]) -> None:
    assert close(read(png(1, 1, rows([pixel], 16), colour=colour, depth=16)), 177, 1)


def test_a_transparent_colour_becomes_white() -> None:
    data = png(2, 1, rows([[*RED, *BLUE]]), colour=2, extra=png_chunk(b"tRNS", b"\0\xff\0\0\0\0"))
    assert read(data)[0].tolist() == [list(WHITE), list(BLUE)]


def test_alpha_of_a_bmp_is_composited_over_white() -> None:
    masks = b"".join(mask.to_bytes(4, "little") for mask in (0xFF0000, 0xFF00, 0xFF, 0xFF000000))
    data = bmp(2, 1, 32, bytes([0, 0, 255, 0, 255, 0, 0, 255]), masks + bytes(68), pack=3)
    assert read(data)[0].tolist() == [list(WHITE), list(BLUE)]


def test_an_old_bmp_is_read() -> None:
    header = (12).to_bytes(4, "little") + bytes([1, 0, 1, 0, 1, 0, 24, 0])
    data = b"BM" + bytes(8) + (26).to_bytes(4, "little") + header + bytes([0, 0, 255, 0])
    assert read(data).tolist() == [[list(RED)]]


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_upright(kind: str, orientation: int) -> None:
    data = encode(kind, stored(quarters(), orientation))
    pixels = read(with_exif(kind, data, exif(orientation)))
    assert pixels.shape == (32, 48, 3)
    assert close(corners(pixels), QUARTERS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_those_of_opencv(orientation: int) -> None:
    data = with_exif("jpeg", encode("jpeg", quarters()), exif(orientation))
    turned = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert turned is not None
    assert np.array_equal(read(data), turned[..., ::-1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_one_pixel_is_read(kind: str) -> None:
    assert close(read(encode(kind, np.array([[RED]], np.uint8))), [[RED]])


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["rgb", "cmyk"])
def test_a_jpeg_is_decoded_smaller(name: str, reduction: int) -> None:
    cmyk = (DATA / "cmyk.jpg").read_bytes()
    data = encode("jpeg", quarters(32, 48)) if name == "rgb" else cmyk
    pixels = read(data, reduction)
    assert pixels.shape == (32 // reduction, 48 // reduction, 3)
    assert close(corners(pixels), QUARTERS, 6)


def test_sides_of_a_reduced_picture_are_rounded_up() -> None:
    assert read(encode("jpeg", quarters(33, 49)), 8).shape == (5, 7, 3)


@pytest.mark.parametrize(
    ("header", "scale", "reduction"),
    [
        (Header("JPEG", 800, 600, True), 1.5, 1),
        (Header("JPEG", 800, 600, True), 0.51, 1),
        (Header("JPEG", 800, 600, True), 0.5, 2),
        (Header("JPEG", 800, 600, True), 0.25, 4),
        (Header("JPEG", 800, 600, True), 0.01, 8),
        (Header("JPEG", 801, 600, True), 0.01, 8),
        (Header("JPEG", 804, 600, True, 6), 0.01, 4),
        (Header("JPEG", 801, 600, True, 6), 0.01, 1),
        (Header("PNG", 800, 600, True), 0.01, 1),
    ],
    ids=["grows", "above-half", "half", "quarter", "tiny", "uneven", "turned", "odd-turned", "png"],
)
def test_a_reduction_leaves_the_picture_no_smaller_than_wanted(
    header: Header, scale: float, reduction: int
) -> None:
    assert choose_reduction(header, scale) == reduction


@pytest.mark.parametrize(
    "data",
    [
        png(9, 9, bytes(50)),
        png(9, 9, b"").replace(b"IDAT", b"iDAT"),
        encode("webp", quarters())[:25] + bytes(60),
        png(2_000_000, 1, bytes(2_000_001)),
    ],
    ids=["png-too-few-rows", "png-without-pixels", "webp-of-zeros", "png-too-wide-for-opencv"],
)
def test_a_damaged_picture_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"image: (a damaged or unusual|this) (PNG|WebP)"):
        read(data)


def test_a_checksum_that_fails_is_refused() -> None:
    data = encode("png", quarters())
    at = data.index(b"IDAT") + 8
    damaged = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
    with pytest.raises(InvalidInput, match="a damaged or unusual PNG of"):
        read(damaged)


def test_a_size_other_than_that_of_the_header_is_refused() -> None:
    data = encode("png", quarters())
    with pytest.raises(InvalidInput, match="a damaged or unusual PNG of"):
        decode(data, Header("PNG", 47, 32, True))


def test_many_threads_decode_the_same_pixels() -> None:
    files = [encode(kind, quarters(200, 300)) for kind in KINDS] * 8
    with ThreadPoolExecutor(8) as pool:
        for pixels in pool.map(read, files):
            assert close(corners(pixels), QUARTERS)


def test_shrinking_averages_and_growing_interpolates() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.array_equal(resize(stripes, 16, 16), np.full((16, 16, 3), 100))
    grown = resize(np.array([[[0] * 3, [200] * 3]], np.uint8), 4, 1)
    assert grown[0, :, 0].tolist() == [0, 50, 150, 200]


@pytest.fixture
def log_level() -> Iterator[None]:
    level = cv2.utils.logging.getLogLevel()
    yield
    cv2.utils.logging.setLogLevel(level)


@pytest.mark.usefixtures("log_level")
def test_silenced_opencv_prints_nothing_about_a_damaged_picture(
    capfd: pytest.CaptureFixture[str],
) -> None:
    run_lengths_missing = bmp(64, 64, 8, b"\1", pack=1)
    silence_opencv()
    with pytest.raises(InvalidInput, match="a damaged or unusual BMP of 55 bytes"):
        read(run_lengths_missing)
    assert capfd.readouterr() == ("", "")
