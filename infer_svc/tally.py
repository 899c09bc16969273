"""A histogram as plain numbers, and as Prometheus wants it."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString


class Tally:
    """A histogram.

    Args:
        bounds: the largest value of each bucket, the smallest first; one without a bound follows.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Values in each bucket alone."""
        self.total = 0.0
        """Sum of the values."""

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def histogram(
    name: str, text: str, labels: Sequence[str], tallies: Mapping[tuple[str, str], Tally]
) -> Metric:
    """Return a family.

    Args:
        name: of the family.
        text: that explains it.
        labels: their names.
        tallies: by the labels' values.
    """
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, tally in tallies.items():
        bounds = [*map(floatToGoString, tally.bounds), "+Inf"]
        # Copied: other threads add to it.
        counts = accumulate(list(tally.counts))
        family.add_metric(values, list(zip(bounds, counts, strict=True)), tally.total)
    return family
