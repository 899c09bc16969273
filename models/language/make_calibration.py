"""Write calibration data for INT8 from the training part: `make_calibration.py FOLDER`."""

import sys
from pathlib import Path

import data
import evaluate
import numpy as np

TEXTS = 512
BATCH = 32


def write(target: Path) -> None:
    """Write a file for each batch of similar lengths, as they are served: int64[32, length]."""
    target.mkdir(parents=True, exist_ok=True)
    tokens = evaluate.tokenizer()
    train, _ = data.split()
    chosen = np.random.default_rng(5).permutation(len(train))[:TEXTS]
    texts = sorted((train[index][0] for index in chosen), key=lambda text: len(text.encode()))
    for first in range(0, TEXTS, BATCH):
        fed = tokens(
            texts[first : first + BATCH],
            padding=True, truncation=True, max_length=evaluate.MAX_LENGTH, return_tensors="np",
        )  # fmt: skip
        arrays = {name: fed[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
        np.savez(target / f"{first:04}.npz", **arrays)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
