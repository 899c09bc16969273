"""Requests are due when the rate says so."""

from itertools import pairwise
from statistics import fmean, stdev

import pytest

from benchmarks.load.schedule import due_times


def test_fixed_spacing_has_the_same_gap_everywhere() -> None:
    assert due_times(4, 1, "fixed") == [0, 0.25, 0.5, 0.75]


def test_poisson_has_the_rate_and_gaps_as_irregular_as_their_mean() -> None:
    due = due_times(100, 100, "poisson", seed=3)
    gaps = [later - earlier for earlier, later in pairwise(due)]
    assert len(due) == pytest.approx(10_000, rel=0.05)
    assert min(gaps) > 0
    assert due[-1] < 100
    assert stdev(gaps) == pytest.approx(fmean(gaps), rel=0.1)


def test_one_seed_gives_one_schedule() -> None:
    first = due_times(50, 2, "poisson", seed=1)
    assert due_times(50, 2, "poisson", seed=1) == first
    assert due_times(50, 2, "poisson", seed=2) != first


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (-1, 1), (1, 0)], ids=str)
def test_impossible_schedule_is_refused(rate: float, seconds: float) -> None:
    with pytest.raises(ValueError, match="wanted both above 0"):
        due_times(rate, seconds, "fixed")
