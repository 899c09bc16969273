"""The orientation of a picture: read from EXIF, and undone."""

import struct

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""uint8[H, W, 3], RGB."""

_TAG = 0x0112
_UPRIGHT = {
    2: (False, 1),
    3: (False, -1),
    4: (False, 0),
    5: (True, None),
    6: (True, 1),
    7: (True, -1),
    8: (True, 0),
}  # orientation: (transpose first, then flip as cv2.flip counts)


def read_orientation(exif: bytes) -> int:
    """Return the orientation that an EXIF block names.

    Args:
        exif: a TIFF header and its first directory, with or without "Exif" and two zeros before.

    Returns:
        1..8; 1 (upright) also when the block is damaged or names none.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == _TAG:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        return 1  # viewers show a picture with damaged EXIF as it is stored
    return 1


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Return a stored picture as a viewer shows it.

    Args:
        pixels: uint8[H, W, 3].
        orientation: 1..8 as EXIF counts them.

    Returns:
        uint8[H, W, 3], or [W, H, 3] for orientations 5..8.
    """
    transposed, flip = _UPRIGHT.get(orientation, (False, None))
    if transposed:
        pixels = cv2.transpose(pixels)
    if flip is not None:
        pixels = cv2.flip(pixels, flip)
    return pixels
