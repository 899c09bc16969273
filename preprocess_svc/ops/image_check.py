"""Whether a picture file can be decoded: its type, its size and its limits."""

import re
import struct
from collections.abc import Callable

from mesh.errors import InvalidInput
from preprocess_svc.ops.image_header import Header, read_bmp, read_jpeg, read_png, read_webp

_WANTED = "wanted a JPEG, a PNG, a WebP or a BMP with one picture"
_PARSERS: tuple[tuple[re.Pattern[bytes], Callable[[bytes], Header]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), read_jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), read_png),
    (re.compile(rb"(?s)RIFF....WEBP"), read_webp),
    (re.compile(rb"(?s)BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"), read_bmp),
)
_OTHERS = (
    (re.compile(rb"GIF8"), "a GIF"),
    (re.compile(rb"II\*\0|MM\0\*"), "a TIFF"),
    (re.compile(rb"(?s)....ftypavi"), "an AVIF"),
    (re.compile(rb"(?s)....ftyp(hei|hev|mif)"), "a HEIC"),
    (re.compile(rb"%PDF"), "a PDF"),
    (re.compile(rb"(?i)\s*<(svg|\?xml|!doctype|html)"), "an SVG or a web page"),
)


def check_image(data: bytes, max_bytes: int, max_pixels: int) -> Header:
    """Tell from its header whether a file can be decoded; allocates nothing for pixels.

    Args:
        data: one JPEG, PNG, WebP or BMP file.
        max_bytes: limit of the file.
        max_pixels: limit of width times height.

    Raises:
        InvalidInput: over a limit, cut off, animated, or another type of file.
    """
    if len(data) > max_bytes:
        raise InvalidInput(f"image: {len(data)} bytes came, at most {max_bytes} are taken")
    header = _read_header(data)
    came = f"a {header.kind} of {header.width}x{header.height} pixels"
    if header.width * header.height > max_pixels:
        raise InvalidInput(f"image: {came} came, at most {max_pixels} pixels are taken")
    if not header.complete:
        raise InvalidInput(f"image: {came} came that is cut off: it has only {len(data)} bytes")
    if header.animated:
        raise InvalidInput(f"image: {came} came that is animated, {_WANTED}")
    if header.width < 1 or header.height < 1:
        raise InvalidInput(f"image: {came} came, wanted 1x1 or more")
    return header


def _read_header(data: bytes) -> Header:
    parse = next((parse for magic, parse in _PARSERS if magic.match(data)), None)
    if parse is None:
        raise InvalidInput(f"image: {_name(data)} came, {_WANTED}")
    try:
        return parse(data)
    except struct.error as err:
        raise InvalidInput(
            f"image: a file came that is cut off in its header ({len(data)} bytes), {_WANTED}"
        ) from err


def _name(data: bytes) -> str:
    if not data:
        return "an empty file"
    known = (name for magic, name in _OTHERS if magic.match(data, 0, 64))
    return next(known, f"an unknown type of file (it begins with {data[:12]!r})")
