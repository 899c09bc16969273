"""What a load gave: rates, waits, errors, the client's own CPU."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """One request; times in seconds of `time.perf_counter`."""

    due: float
    """When it should have been sent; in a closed loop, when it was."""
    sent: float
    done: float
    error: str = ""
    """Empty for an answer."""


@dataclass(frozen=True)
class Report:
    """Figures of one load; percentiles are of the answered, None without any."""

    requests: int
    answered: int
    errors: dict[str, int]
    """How many of each kind."""
    per_s: float
    """Answers per second, from the start to the last answer."""
    p50_ms: float | None
    """From when a request was due to its answer, as all percentiles."""
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    error_p99_ms: float | None
    """From when a request was due to its error; None without any."""
    late_p99_ms: float
    """How late the generator itself sent; large means that the client was the limit."""
    client_cpu_us: float | None
    """The client's own CPU time per answer."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that a share (0..1) of the values does not exceed.

    Raises:
        ValueError: no value.
    """
    if not values:
        raise ValueError("no value came, wanted one or more")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def summarize(samples: Sequence[Sample], began: float, cpu_s: float) -> Report:
    """Return the figures of a load.

    Args:
        samples: all requests, in any order; one or more.
        began: when the load began, `time.perf_counter`.
        cpu_s: CPU time of this process meanwhile.
    """
    answers = [sample for sample in samples if not sample.error]
    waits = [(sample.done - sample.due) * 1e3 for sample in answers]
    refusals = [(sample.done - sample.due) * 1e3 for sample in samples if sample.error]
    took = max(sample.done for sample in samples) - began
    p50, p95, p99, most = (
        round(percentile(waits, share), 3) if waits else None for share in (0.5, 0.95, 0.99, 1)
    )
    late = percentile([(sample.sent - sample.due) * 1e3 for sample in samples], 0.99)
    return Report(
        requests=len(samples),
        answered=len(answers),
        errors=dict(Counter(sample.error for sample in samples if sample.error)),
        per_s=round(len(answers) / took, 2),
        p50_ms=p50, p95_ms=p95, p99_ms=p99, max_ms=most,
        error_p99_ms=round(percentile(refusals, 0.99), 3) if refusals else None,
        late_p99_ms=round(late, 3),
        client_cpu_us=round(cpu_s / len(answers) * 1e6, 1) if answers else None,
    )  # fmt: skip
