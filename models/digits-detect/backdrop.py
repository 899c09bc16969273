"""What lies under the digits: photos, paper, notes, marks that are no digits."""

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Area = tuple[int, int, int, int]

LETTER_BAR = 114
# Letters that no digit looks like.
LETTERS = "AEFHKMNPRTVWXYaehkmnrtwx"


def draw(photos: list[Image], side: int, rng: np.random.Generator) -> tuple[Floats, Area]:
    """Draw a background.

    Args:
        photos: uint8[H, W, 3] pictures to cut from.
        side: Side of the result in pixels.
        rng: Source of every random choice.

    Returns:
        Pixels float32[side, side, 3], RGB, 0..255, and the area to write in: left, top, right,
        bottom. Outside of it lie the grey bars of a letterboxed picture.
    """
    photo = photos[int(rng.integers(len(photos)))]
    canvas = _photo(photo, side, rng) if rng.random() < 0.6 else _paper(side, rng)
    if rng.random() < 0.5:
        _marks(canvas, rng)
    return canvas, _bars(canvas, rng)


def worn(canvas: Floats, rng: np.random.Generator) -> Image:
    """Return pixels as a camera would store them: blurred, noisy, compressed."""
    if rng.random() < 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 1.1)).astype(np.float32)
    if rng.random() < 0.5:
        noise = rng.standard_normal(canvas.shape, np.float32)
        canvas = canvas + noise * np.float32(rng.uniform(1, 9))
    pixels = np.clip(canvas, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        quality = int(rng.integers(40, 95))
        _, blob = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        pixels = np.asarray(cv2.imdecode(blob, cv2.IMREAD_COLOR), np.uint8)
    return pixels


def note(canvas: Floats, box: Area, rng: np.random.Generator) -> None:
    """Lay a slip of paper under a box, in place."""
    margin = rng.uniform(0.05, 0.25) * (box[3] - box[1]) + 2
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    size = (box[2] - box[0] + 2 * margin, box[3] - box[1] + 2 * margin)
    corners = cv2.boxPoints((centre, size, rng.uniform(-6, 6)))
    mask = np.zeros(canvas.shape[:2], np.float32)
    cv2.fillConvexPoly(mask, np.rint(corners).astype(np.int32), 1.0, cv2.LINE_AA)
    # Anti-aliased drawing is for 8-bit images only, so soften the edge here.
    mask = cv2.GaussianBlur(mask, (3, 3), 0) * np.float32(rng.uniform(0.8, 1.0))
    tone = rng.uniform(170, 250) if rng.random() < 0.75 else rng.uniform(10, 90)
    colour = np.clip(tone + rng.uniform(-40, 40, 3), 0, 255).astype(np.float32)
    canvas += mask[:, :, None] * (colour - canvas)


def _photo(photo: Image, side: int, rng: np.random.Generator) -> Floats:
    """Cut a turned, scaled, recoloured piece; beyond the photo's edge it is mirrored."""
    scale = float(np.exp(rng.uniform(np.log(0.5), np.log(2.5))))
    if scale < 0.75:
        half = (photo.shape[1] // 2, photo.shape[0] // 2)
        photo = np.asarray(cv2.resize(photo, half, interpolation=cv2.INTER_AREA), np.uint8)
        scale *= 2
    if rng.random() < 0.5:
        photo = photo[:, ::-1].copy()
    height, width = photo.shape[:2]
    centre = (rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height)
    matrix = cv2.getRotationMatrix2D(centre, rng.uniform(-25, 25), scale)
    matrix[:, 2] += side / 2 - np.array(centre)
    piece = cv2.warpAffine(photo, matrix, (side, side), borderMode=cv2.BORDER_REFLECT_101)
    channels = piece[:, :, rng.permutation(3)] if rng.random() < 0.3 else piece
    tint = rng.uniform(0.75, 1.25, 3) * rng.uniform(0.7, 1.15)
    tinted = np.clip(channels * tint + rng.uniform(-15, 25), 0, 255)
    return np.ascontiguousarray(tinted, np.float32)


def _paper(side: int, rng: np.random.Generator) -> Floats:
    """Make paper or a board: one tone, uneven light, fibres, sometimes ruled."""
    tone = rng.uniform(165, 252) if rng.random() < 0.75 else rng.uniform(8, 90)
    colour = tone + rng.uniform(-15, 15, 3)
    clouds = sum(_noise(side, cells, rng) * rng.uniform(0, 14) for cells in (3, 9, 80))
    tones = np.clip(colour + np.asarray(clouds)[:, :, None], 0, 255)
    canvas: Floats = np.asarray(tones, np.float32)
    if rng.random() < 0.3:
        gap, ruled = int(rng.integers(12, 50)), rng.uniform(0, 255, 3).astype(np.float32)
        strength = np.float32(rng.uniform(0.1, 0.5))
        canvas[::gap] += strength * (ruled - canvas[::gap])
        if rng.random() < 0.5:
            canvas[:, ::gap] += strength * (ruled - canvas[:, ::gap])
    return canvas


def _noise(side: int, cells: int, rng: np.random.Generator) -> Floats:
    grid = rng.standard_normal((cells, cells), np.float32)
    return np.asarray(cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC))


def _marks(canvas: Floats, rng: np.random.Generator) -> None:
    """Scribble lines and letters, in place, so that not every stroke is a digit."""
    side, sheet = canvas.shape[0], np.clip(canvas, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(1, 6)):
        colour, width = rng.uniform(0, 255, 3).tolist(), int(rng.integers(1, 7))
        if rng.random() < 0.5:
            points = rng.integers(0, side, (int(rng.integers(2, 5)), 1, 2)).astype(np.int32)
            cv2.polylines(sheet, [points], bool(rng.random() < 0.3), colour, width)
        else:
            word = "".join(rng.choice(list(LETTERS), int(rng.integers(1, 6))))
            at = (int(rng.integers(0, side)), int(rng.integers(0, side)))
            size = rng.uniform(0.5, 3.0)
            cv2.putText(sheet, word, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, width)
    canvas[:] = sheet


def _bars(canvas: Floats, rng: np.random.Generator) -> Area:
    """Grey out what a letterboxed wide or tall picture leaves empty, in place."""
    side = canvas.shape[0]
    if rng.random() < 0.6:
        return 0, 0, side, side
    bar = int(rng.integers(10, side // 4))
    if rng.random() < 0.6:
        canvas[:bar] = canvas[side - bar :] = LETTER_BAR
        return 0, bar, side, side - bar
    canvas[:, :bar] = canvas[:, side - bar :] = LETTER_BAR
    return bar, 0, side - bar, side
