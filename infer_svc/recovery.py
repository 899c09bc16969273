"""What happens to a batch that failed: a ladder, climbed as far as it takes.

retry on another lane, the failed one made anew → smaller batches, down to the one request that is
to blame → the engine loaded anew → the process ends, and its supervisor starts it again.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infer_svc.backends.errors import DeviceLost, OutOfMemory
from infer_svc.lane import Batch, BatchResult, Lane, Run
from infer_svc.metrics import ModelMetrics
from infer_svc.pool import LanePool
from infer_svc.queue import Entry
from infer_svc.tasks import Tasks
from mesh.errors import EngineError, InvalidInput, MeshError, StageUnavailable

log = logging.getLogger(__name__)

WINDOW_S = 10.0
WINDOW_BATCHES = 20
"""Fewer batches than this in the window say nothing."""
WINDOW_SHARE = 0.2
"""More failures than this share of the window's batches: the engine is loaded anew."""
RELOAD_AGAIN_S = 60.0
"""An engine that fails so soon after it was loaded anew does not help any more."""
ALONE_TRIES = 3
"""Runs of a single request, each on a lane that is well, before it is held to blame."""
RELOAD_LIMIT_S = 900.0
"""Longest time for that, the work included that runs before."""
LANE_TRIES = 4
"""Lanes on which a batch may fail that turn out to be at fault themselves."""


@dataclass(eq=False)
class Attempt:
    """One run of some requests on a lane."""

    entries: list[Entry]
    batch: Batch
    run: Run
    step: str = ""
    """Rung of the ladder that it is part of; empty: the first run."""
    trace: bytes = b""
    """Binary trace context of its span; empty: it has none."""

    @property
    def lane(self) -> Lane:
        """Return where it ran."""
        return self.run.lane

    @property
    def result(self) -> BatchResult:
        """Return what came of it."""
        return self.run.result

    @property
    def error(self) -> BaseException | None:
        """Return why it failed; None: it did not."""
        return self.result.error


class Failover:
    """Finds another lane for a batch that failed; asked in the thread of the lane where it did.

    Args:
        recovery: of the model.
        lane: where the batch runs first.
        entries: of the batch.
    """

    def __init__(self, recovery: "Recovery", lane: Lane, entries: Sequence[Entry]) -> None:
        self.begun: asyncio.Future[Attempt | None] | None = None
        """The second attempt, where no spare was left and the next free lane makes it."""
        self._recovery = recovery
        self._lane = lane
        self._entries = entries

    def __call__(self, error: BaseException) -> Lane | None:
        """Return a spare that stands in at once, if there is one."""
        if isinstance(error, InvalidInput | DeviceLost | OutOfMemory):
            return None
        if not any(map(is_waiting, self._entries)):
            return None
        spare = self._recovery.pool.stand_in(self._lane)
        if spare is None:
            self.begun = self._recovery.begin(self._entries, "retry")
        return spare


def is_waiting(entry: Entry) -> bool:
    """Tell whether somebody waits for an entry, and has time to."""
    return not entry.future.done() and entry.request.deadline > time.monotonic()


