"""Each call adds what it says, whoever calls, and the failures have Triton's reasons."""

import asyncio
import threading

import pytest

from infer_svc.metrics import STEP_BOUNDS, ModelMetrics, reason_of
from mesh.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineError,
    InvalidInput,
    Overloaded,
    ReplicaFull,
)


def test_batch_counts_once_and_its_times_once_for_each_request() -> None:
    m = ModelMetrics("m", 1, 8)
    m.batch(
        requests=3, rows=5, queue_s=0.6, run_s=0.02, h2d_s=0.001, d2h_s=0.002, around_s=0.003,
        elements=80, padded=30,
    )  # fmt: skip
    m.batch(requests=1, rows=1, queue_s=0.1, run_s=0.01)
    assert (m.batches, m.rows, m.elements, m.padded) == (2, 6, 80, 30)
    assert m.queue_s == pytest.approx(0.7)
    assert m.infer_s == pytest.approx(3 * 0.02 + 0.01)
    assert m.input_s == pytest.approx(3 * 0.001)
    assert m.output_s == pytest.approx(3 * (0.002 + 0.003))
    assert m.run.total == pytest.approx(0.03)
    assert m.batch_rows.total == 6


def test_copies_that_do_not_happen_are_not_timed() -> None:
    m = ModelMetrics("m", 1, 8)
    m.batch(requests=1, rows=1, queue_s=0, run_s=0.01)
    assert (sum(m.h2d.counts), sum(m.d2h.counts), sum(m.run.counts)) == (0, 0, 1)


def test_answers_failures_and_recoveries_are_counted() -> None:
    m = ModelMetrics("m", 1, 8)
    m.answered(3, 0.5)
    m.failed(2, "BACKEND")
    m.climbed("retry")
    m.rebuilt("EngineError")
    m.rebuilt("EngineError")
    m.reloaded()
    m.batch_failed("EngineError")
    m.built("ok", 12.0)
    m.built("failed", 1.0)
    assert (m.succeeded, m.request_s, m.failures) == (3, 0.5, {"BACKEND": 2})
    assert (m.steps, m.reloads, m.rebuilds) == ({"retry": 1}, 1, {"EngineError": 2})
    assert m.batch_failures == {"EngineError": 1}
    assert (m.builds, m.build.total) == ({"ok": 1, "failed": 1}, 13.0)


@pytest.mark.parametrize(
    ("max_rows", "bounds"),
    [(0, [1]), (1, [1]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])],
    ids=["no-rows", "one", "power", "between"],
)
def test_batch_sizes_have_buckets_by_powers_of_two_up_to_the_largest(
    max_rows: int, bounds: list[float]
) -> None:
    assert ModelMetrics("m", 1, max_rows).batch_rows.bounds == bounds


def test_shortest_step_that_is_told_apart_is_50_us() -> None:
    assert STEP_BOUNDS[0] == 50e-6
    assert list(STEP_BOUNDS) == sorted(STEP_BOUNDS)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Overloaded("full"), "REJECTED"),
        (ReplicaFull("full"), "REJECTED"),
        (DeadlineExceeded("late"), "REJECTED"),
        (Cancelled("gone"), "CANCELED"),
        (asyncio.CancelledError(), "CANCELED"),
        (EngineError("broken"), "BACKEND"),
        (InvalidInput("wrong"), "OTHER"),
        (ZeroDivisionError(), "OTHER"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_failure_has_tritons_reason(error: BaseException, reason: str) -> None:
    assert reason_of(error) == reason


def test_threads_that_add_at_once_lose_nothing() -> None:
    m = ModelMetrics("m", 1, 8)

    def add() -> None:
        for _ in range(2000):
            m.batch(requests=1, rows=2, queue_s=0, run_s=0.001)
            m.rebuilt("x")

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (m.batches, m.rows, sum(m.run.counts), m.rebuilds["x"]) == (8000, 16000, 8000, 8000)
