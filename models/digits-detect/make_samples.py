"""Write `samples/page.jpg`, and the same page stored on its side as `samples/rotated.jpg`."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import data
import numpy as np

FOLDER = Path(__file__).parent / "samples"
WIDTH, HEIGHT = 1280, 960
# Big-endian TIFF with one entry: orientation 6, "turn me clockwise to look at me".
EXIF = (
    b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x01"
    b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
)


@dataclass(frozen=True)
class Writing:
    """One digit on the sample page."""

    digit: int
    nth: int
    """Which of the held-out examples of this digit."""
    at: tuple[int, int]
    """Left and top in pixels."""
    height: int
    """Pixels."""
    angle: float
    pen: tuple[int, int, int]
    paper: tuple[int, int, int] | None = None
    """Colour of the note under it; none writes on the photo."""


NAVY, RED, GREEN, INK = (24, 38, 92), (176, 32, 40), (20, 92, 60), (36, 36, 44)
YELLOW, PINK, MINT, WHITE = (252, 232, 130), (250, 196, 206), (196, 238, 214), (246, 244, 238)

WRITINGS = [
    Writing(3, 5, (70, 40), 170, -5, NAVY),
    Writing(8, 5, (500, 40), 120, 4, GREEN),
    Writing(2, 6, (740, 110), 150, -6, INK),
    Writing(5, 7, (1020, 80), 240, 6, RED),
    Writing(7, 18, (110, 440), 190, -4, NAVY, YELLOW),
    Writing(4, 5, (1020, 480), 170, 5, INK, PINK),
    Writing(0, 10, (330, 740), 130, 2, RED, WHITE),
    Writing(6, 8, (640, 720), 160, -7, GREEN, MINT),
    Writing(9, 5, (930, 770), 110, 3, NAVY, WHITE),
]


def draw() -> data.Image:
    """Draw the sample page: uint8[960, 1280, 3], RGB."""
    photo = data.photos()[0]
    wide = cv2.resize(photo, (1440, HEIGHT), interpolation=cv2.INTER_CUBIC)
    canvas = wide[:, 80 : 80 + WIDTH].astype(np.float32)
    for writing in WRITINGS:
        _write(canvas, writing)
    grain = np.random.default_rng(0).normal(0, 2, canvas.shape)
    return np.asarray(np.clip(canvas + grain, 0, 255), np.uint8)


def _write(canvas: data.Floats, writing: Writing) -> None:
    _, source = data.split()
    ink = source.ink[source.labels == writing.digit][writing.nth]
    pen = data.Pen(writing.height, aspect=0.95, angle=writing.angle, sharpness=0.5)
    cover = data.strokes(ink, pen)
    (x, y), (height, width) = writing.at, cover.shape
    if writing.paper:
        side, middle = 1.45 * max(height, width), (x + width / 2, y + height / 2)
        shadow = (middle[0] + 7, middle[1] + 9)
        _lay(canvas, shadow, side, writing.angle, (30, 30, 30), 0.45, 8)
        _lay(canvas, middle, side, writing.angle, writing.paper, 1.0, 1)
    patch = canvas[y : y + height, x : x + width]
    patch += cover[:, :, None] * 0.95 * (np.array(writing.pen, np.float32) - patch)


def _lay(
    canvas: data.Floats,
    middle: tuple[float, float],
    side: float,
    angle: float,
    colour: tuple[int, int, int],
    strength: float,
    blur: float,
) -> None:
    """Lay a square slip, or the shadow of one, on the canvas."""
    corners = cv2.boxPoints((middle, (side, side), angle))
    mask = np.zeros(canvas.shape[:2], np.float32)
    cv2.fillConvexPoly(mask, np.rint(corners).astype(np.int32), strength)
    mask = np.asarray(cv2.GaussianBlur(mask, (0, 0), blur))
    canvas += mask[:, :, None] * (np.array(colour, np.float32) - canvas)


def jpeg(pixels: data.Image) -> bytes:
    """Encode uint8[H, W, 3], RGB."""
    bgr = np.ascontiguousarray(pixels[:, :, ::-1])
    _, blob = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return blob.tobytes()


def on_its_side(pixels: data.Image) -> bytes:
    """Encode a page turned counterclockwise, with the Exif mark that undoes the turn."""
    blob = jpeg(np.rot90(pixels))
    segment = b"\xff\xe1" + (len(EXIF) + 2).to_bytes(2, "big") + EXIF
    return blob[:2] + segment + blob[2:]


def main() -> None:
    """Write both files."""
    page = draw()
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "page.jpg").write_bytes(jpeg(page))
    (FOLDER / "rotated.jpg").write_bytes(on_its_side(page))


if __name__ == "__main__":
    main()
