"""Joins requests to batches: Triton's `dynamic_batching`, and no more than one partial batch."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opentelemetry.trace import Tracer

from infer_svc.batch_trace import BatchTrace
from infer_svc.config import Batching, ModelConfig
from infer_svc.lane import Batch, Run
from infer_svc.metrics import ModelMetrics, reason_of
from infer_svc.pool import LanePool
from infer_svc.queue import Entry, RequestQueue, ShapeKey
from infer_svc.recovery import Attempt, Failover, Recovery
from mesh.errors import MeshError, QueueTimeout
from mesh.item import Reply, Request, Timings
from mesh.tensor import Tensors

ESTIMATE_WEIGHT = 0.1
"""Weight of the newest batch in the running estimate of a batch's time."""


@dataclass(frozen=True)
class Plan:
    """What may be run now."""

    key: ShapeKey
    rows: int
    """At most so many."""
    partial: bool
    """More rows could have joined."""


class Batcher:
    """The requests of one model and the lanes that run them. Lives in the event loop.

    Args:
        config: of the model.
        pool: of its lanes.
        tracer: for batch spans; samples everything.
        metrics: of the model.
        lost: called when only a new process helps, with the reason.
        serving: called with False when the model cannot run for a while, and with True after.
    """

    def __init__(
        self,
        config: ModelConfig,
        pool: LanePool,
        tracer: Tracer,
        metrics: ModelMetrics,
        lost: Callable[[str], None],
        serving: Callable[[bool], None] = lambda serving: None,
    ) -> None:
        self._batching = config.batching or Batching()
        # Without dynamic_batching, each request is a batch of its own.
        self._max_rows = config.max_rows if config.batching and config.max_rows else 1
        self._goal = self._batching.preferred[-1] if self._batching.preferred else self._max_rows
        self._trace = BatchTrace(config.name, tracer)
        self._pool = pool
        self._pool.on_free = self._dispatch
        self._recovery = Recovery(
            config.name, pool, self._finish, self._refuse, self._note, metrics, lost, serving
        )
        self._metrics = metrics
        metrics.watch_queue(lambda: self.depth, self._oldest_s)
        metrics.watch_lanes(lambda: pool.size, lambda: pool.busy)
        self._queue = RequestQueue(self._batching, min(self._batching.preferred or [self._goal]))
        self._partial = False
        self._estimate = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    async def run(self, request: Request, tensors: Tensors, key: ShapeKey, rows: int) -> Reply:
        """Queue a request and return its outputs.

        Args:
            request: with its deadline.
            tensors: its inputs, already compared with the model's.
            key: shapes beyond the first axis; only equal ones share a batch.
            rows: along the first axis.

        Raises:
            Overloaded: the queue policy's `max_queue_size` is reached.
            DeadlineExceeded: its time was over before it could start.
            QueueTimeout: the queue policy's was.
            EngineError: its batch failed.
        """
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        entry = Entry(request, tensors, key, rows, future)
        try:
            self._queue.push(entry, self._estimate)
            self._dispatch()
            return await future
        except BaseException as err:
            # One that was answered while its caller gave up is counted as that.
            if not future.done() or future.cancelled() or future.exception() is not None:
                self._metrics.failed(1, reason_of(err))
            raise
        finally:
            self._queue.discard(entry)

    def _oldest_s(self) -> float:
        """Return how long the oldest request has waited, in seconds; 0: none waits."""
        return max(0.0, time.monotonic() - self._queue.oldest())

    def _dispatch(self) -> None:
        """Refuse what is late, and give batches to free lanes as long as the rules allow."""
        while self._queue:
            now = time.monotonic()
            for late in self._queue.drop_late(now):
                _refuse_late(late)
            plan = self._plan(now) if self._pool.has_idle else None
            if plan is None:
                break
            entries = self._queue.take(plan.key, plan.rows)
            if entries:
                self._start(entries, plan, now)
        self._wake_in_time()

    def _plan(self, now: float) -> Plan | None:
        """Return what to run now; None: wait for more rows, a lane or the delay."""
        first = self._queue.first()
        if first is None:
            return None
        if plan := self._plan_of(first.key, first.due <= now):
            return plan
        # The first one waits for others of its shapes; what cannot join it need not wait with it.
        for key in self._queue.ripe():
            if plan := self._plan_of(key, False):
                return plan
        due, entry = self._queue.next_due()
        return self._plan_of(entry.key, True) if entry is not None and due <= now else None

    def _plan_of(self, key: ShapeKey, due: bool) -> Plan | None:
        rows = self._queue.rows(key)
        if rows >= self._goal:
            return Plan(key, self._goal, partial=False)
        if self._partial:
            return None
        reached = [size for size in self._batching.preferred if size <= rows]
        if reached:
            return Plan(key, reached[-1], partial=True)
        return Plan(key, self._max_rows, partial=True) if due else None

    def _start(self, entries: list[Entry], plan: Plan, now: float) -> None:
        lane = self._pool.take()
        self._partial = self._partial or plan.partial
        batch = Batch([entry.tensors for entry in entries], [entry.rows for entry in entries], now)
        failover = Failover(self._recovery, lane, entries)

        def done(runs: list[Run]) -> None:
            if plan.partial:
                self._partial = False
            attempt = Attempt(entries, batch, runs[0])
            self._note(attempt)
            if len(runs) > 1:
                failed = attempt
                attempt = Attempt(entries, batch, runs[1], "retry")
                self._note(attempt)
                self._recovery.stood_in(failed, attempt)
            result = attempt.result
            if result.error is not None:
                self._recovery.settle(attempt, failover)
                self._dispatch()
                return
            self._recovery.worked()
            took = result.run_s + result.around_s
            self._estimate += (ESTIMATE_WEIGHT if self._estimate else 1.0) * (took - self._estimate)
            # First: the lane gets its next batch while answers are handed out.
            if not attempt.run.passed_on:
                self._pool.give_back(attempt.lane)
            self._finish(attempt)

        lane.submit(batch, done, failover)

    def _note(self, attempt: Attempt) -> None:
        """Count and trace what came of one run of a batch."""
        attempt.trace = self._trace.write(attempt)
        batch, result = attempt.batch, attempt.result
        if result.error is not None:
            self._metrics.batch_failed(type(result.error).__name__)
            return
        times = result.times
        run_s = times.run_s or result.run_s  # a runtime that does not measure
        self._metrics.batch(
            requests=len(attempt.entries), rows=sum(batch.rows), run_s=run_s,
            queue_s=sum(batch.formed - entry.request.received for entry in attempt.entries),
            h2d_s=times.h2d_s, d2h_s=times.d2h_s, elements=times.run_elements,
            around_s=result.around_s + result.run_s - times.h2d_s - run_s - times.d2h_s,
            padded=times.run_elements - times.elements,
        )  # fmt: skip

    def _finish(self, attempt: Attempt) -> None:
        """Answer the requests of an attempt with what came of it."""
        batch, result = attempt.batch, attempt.result
        answered, duration_s, now = 0, 0.0, time.monotonic()
        for index, entry in enumerate(attempt.entries):
            if entry.future.done():
                continue  # the caller gave up
            if result.error is not None:
                entry.future.set_exception(result.error)
                continue
            timings = Timings(
                batch.formed - entry.request.received, result.around_s, result.run_s,
                sum(batch.rows), attempt.trace,
            )  # fmt: skip
            entry.future.set_result(Reply(result.payloads[index], timings=timings))
            answered += 1
            duration_s += now - entry.request.received
        self._metrics.answered(answered, duration_s)

    def _refuse(self, entries: Sequence[Entry]) -> None:
        """Refuse those of some entries that failed once whose time is over."""
        now = time.monotonic()
        for entry in entries:
            if entry.request.deadline <= now:
                _refuse_late(entry)

    def _wake_in_time(self) -> None:
        """Come back when the next entry is due or late, should nothing happen before."""
        moment = self._queue.next_late()
        if self._pool.has_idle and not self._partial:
            moment = min(moment, self._queue.next_due()[0])
        if moment >= self._wakes_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = moment
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, moment - time.monotonic()), self._wake)

    def _wake(self) -> None:
        self._wakes_at = math.inf
        self._dispatch()


def _refuse_late(entry: Entry) -> None:
    if entry.future.done():
        return
    try:
        entry.request.check_deadline()
    except MeshError as err:
        entry.future.set_exception(err)
        return
    waited = time.monotonic() - entry.request.received
    entry.future.set_exception(
        QueueTimeout(
            f"the queue policy of model {entry.request.target!r} ended the wait "
            f"after {waited * 1e3:.0f} ms"
        )
    )
