"""Pages with handwritten digits at known places, drawn over photos and paper.

Digits and photos are scikit-learn's. Held-out pages show only digits from the held-out part (the
last 360, as in `digits-classify`) over parts of the photos that no training page shows.
"""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import backdrop
import cv2
import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

FIRST_HELD_OUT = 1437
SIDE = 320
SMALLEST, LARGEST = 20, 120
MOST = 10
LABELS = [str(digit) for digit in range(10)]

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Page:
    """A picture and what is written on it."""

    pixels: Image
    """uint8[H, W, 3], RGB."""
    boxes: Floats
    """float32[M, 4]: left, top, right, bottom in pixels."""
    labels: Labels
    """int64[M], 0..9, in the order of the boxes."""


@dataclass(frozen=True)
class Source:
    """What one side of the split draws its pages from."""

    ink: Floats
    """float32[N, 8, 8], 0..1."""
    labels: Labels
    """int64[N], 0..9."""
    photos: list[Image]
    """uint8[H, W, 3], RGB."""


@dataclass(frozen=True)
class Pen:
    """How one digit is drawn."""

    height: float
    """Height of the 8x8 grid in pixels."""
    aspect: float = 0.85
    """Width of a grid cell over its height."""
    angle: float = 0.0
    """Degrees."""
    level: float = 0.45
    """Grey level where the stroke ends; lower is thicker."""
    sharpness: float = 0.8
    """Change of cover per pixel at the edge of the stroke."""


def photos() -> list[Image]:
    """Return scikit-learn's two sample photos: uint8[427, 640, 3], RGB."""
    folder = Path(str(files("sklearn.datasets") / "images"))
    names = ("china.jpg", "flower.jpg")
    return [np.asarray(cv2.imread(str(folder / name)), np.uint8)[:, :, ::-1] for name in names]


def split() -> tuple[Source, Source]:
    """Return the sources of the training pages and of the held-out pages."""
    digits = load_digits()
    ink, labels = digits.images.astype(np.float32) / 16, digits.target.astype(np.int64)
    left = [photo[:, :400].copy() for photo in photos()]
    right = [photo[:, 400:].copy() for photo in photos()]
    cut = FIRST_HELD_OUT
    return Source(ink[:cut], labels[:cut], left), Source(ink[cut:], labels[cut:], right)


def held_out(pages: int) -> list[Page]:
    """Return held-out pages, always the same ones: each uint8[320, 320, 3]."""
    _, source = split()
    return [page(source, np.random.default_rng([7, index])) for index in range(pages)]


def page(source: Source, rng: np.random.Generator) -> Page:
    """Draw one page of 320x320 with up to ten digits."""
    canvas, (left, top, right, bottom) = backdrop.draw(source.photos, SIDE, rng)
    boxes: list[list[float]] = []
    labels: list[int] = []
    for _ in range(rng.integers(1, MOST + 1)):
        which = int(rng.integers(len(source.ink)))
        cover = strokes(source.ink[which], _pen(rng))
        height, width = cover.shape
        if width + 8 > right - left or height + 8 > bottom - top:
            continue
        x, y = rng.integers(left + 4, right - width - 3), rng.integers(top + 4, bottom - height - 3)
        box = [float(x), float(y), float(x + width), float(y + height)]
        if any(_near(box, other) for other in boxes):
            continue
        write(canvas, cover, (int(x), int(y)), rng)
        boxes.append(box)
        labels.append(int(source.labels[which]))
    pixels = backdrop.worn(canvas, rng)
    found = np.array(boxes, np.float32).reshape(-1, 4)
    return Page(pixels, found, np.array(labels, np.int64))


def strokes(ink: Floats, pen: Pen) -> Floats:
    """Draw one digit, cut to its own box: float32[H, W], 0 is paper and 1 is ink."""
    cell = pen.height / 8
    side = int(np.ceil(13 * cell))
    smooth = cv2.resize(np.pad(ink, 1), (160, 160), interpolation=cv2.INTER_CUBIC)
    angle = np.deg2rad(pen.angle)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag([pen.aspect, 1.0]) * cell / 16
    shift = side / 2 - matrix @ np.array([80.0, 80.0])
    field = cv2.warpAffine(smooth, np.column_stack([matrix, shift]), (side, side))
    slope = max(1.0, pen.sharpness * cell)
    cover = np.asarray(np.clip((field - pen.level) * slope + 0.5, 0, 1), np.float32)
    rows, columns = np.nonzero(cover > 0.5)
    return cover[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def write(canvas: Floats, cover: Floats, at: tuple[int, int], rng: np.random.Generator) -> None:
    """Blend a digit into float32[H, W, 3] pixels, on a paper note where it would not be legible."""
    (x, y), (height, width) = at, cover.shape
    around = canvas[y : y + height, x : x + width].mean(axis=2)
    if around.std() > 30 or rng.random() < 0.25:
        backdrop.note(canvas, (x, y, x + width, y + height), rng)
    patch = canvas[y : y + height, x : x + width]
    pen = _contrasting(float(patch.mean()), rng)
    patch += cover[:, :, None] * rng.uniform(0.85, 1.0) * (pen - patch)


def _contrasting(paper: float, rng: np.random.Generator) -> Floats:
    while True:
        pen = rng.uniform(0, 255, 3)
        if abs(float(pen.mean()) - paper) > 75:
            return pen.astype(np.float32)


def _pen(rng: np.random.Generator) -> Pen:
    return Pen(
        height=float(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST)))),
        aspect=rng.uniform(0.65, 1.05),
        angle=rng.uniform(-14, 14),
        level=rng.uniform(0.3, 0.55),
        sharpness=rng.uniform(0.15, 1.0),
    )


def _near(box: list[float], other: list[float]) -> bool:
    # Wide enough for the note under either digit.
    gap = 5 + 0.3 * max(box[3] - box[1], other[3] - other[1])
    return (
        box[0] < other[2] + gap
        and other[0] < box[2] + gap
        and box[1] < other[3] + gap
        and other[1] < box[3] + gap
    )
