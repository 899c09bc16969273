"""A batch whose answer is known: it tells a lane that is wrong or late from one that is well."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mesh.tensor import FLOATS, Array, Tensors

TOLERANCE = 0.02
"""Of ||answer - known|| / ||known||: lanes of one engine differ by rounding only, in FP16 about
1e-3."""
LATE_S = 1.0
LATE_FACTOR = 20.0
"""A lane is late that takes longer than this, and so many times what it took when it was new."""

Answer = Callable[[Tensors], Tensors]
"""Runs a batch in the calling thread and returns outputs that stay."""


@dataclass(frozen=True)
class Golden:
    """One batch and its answer."""

    inputs: Tensors
    outputs: Tensors
    took_s: float
    """How long the answer took on a new, warm lane."""

    @classmethod
    def record(cls, inputs: Tensors, answer: Answer) -> "Golden":
        """Ask for the answer; errors are those of `answer`."""
        started = time.monotonic()
        outputs = answer(inputs)
        return cls(inputs, outputs, time.monotonic() - started)

    def compare(self, answer: Answer) -> str:
        """Ask again, and return what is wrong with the answer; nothing: it is well."""
        started = time.monotonic()
        outputs = answer(self.inputs)
        took_s = time.monotonic() - started
        limit_s = max(LATE_S, LATE_FACTOR * self.took_s)
        if took_s > limit_s:
            return f"a known batch took {took_s:.1f} s, at most {limit_s:.1f} is normal"
        for name, known in self.outputs.items():
            error = difference(outputs[name], known)
            if not error <= TOLERANCE:  # neither is NaN
                return f"output {name!r} of a known batch is off by {error:.2g} of its size"
        return ""


def difference(array: Array, known: Array) -> float:
    """Return ||array - known|| / ||known||; 0 or 1 for what is no number."""
    if array.shape != known.shape:
        return 1.0
    floats = known.dtype in FLOATS
    if not floats and known.dtype.kind not in "iub":
        return 0.0 if np.array_equal(array, known) else 1.0
    if np.array_equal(array, known, equal_nan=floats):
        return 0.0
    wide, true = array.astype(np.float64), known.astype(np.float64)
    finite = np.isfinite(true)
    if not np.array_equal(wide[~finite], true[~finite], equal_nan=True):
        return 1.0
    wide, true = wide[finite], true[finite]
    return float(np.linalg.norm(wide - true) / max(float(np.linalg.norm(true)), 1e-6))
