"""Write calibration data for INT8 from the training part: `make_calibration.py FILE.npz`."""

import sys
from pathlib import Path

import data
import numpy as np

PAGES = 32


def rows() -> data.Image:
    """Draw training pages: uint8[32, 320, 320, 3]."""
    source, _ = data.split()
    return np.stack([
        data.page(source, np.random.default_rng([5, index])).pixels for index in range(PAGES)
    ])  # fmt: skip


def write(target: Path) -> None:
    """Write the file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez(target, pixels=rows())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
