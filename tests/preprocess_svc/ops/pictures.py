"""Picture files for tests, made without the code under test."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

DATA = Path(__file__).parent.parent / "data"
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
QUARTERS = (RED, GREEN, BLUE, WHITE)
KINDS = {"jpeg": ".jpg", "png": ".png", "webp": ".webp", "bmp": ".bmp"}


def quarters(height: int = 32, width: int = 48) -> Pixels:
    """Four colours: red, green above blue, white."""
    small = np.array(QUARTERS, np.uint8).reshape(2, 2, 3)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST))


def smooth(width: int, height: int) -> Pixels:
    """Colours without edges, which a JPEG and scaling change little."""
    small = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))


def corners(rgb: Pixels) -> list[tuple[int, ...]]:
    """Return the colours in the middles of the four quarters, read as lines."""
    height, width = rgb.shape[:2]
    places = [(y, x) for y in (height // 4, height * 3 // 4) for x in (width // 4, width * 3 // 4)]
    return [tuple(rgb[place].tolist()) for place in places]


def close(one: object, other: object, within: int = 4) -> bool:
    """Tell whether colours differ by no more than a lossy format makes them."""
    return bool(np.abs(np.asarray(one, np.int64) - np.asarray(other, np.int64)).max() <= within)


def encode(kind: str, rgb: Pixels, *parameters: int) -> bytes:
    """Return a file of one of KINDS; grey and RGBA arrays too."""
    if rgb.ndim == 3:
        rgb = rgb[..., [2, 1, 0, 3][: rgb.shape[2]]]
    return bytes(cv2.imencode(KINDS[kind], np.ascontiguousarray(rgb), parameters)[1])


def stored(upright: Pixels, orientation: int) -> Pixels:
    """Return the pixels that a viewer turns upright when a file names the orientation."""
    turns = {
        1: upright,
        2: np.fliplr(upright),
        3: np.rot90(upright, 2),
        4: np.flipud(upright),
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    return turns[orientation]


def exif(orientation: int, order: str = "<") -> bytes:
    """Return an EXIF block with a tag before and after the orientation."""
    entries = [(0x010F, 3, 1, 7), (0x0112, 3, 1, orientation), (0x0128, 3, 1, 2)]
    head = struct.pack(order + "2sHI", {"<": b"II", ">": b"MM"}[order], 42, 8)
    tags = b"".join(struct.pack(order + "HHIHxx", *entry) for entry in entries)
    return head + struct.pack(order + "H", len(entries)) + tags + bytes(4)


def with_exif(kind: str, data: bytes, block: bytes) -> bytes:
    """Return a JPEG, PNG or lossless WebP with an EXIF block in it."""
    if kind == "jpeg":
        return data[:2] + jpeg_segment(0xE1, b"Exif\0\0" + block) + data[2:]
    if kind == "png":
        return data[:33] + png_chunk(b"eXIf", block) + data[33:]
    bits = int.from_bytes(data[21:25], "little")
    sides = (bits & 0x3FFF, bits >> 14 & 0x3FFF)
    extended = bytes([8, 0, 0, 0]) + b"".join(side.to_bytes(3, "little") for side in sides)
    return riff(webp_chunk(b"VP8X", extended), data[12:], webp_chunk(b"EXIF", block))


def jpeg_segment(marker: int, content: bytes) -> bytes:
    """Return a marker with its content."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def riff(*chunks: bytes) -> bytes:
    """Return a WebP file of these chunks."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a WebP file."""
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def png_chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png(
    width: int, height: int, rows: bytes, *, colour: int = 0, depth: int = 8, extra: bytes = b""
) -> bytes:
    """Return a PNG; each of the rows begins with its filter, 0."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + png_chunk(b"IEND", b"")


def bmp(
    width: int, height: int, bits: int, pixels: bytes, rest: bytes = b"", pack: int = 0
) -> bytes:
    """Return a BMP with the header of 40 bytes and what may follow it."""
    header = struct.pack("<IiiHHIIiiII", 40 + len(rest), width, height, 1, bits, pack, *[0] * 5)
    offset = 14 + len(header + rest)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + header + rest + pixels
