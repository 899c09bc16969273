"""A picture file to upright RGB pixels, and pixels to another size."""

import cv2
import numpy as np

from mesh.errors import InvalidInput
from preprocess_svc.ops.exif import Pixels, upright
from preprocess_svc.ops.image_header import Header

MAX_BYTES = 20 * 2**20
"""Default limit of a file."""
MAX_PIXELS = 50_000_000
"""Default limit of a picture. Decoding it takes up to 0.3 GB, of a 16-bit PNG with alpha 0.9 GB."""

_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def choose_reduction(header: Header, scale: float) -> int:
    """Return the factor 1, 2, 4 or 8 by which a JPEG can be decoded smaller.

    Args:
        header: of the file.
        scale: wanted pixels per pixel of the picture.

    Returns:
        The largest factor that leaves the picture no smaller than wanted; 1 for other types. The
        sides of an upright picture need not be multiples of it: the reduced picture then reaches
        over the right and the lower edge by less than one of its pixels. Turning would bring this
        surplus to the other edges and shift the picture, so turned ones get a factor without any.
    """
    if header.kind != "JPEG":
        return 1
    uneven_allowed = header.orientation == 1
    fits = (
        k
        for k in (8, 4, 2)
        if k * scale <= 1 and (uneven_allowed or header.width % k == header.height % k == 0)
    )
    return next(fits, 1)


def decode(data: bytes, header: Header, reduction: int = 1) -> Pixels:
    """Decode a file that `check_image` has let pass. Other threads run meanwhile.

    Grey, palette, CMYK and YCCK become RGB; 16 bits are scaled to 8; alpha is composited over
    white; the EXIF orientation of a JPEG, PNG or WebP is undone. Ignored are colour profiles, and
    the one transparent level that a grey PNG may name.

    Args:
        data: the file.
        header: of the file.
        reduction: as `choose_reduction` returns.

    Returns:
        uint8[H, W, 3], RGB, upright; its sides are those of the picture divided by `reduction`,
        rounded up.

    Raises:
        InvalidInput: the file is damaged. Damage inside a JPEG, a BMP or a lossless WebP is seldom
            noticed: these have no checksums.
    """
    flags = cv2.IMREAD_UNCHANGED if header.alpha else _REDUCED[reduction]
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as err:
        raise InvalidInput(f"image: this {header.kind} cannot be decoded: {err.err}") from err
    wanted = (-(-header.height // reduction), -(-header.width // reduction))
    if image is None or image.shape[:2] != wanted:
        raise InvalidInput(f"image: a damaged or unusual {header.kind} of {len(data)} bytes came")
    return upright(_to_rgb(image), header.orientation)


def _to_rgb(image: Pixels) -> Pixels:
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image, alpha=1 / 257)
    if image.shape[2] == 4:
        return _over_white(image)
    rgb: Pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return rgb


def _over_white(bgra: Pixels) -> Pixels:
    alpha = cv2.extractChannel(bgra, 3)
    missing = cv2.bitwise_not(cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGB))
    missing = cv2.multiply(missing, cv2.merge([alpha] * 3), dst=missing, scale=1 / 255)
    rgb: Pixels = cv2.bitwise_not(missing)
    return rgb


def resize(pixels: Pixels, width: int, height: int) -> Pixels:
    """Scale a picture: by area when it shrinks, bilinear when it grows.

    Args:
        pixels: uint8[H, W, 3].
        width: wanted, 1 or more.
        height: wanted, 1 or more.

    Returns:
        uint8[height, width, 3].
    """
    shrinks = width * height < pixels.shape[0] * pixels.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    scaled: Pixels = cv2.resize(pixels, (width, height), interpolation=method)
    return scaled


def silence_opencv() -> None:
    """Keep OpenCV's own messages about damaged files off stderr, for the whole process.

    The lines that libpng and libjpeg print themselves cannot be switched off from Python.
    """
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
