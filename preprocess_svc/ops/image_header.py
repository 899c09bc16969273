"""What a JPEG, PNG, WebP or BMP file says of itself, read without decoding it.

The functions take a whole file whose first bytes are known to be of their type. They raise
`struct.error` when it ends inside its header, and give a size of 0 when there is none.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from preprocess_svc.ops.exif import read_orientation

_MARKER = re.compile(rb"\xff([\x01-\xfe])")
_EXIF, _SCAN = 0xE1, 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xDA)}
_END_OF_IMAGE = b"\xff\xd9"
# A real file has some thousands of parts and no gaps; 20 MB of either would take seconds.
_MAX_PARTS, _MAX_GAP = 100_000, 2**16


@dataclass(frozen=True)
class Header:
    """Type, size and flags of a picture file."""

    kind: str
    """JPEG, PNG, WebP or BMP."""
    width: int
    """Pixels as stored, before the orientation is applied."""
    height: int
    """Pixels as stored, before the orientation is applied."""
    complete: bool
    """False: the file ends before the picture does."""
    orientation: int = 1
    """1..8 as EXIF counts them; 1 is upright."""
    alpha: bool = False
    """True: pixels may be transparent."""
    animated: bool = False
    """True: more than one picture."""

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height in pixels as a viewer shows them."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_jpeg(data: bytes) -> Header:
    """Read the segments in front of the first scan, and look for the end marker."""
    width, height, orientation, scan = 0, 0, 1, len(data)
    for marker, start, end in _jpeg_segments(data):
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, start + 1)
        elif marker == _EXIF and data.startswith(b"Exif\0\0", start):
            orientation = read_orientation(data[start:end])
        elif marker == _SCAN:
            scan = end
            break
    # Only behind the start of the scan: a thumbnail in the header has an end of its own.
    complete = data.rfind(_END_OF_IMAGE, scan) >= 0
    return Header("JPEG", width, height, complete, orientation)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    at = 2
    for _ in range(_MAX_PARTS):
        match = _MARKER.search(data, at, at + _MAX_GAP)
        if match is None or match.end() + 2 > len(data):
            return
        marker, at = match[1][0], match.end()
        if marker not in _ALONE:
            (length,) = struct.unpack_from(">H", data, at)
            yield marker, at + 2, at + length
            at += length


def read_png(data: bytes) -> Header:
    """Read the chunks from IHDR to IEND."""
    width, height, _, colour = struct.unpack_from(">IIBB", data, 16)
    orientation, alpha, animated, complete = 1, colour in (4, 6), False, False
    for name, start, end in _png_chunks(data):
        if name == b"IEND":
            complete = end <= len(data)
            break
        if name == b"eXIf":
            orientation = read_orientation(data[start:end])
        alpha |= name == b"tRNS" and colour != 0  # OpenCV ignores a transparent grey level
        animated |= name == b"acTL"
    return Header("PNG", width, height, complete, orientation, alpha, animated)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    at = 8
    for _ in range(_MAX_PARTS):
        if at + 8 > len(data):
            return
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        yield name, at + 8, end  # with its checksum
        at = end


def read_webp(data: bytes) -> Header:
    """Read the first chunk, which tells the format, and the EXIF chunk of an extended file."""
    size, first = struct.unpack_from("<I4x4s", data, 4)
    complete = len(data) >= 8 + size
    if first == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("WebP", width & 0x3FFF, height & 0x3FFF, complete)
    if first == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        return Header("WebP", width, height, complete, alpha=bool(bits >> 28 & 1))
    if first != b"VP8X":
        return Header("WebP", 0, 0, complete)
    flags, wide, high = struct.unpack_from("<I3s3s", data, 20)
    width, height = (1 + int.from_bytes(side, "little") for side in (wide, high))
    orientation = read_orientation(_webp_exif(data))
    alpha, animated = bool(flags & 0x10), bool(flags & 0x02)
    return Header("WebP", width, height, complete, orientation, alpha, animated)


def _webp_exif(data: bytes) -> bytes:
    at = 12
    for _ in range(_MAX_PARTS):
        if at + 8 > len(data):
            break
        name, length = struct.unpack_from("<4sI", data, at)
        if name == b"EXIF":
            return data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return b""


def read_bmp(data: bytes) -> Header:
    """Read the file header and the size, depth and packing behind it."""
    offset, header_size = struct.unpack_from("<II", data, 10)
    if header_size == 12:
        width, height, bits = struct.unpack_from("<HH2xH", data, 18)
        packing = 0
    else:
        width, height, bits, packing = struct.unpack_from("<ii2xHI", data, 18)
    height = abs(height)  # below 0: the rows are stored from the top
    row = (width * bits + 31) // 32 * 4
    packed = packing in (1, 2)  # run lengths: only decoding shows where they end
    complete = packed or len(data) >= offset + row * height
    return Header("BMP", width, height, complete, alpha=bits == 32 and header_size >= 56)
