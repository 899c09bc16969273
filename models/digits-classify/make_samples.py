"""Write `samples/digit.png`: one held-out digit as a picture of 200x200."""

from pathlib import Path

import cv2
import data
import numpy as np

FOLDER = Path(__file__).parent / "samples"
DIGIT, NTH = 7, 16
SIDE = 200


def draw() -> data.Image:
    """Draw the sample: uint8[200, 200, 3], RGB."""
    _, (ink, labels) = data.split()
    return data.picture(ink[labels == DIGIT][NTH], SIDE, level=0.65, slope=5.0)


def main() -> None:
    """Write the file."""
    FOLDER.mkdir(exist_ok=True)
    pixels = np.ascontiguousarray(draw()[:, :, ::-1])
    cv2.imwrite(str(FOLDER / "digit.png"), pixels)


if __name__ == "__main__":
    main()
