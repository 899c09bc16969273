"""What a model counts and times, as plain numbers: a batch costs one lock and no look-ups."""

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from infer_svc.tally import Tally
from mesh.errors import Cancelled, DeadlineExceeded, EngineError, Overloaded

if TYPE_CHECKING:
    from infer_svc.generation.metrics import GenerationMetrics

Reason = Literal["REJECTED", "CANCELED", "BACKEND", "OTHER"]
"""Why a request failed, in Triton's words: refused or too late to start, given up by its caller,
failed by the engine, anything else."""

STEP_BOUNDS = (
    50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
"""Seconds. The copies of a small batch take less than 100 µs."""
BUILD_BOUNDS = (1.0, 5.0, 15.0, 60.0, 150.0, 300.0, 600.0, 1800.0, 3600.0)
"""Seconds. TensorRT takes seconds for a small network and many minutes for a large one."""


def reason_of(error: BaseException) -> Reason:
    """Return why a request failed that ended with this error."""
    if isinstance(error, Overloaded | DeadlineExceeded):
        return "REJECTED"
    if isinstance(error, EngineError):
        return "BACKEND"
    return "CANCELED" if isinstance(error, Cancelled | asyncio.CancelledError) else "OTHER"


class ModelMetrics:
    """The numbers of one version of a model, since it was loaded. Any thread may add to them.

    Args:
        name: of the model.
        version: of the model.
        max_rows: largest batch; 0: the model has no batch dimension.
    """

    def __init__(self, name: str, version: int, max_rows: int) -> None:
        self.name = name
        self.version = version
        self.succeeded = 0
        self.last = 0.0
        """When a request was answered last, seconds since 1970; 0: none was."""
        self.failures = Counter[str]()
        """By reason."""
        self.rows = self.batches = 0
        self.request_s = self.queue_s = self.input_s = self.infer_s = self.output_s = 0.0
        """Of each answered request, added up; a batch's times count once for each of its requests,
        as with Triton, so that divided by `succeeded` they are a request's mean."""
        self.elements = self.padded = 0
        self.reloads = 0
        self.steps = Counter[str]()
        """Runs of batches after the first, and other rungs of recovery, by name."""
        self.rebuilds = Counter[str]()
        """By reason."""
        self.batch_failures = Counter[str]()
        """By kind of error."""
        self.builds = Counter[str]()
        """By result."""
        self.batch_rows = Tally(_powers_of_two(max_rows))
        self.h2d, self.run = Tally(STEP_BOUNDS), Tally(STEP_BOUNDS)
        self.d2h, self.around = Tally(STEP_BOUNDS), Tally(STEP_BOUNDS)
        self.build = Tally(BUILD_BOUNDS)
        self.failover = Tally(STEP_BOUNDS)
        self.gauges: dict[str, Callable[[], float]] = {}
        """Functions by the name of their family; called at each scrape, in the scrape's thread."""
        self.generation: GenerationMetrics | None = None
        """Of a model that generates."""
        self._lock = threading.Lock()

    def watch_queue(self, waiting: Callable[[], int], oldest_s: Callable[[], float]) -> None:
        """Export what waits.

        Args:
            waiting: returns how many requests wait. Called in any thread.
            oldest_s: returns the seconds that the oldest has waited; 0: none waits. As above.
        """
        self.gauges["nv_inference_pending_request_count"] = waiting
        self.gauges["mesh_infer_queue_depth"] = waiting
        self.gauges["mesh_infer_queue_age_seconds"] = oldest_s

    def watch_lanes(self, lanes: Callable[[], int], busy: Callable[[], int]) -> None:
        """Export how many lanes there are and how many run a batch. Called in any thread."""
        self.gauges["mesh_infer_lanes"] = lanes
        self.gauges["mesh_infer_lanes_busy"] = busy

    def batch(
        self,
        *,
        requests: int,
        rows: int,
        queue_s: float,
        run_s: float,
        h2d_s: float = 0.0,
        d2h_s: float = 0.0,
        around_s: float = 0.0,
        elements: int = 0,
        padded: int = 0,
    ) -> None:
        """Count a batch that succeeded.

        Args:
            requests: in it.
            rows: of all of them.
            queue_s: seconds that each waited before, added up.
            run_s: seconds in the engine.
            h2d_s: seconds of filling and copying the inputs to the device; 0: none are copied.
            d2h_s: seconds of copying the outputs back; 0: none are copied.
            around_s: seconds of handing over between threads and splitting the outputs.
            elements: of the inputs as they were run, padding included.
            padded: of these, such that are only padding.
        """
        with self._lock:
            self.batches += 1
            self.rows += rows
            self.queue_s += queue_s
            self.input_s += requests * h2d_s
            self.infer_s += requests * run_s
            self.output_s += requests * (d2h_s + around_s)
            self.elements += elements
            self.padded += padded
            self.batch_rows.add(rows)
            self.run.add(run_s)
            self.around.add(around_s)
            if h2d_s:
                self.h2d.add(h2d_s)
            if d2h_s:
                self.d2h.add(d2h_s)

    def batch_failed(self, kind: str) -> None:
        """Count a run of a batch that failed; the kind of error is of a small set."""
        with self._lock:
            self.batch_failures[kind] += 1

    def answered(self, requests: int, duration_s: float) -> None:
        """Count requests that succeeded, with the seconds from arrival to answer added up."""
        with self._lock:
            self.succeeded += requests
            self.request_s += duration_s
            self.last = time.time()

    def failed(self, requests: int, reason: Reason) -> None:
        """Count requests that failed."""
        with self._lock:
            self.failures[reason] += requests

    def climbed(self, step: str) -> None:
        """Count a rung of recovery; the step is of a small set, as "retry" or "bisect"."""
        with self._lock:
            self.steps[step] += 1

    def failed_over(self, seconds: float) -> None:
        """Count a batch that failed and runs on another lane, so long after it failed."""
        with self._lock:
            self.failover.add(seconds)

    def rebuilt(self, reason: str) -> None:
        """Count an execution context that was made anew; the reason is of a small set."""
        with self._lock:
            self.rebuilds[reason] += 1

    def reloaded(self) -> None:
        """Count a reload of the engine."""
        with self._lock:
            self.reloads += 1

    def built(self, result: str, took_s: float) -> None:
        """Count a build of the engine; the result is of a small set, as "ok" or "failed"."""
        with self._lock:
            self.builds[result] += 1
            self.build.add(took_s)


def _powers_of_two(largest: int) -> list[float]:
    powers = itertools.takewhile(lambda rows: rows < largest, (2**n for n in itertools.count()))
    return [*map(float, powers), float(max(1, largest))]
