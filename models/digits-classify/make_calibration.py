"""Write calibration data for INT8 from the training part: `make_calibration.py FILE.npz`."""

import sys
from pathlib import Path

import data
import numpy as np

ROWS = 256


def rows() -> data.Image:
    """Draw training digits as in training: uint8[256, 32, 32, 3], one in ten undistorted."""
    (ink, _), _ = data.split()
    rng = np.random.default_rng(5)
    chosen = ink[rng.permutation(len(ink))[:ROWS]]
    return np.stack([
        data.picture(one) if rng.random() < 0.1 else data.distorted(one, rng) for one in chosen
    ])  # fmt: skip


def write(target: Path) -> None:
    """Write the file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez(target, pixels=rows())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
