"""A report says what the samples say."""

import pytest

from benchmarks.load.report import Sample, percentile, summarize


@pytest.mark.parametrize(
    ("share", "value"),
    [(0, 1), (0.01, 1), (0.5, 50), (0.505, 51), (0.95, 95), (0.99, 99), (1, 100)],
    ids=str,
)
def test_percentile_is_the_value_that_so_many_do_not_exceed(share: float, value: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == value


def test_percentile_of_one_value_is_that_value() -> None:
    assert [percentile([7], share) for share in (0, 0.5, 0.99, 1)] == [7, 7, 7, 7]


def test_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="one or more"):
        percentile([], 0.5)


def test_waits_count_from_the_due_time_and_rates_from_the_start() -> None:
    samples = [Sample(due=10.0, sent=10.5, done=11.0), Sample(due=11.0, sent=11.0, done=12.0)]
    report = summarize(samples, began=10.0, cpu_s=0.5)
    assert (report.p50_ms, report.max_ms) == (1000, 1000)
    assert report.late_p99_ms == 500
    assert report.per_s == 1
    assert report.client_cpu_us == 250_000


def test_failures_are_counted_by_kind_and_are_in_no_percentile() -> None:
    samples = [
        Sample(0, 0, 0.1), Sample(0, 0, 5, "TimeoutError"), Sample(0, 0, 2, "UNAVAILABLE"),
        Sample(0, 0, 3, "UNAVAILABLE"),
    ]  # fmt: skip
    report = summarize(samples, began=0, cpu_s=1)
    assert report.errors == {"TimeoutError": 1, "UNAVAILABLE": 2}
    assert (report.requests, report.answered, report.max_ms) == (4, 1, 100)


def test_without_any_answer_there_is_no_percentile() -> None:
    report = summarize([Sample(0, 0, 1, "UNAVAILABLE")], began=0, cpu_s=1)
    assert (report.p50_ms, report.p99_ms, report.client_cpu_us, report.per_s) == (None,) * 3 + (0,)
