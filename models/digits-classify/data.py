"""Pictures of handwritten digits, made from scikit-learn's 8x8 grey levels.

The last 360 digits are held out. The set lists one writer after another, so most of the held-out
writers are not in the training part.
"""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

FIRST_HELD_OUT = 1437
SIDE = 32
LABELS = [str(digit) for digit in range(10)]

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def split() -> tuple[tuple[Floats, Labels], tuple[Floats, Labels]]:
    """Return the training digits and the held-out digits.

    Returns:
        Two pairs of ink float32[N, 8, 8], 0..1, and labels int64[N], 0..9.
    """
    digits: Any = load_digits()
    ink = digits.images.astype(np.float32) / 16
    labels = digits.target.astype(np.int64)
    cut = FIRST_HELD_OUT
    return (ink[:cut], labels[:cut]), (ink[cut:], labels[cut:])


def coverage(ink: Floats, side: int, level: float = 0.5, slope: float = 1.0) -> Floats:
    """Scale one digit up smoothly; a steep slope turns grey levels into a pen stroke.

    Args:
        ink: float32[8, 8], 0..1.
        side: Side of the result in pixels, one empty cell of the 8x8 grid on each side included.
        level: Grey level that becomes half covered; lower gives thicker strokes.
        slope: Contrast around `level`.

    Returns:
        float32[side, side], 0 is paper and 1 is ink.
    """
    smooth = cv2.resize(np.pad(ink, 1), (side, side), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip((smooth - level) * slope + 0.5, 0, 1), np.float32)


def picture(ink: Floats, side: int = SIDE, level: float = 0.5, slope: float = 1.0) -> Image:
    """Draw one digit as dark ink on light paper: uint8[side, side, 3], RGB."""
    grey = np.rint(245 - 215 * coverage(ink, side, level, slope)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def held_out() -> tuple[Image, Labels]:
    """Return the held-out set as plain pictures: uint8[360, 32, 32, 3] and int64[360]."""
    _, (ink, labels) = split()
    return np.stack([picture(one) for one in ink]), labels


def held_out_distorted(seed: int = 1) -> tuple[Image, Labels]:
    """Return the held-out set with the distortions of training: the harder score."""
    _, (ink, labels) = split()
    rng = np.random.default_rng(seed)
    return np.stack([distorted(one, rng) for one in ink]), labels


def distorted(ink: Floats, rng: np.random.Generator) -> Image:
    """Draw one digit moved, turned, stretched, in another pen, on other paper, with noise.

    Args:
        ink: float32[8, 8], 0..1.
        rng: Source of every random choice.

    Returns:
        uint8[32, 32, 3], RGB.
    """
    strokes = coverage(ink, 64, rng.uniform(0.3, 0.6), float(np.exp(rng.uniform(0, 1.6))))
    moved = cv2.warpAffine(strokes, _placement(rng), (SIDE, SIDE), flags=cv2.INTER_AREA)
    if rng.random() < 0.3:
        moved = cv2.GaussianBlur(moved, (0, 0), rng.uniform(0.3, 1.0))
    return _inked(moved.astype(np.float32), rng)


def _placement(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the affine 2x3 matrix from the 64x64 drawing to the picture."""
    angle, shear = np.deg2rad(rng.uniform(-15, 15)), rng.uniform(-0.15, 0.15)
    height = rng.uniform(0.5, 1.15) * SIDE / 64
    width = height * rng.uniform(0.75, 1.15)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) @ np.diag([width, height])
    room = max(0.0, (SIDE - 64 * height * 0.8) / 2)
    centre = SIDE / 2 + rng.uniform(-room, room, 2)
    return np.column_stack([matrix, centre - matrix @ np.array([32.0, 32.0])])


def _inked(strokes: Floats, rng: np.random.Generator) -> Image:
    """Blend a pen colour over shaded paper; one picture in five is light on dark."""
    paper, pen = rng.uniform(150, 255) + rng.uniform(-15, 15, 3), rng.uniform(0, 110, 3)
    if rng.random() < 0.2:
        paper, pen = pen * 0.7, paper
    ramp = np.linspace(-1, 1, SIDE)
    shade = rng.uniform(-20, 20) * ramp[:, None] + rng.uniform(-20, 20) * ramp[None, :]
    cover = strokes[:, :, None]
    page = (1 - cover) * (paper + shade[:, :, None]) + cover * pen
    page = page + rng.normal(0, rng.uniform(0, 10), page.shape)
    return np.clip(page, 0, 255).astype(np.uint8)
