"""Names of classes, from a text file of the model repository."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mesh.tensor import Array, bytes_tensor


def read_labels(path: Path | None) -> Array:
    """Return the names of a model's classes as BYTES[C]; BYTES[0] without a file.

    Args:
        path: UTF-8 text; line i, counted from 0, is the name of class i. Spaces around a name and
            line ends after the last name do not count.

    Raises:
        ValueError: no readable UTF-8 text, no line at all, or an empty line before the last name
            (taken out, it would shift the name of every class after it).
    """
    if path is None:
        return bytes_tensor()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise ValueError(f"labels file {path} cannot be read: {err}") from err
    # Not splitlines(): it also breaks at characters that may stand inside a name, such as U+2028.
    names = [line.strip() for line in text.rstrip().split("\n")]
    if "" in names:
        raise ValueError(f"labels file {path}: line {names.index('') + 1} is empty, wanted a name")
    return bytes_tensor(*(name.encode() for name in names))


def name_classes(names: Array, classes: NDArray[np.integer]) -> Array:
    """Return the name of each class as BYTES of the same shape.

    Args:
        names: BYTES[C] of `read_labels`; BYTES[0] gives empty names.
        classes: integers of any shape, 0..C-1.
    """
    return names[classes] if len(names) else np.full(classes.shape, b"", object)