class Recovery:
    """Settles failed batches of one model. Lives in the event loop.

    Args:
        name: of the model.
        pool: of its lanes.
        finish: answers the requests of an attempt, with what came of it.
        refuse: answers those of some entries whose time is over.
        note: told of every attempt that is made here.
        metrics: of the model.
        lost: called when only a new process helps, with the reason.
        serving: called with False when the model cannot run for a while, and with True after.
    """

    def __init__(
        self,
        name: str,
        pool: LanePool,
        finish: Callable[[Attempt], None],
        refuse: Callable[[Sequence[Entry]], None],
        note: Callable[[Attempt], None],
        metrics: ModelMetrics,
        lost: Callable[[str], None],
        serving: Callable[[bool], None] = lambda serving: None,
    ) -> None:
        self._name = name
        self.pool = pool
        self._finish = finish
        self._refuse = refuse
        self._note = note
        self._metrics = metrics
        self._lost = lost
        self._serving = serving
        self._window: deque[tuple[float, bool]] = deque()
        self._failures = 0
        self._reloaded = -RELOAD_AGAIN_S
        self._reloading = False
        self._tasks = Tasks(self._lose)
        pool.on_broken = self._reload
        pool.on_lost = self._lose

    def worked(self) -> None:
        """Count a batch that did not fail."""
        if self._failures:
            self._count(failed=False)

    def stood_in(self, failed: Attempt, again: Attempt) -> None:
        """Take care of the lane of a failed attempt that another one made up for."""
        self._metrics.climbed("retry")
        self._metrics.failed_over(again.result.began - failed.result.ended)
        self._retire(failed, str(failed.error))

    def settle(self, attempt: Attempt, failover: "Failover") -> None:
        """Answer the requests of a failed attempt, sooner or later; its lane is taken care of."""
        error = attempt.error
        if isinstance(error, InvalidInput):
            self._answer(attempt)
        elif isinstance(error, DeviceLost):
            self._lose(str(error))
        elif isinstance(error, OutOfMemory) and len(attempt.entries) > 1:
            self.pool.give_back(attempt.lane)
            self._tasks.begin(self._halve(attempt.entries, "split"))
        elif attempt.step:  # it was the second
            self._tasks.begin(self._retry(attempt, LANE_TRIES - 1))
        else:
            begun = failover.begun or self.begin(attempt.entries, "retry")
            self.pool.serve()
            self._retire(attempt, str(error))
            self._tasks.begin(self._first_retry(attempt, begun))

    async def _first_retry(self, failed: Attempt, begun: asyncio.Future[Attempt | None]) -> None:
        attempt = await self._ended(begun)
        if attempt is None:
            return
        self._metrics.failed_over(attempt.result.began - failed.result.ended)
        if not self._done(attempt):
            await self._retry(attempt, LANE_TRIES - 1)

    async def _retry(self, failed: Attempt, left: int) -> None:
        """Run a batch that failed twice on so many other lanes, until one that is well fails, too.

        Then it is the batch.
        """
        while True:
            wrong = await self.pool.check(failed.lane)
            if not wrong:
                self.pool.give_back(failed.lane)
                await self._isolate(failed.entries, failed)
                return
            self._retire(failed, wrong)
            if not left:  # it is this replica's fault: another one may do it
                failed.result.error = self._unwell(wrong)
                self._finish(failed)
                return
            attempt = await self._attempt(failed.entries, "retry")
            if attempt is None:
                return
            self._metrics.failed_over(attempt.result.began - failed.result.ended)
            if self._done(attempt):
                return
            failed, left = attempt, left - 1

    async def _isolate(self, entries: list[Entry], failed: Attempt) -> None:
        """Run a batch in smaller and smaller parts, so that the innocent are answered."""
        if len(entries) > 1:
            await self._halve(entries, "bisect")
            return
        well = 0
        for _ in range(ALONE_TRIES + LANE_TRIES):
            attempt = await self._attempt(entries, "alone")
            if attempt is None or self._done(attempt):
                return
            well += await self._return(attempt)
            failed = attempt
            if well == ALONE_TRIES:
                self._blame(failed)
                return
        failed.result.error = self._unwell(str(failed.error))
        self._finish(failed)

    def _blame(self, failed: Attempt) -> None:
        self._metrics.climbed("blamed")
        self._forgive()
        error = failed.error
        fields = {"model": self._name, "error": repr(error)}
        log.error("request held to blame", extra=fields, exc_info=error)
        failed.result.error = EngineError(
            f"model {self._name!r} fails on this request every time, and not on others: "
            f"{error if isinstance(error, MeshError) else 'the log of the server has why'}"
        )
        self._finish(failed)

    async def _halve(self, entries: list[Entry], step: str) -> None:
        middle = len(entries) // 2
        for half in (entries[:middle], entries[middle:]):
            attempt = await self._attempt(half, step)
            if attempt is None or self._done(attempt):
                continue
            if isinstance(attempt.error, OutOfMemory) and len(attempt.entries) > 1:
                self.pool.give_back(attempt.lane)
                await self._halve(attempt.entries, step)
                continue
            await self._return(attempt)
            await self._isolate(attempt.entries, attempt)

    async def _attempt(self, entries: Sequence[Entry], step: str) -> Attempt | None:
        """Run what still waits of some entries on the next free lane; None: nothing does."""
        begun = self.begin(entries, step)
        self.pool.serve()
        return await self._ended(begun)

    async def _ended(self, begun: asyncio.Future[Attempt | None]) -> Attempt | None:
        attempt = await begun
        if attempt is not None:
            self._note(attempt)
        return attempt

    def begin(self, entries: Sequence[Entry], step: str) -> asyncio.Future[Attempt | None]:
        """Run what still waits of some entries as soon as a lane is free; in any thread."""
        loop = self.pool.lanes[0].loop
        ended: asyncio.Future[Attempt | None] = loop.create_future()

        def nothing(lane: Lane) -> None:
            self.pool.give_back(lane)
            ended.set_result(None)

        def run(lane: Lane) -> None:
            alive = [entry for entry in entries if is_waiting(entry)]
            if len(alive) < len(entries):
                loop.call_soon_threadsafe(self._refuse, entries)
            if not alive:
                loop.call_soon_threadsafe(nothing, lane)
                return
            batch = Batch([entry.tensors for entry in alive], [entry.rows for entry in alive])

            def finish(runs: list[Run]) -> None:
                self._metrics.climbed(step)
                ended.set_result(Attempt(alive, batch, runs[0], step))

            lane.submit(batch, finish)

        self.pool.lend(run)
        return ended

    def _done(self, attempt: Attempt) -> bool:
        """Tell whether an attempt needs no other, and answer it then."""
        error = attempt.error
        if isinstance(error, DeviceLost):
            self._lose(str(error))
            return True
        if error is None or isinstance(error, InvalidInput):
            self._answer(attempt)
            return True
        return False

    def _answer(self, attempt: Attempt) -> None:
        if not attempt.run.passed_on:
            self.pool.give_back(attempt.lane)
        self._finish(attempt)

    async def _return(self, attempt: Attempt) -> bool:
        """Give a lane back on which a suspect failed, or set it aside; tell whether it is well."""
        wrong = await self.pool.check(attempt.lane)
        if wrong:
            self._retire(attempt, wrong)
        else:
            self.pool.give_back(attempt.lane)
        return not wrong

    def _unwell(self, reason: str) -> StageUnavailable:
        return StageUnavailable(
            f"{LANE_TRIES} lanes of model {self._name!r} are not well, another replica may do it: "
            f"{reason}"
        )

    def _retire(self, attempt: Attempt, reason: str) -> None:
        """Set a lane aside; a spare goes into service in its place, if one is left."""
        self.pool.retire(attempt.lane, reason, attempt.step or "batch")
        self._count(failed=True)
        bad = self._failures
        if len(self._window) >= WINDOW_BATCHES and bad > WINDOW_SHARE * len(self._window):
            self._reload(f"{bad} of {len(self._window)} batches failed within {WINDOW_S:.0f} s")

    def _count(self, *, failed: bool) -> None:
        now = time.monotonic()
        self._window.append((now, failed))
        self._failures += failed
        while self._window[0][0] < now - WINDOW_S:
            self._failures -= self._window.popleft()[1]

    def _forgive(self) -> None:
        """Take a failure out of the window that a request is to blame for, not the engine."""
        for index in reversed(range(len(self._window))):
            at, failed = self._window[index]
            if failed:
                self._window[index] = at, False
                self._failures -= 1
                return

    def _reload(self, reason: str) -> None:
        if self._reloading:
            return
        if time.monotonic() - self._reloaded < RELOAD_AGAIN_S:
            self._lose(
                f"the engine of {self._name!r} fails again after it was loaded anew: {reason}"
            )
            return
        self._reloading = True
        self._tasks.begin(self._do_reload(reason))

    async def _do_reload(self, reason: str) -> None:
        log.error("engine loaded anew", extra={"model": self._name, "reason": reason})
        self._metrics.climbed("reload")
        self._serving(False)
        try:
            async with asyncio.timeout(RELOAD_LIMIT_S):
                wrong = await self.pool.reload()
        except Exception as err:  # noqa: BLE001 whatever it is, only a new process helps
            wrong = f"{type(err).__name__}: {err}"
        self._reloaded = time.monotonic()
        self._reloading = False
        self._window.clear()
        self._failures = 0
        if wrong:
            self._lose(f"the engine of {self._name!r} cannot be loaded anew: {wrong}")
            return
        self._serving(True)

    def _lose(self, reason: str) -> None:
        self._metrics.climbed("lost")
        self._lost(reason)
