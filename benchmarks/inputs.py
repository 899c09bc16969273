"""What benchmarks send: 64 distinct JPEG files, 64 texts."""

from pathlib import Path

import cv2
import numpy as np

COUNT = 64
EVERYDAY = Path(__file__).parent.parent / "models/language/everyday.txt"


def pictures() -> list[bytes]:
    """Return 64 distinct JPEG files of 640 x 480, with the detail of photos."""
    random = np.random.default_rng(7)
    files = []
    for _ in range(COUNT):
        coarse = random.integers(0, 255, (30, 40, 3), np.uint8)
        picture = cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC)
        noise = random.normal(0, 6, picture.shape)
        noisy = np.clip(picture + noise, 0, 255).astype(np.uint8)
        files.append(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())
    return files


def texts() -> list[bytes]:
    """Return 64 distinct short phrases of 46 languages, in UTF-8."""
    lines = [line.partition(": ")[2].split(" | ") for line in EVERYDAY.read_text().splitlines()]
    phrases = [line[index] for index in (1, 2) for line in lines if index < len(line)]
    return [phrase.encode() for phrase in list(dict.fromkeys(phrases))[:COUNT]]


def write_inputs(folder: Path, payloads: list[bytes]) -> Path:
    """Write each payload as a file of the folder, for client processes of any environment."""
    folder.mkdir(parents=True)
    for index, payload in enumerate(payloads):
        (folder / f"{index:03}").write_bytes(payload)
    return folder
