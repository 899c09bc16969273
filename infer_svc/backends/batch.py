"""Requests that run together, as one set of arrays."""

from collections.abc import Sequence

import numpy as np

from mesh.tensor import Tensors


def join(parts: Sequence[Tensors]) -> Tensors:
    """Return the tensors of all parts, joined along the first axis; those of one part as they are.

    Args:
        parts: with the same names, dtypes, and shapes beyond the first axis.
    """
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
