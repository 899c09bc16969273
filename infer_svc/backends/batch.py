"""Requests that run together, as one set of arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mesh.tensor import Tensors


@dataclass(frozen=True, slots=True)
class RunTimes:
    """Where the last run of a context spent its time, and what padding cost it."""

    h2d_s: float = 0.0
    """Copies to the GPU, by its own clock, in seconds."""
    run_s: float = 0.0
    """The engine."""
    d2h_s: float = 0.0
    """Copies from the GPU."""
    elements: int = 0
    """Of all inputs, as they came."""
    run_elements: int = 0
    """Of all inputs, as they were run: padded."""


NO_TIMES = RunTimes()


def join(parts: Sequence[Tensors]) -> Tensors:
    """Return the tensors of all parts, joined along the first axis; those of one part as they are.

    Args:
        parts: with the same names, dtypes, and shapes beyond the first axis.
    """
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
