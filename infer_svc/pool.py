"""The lanes of a model: which are free, which are set aside, and a warm spare of each engine."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

from infer_svc.golden import Golden
from infer_svc.lane import Lane
from infer_svc.metrics import ModelMetrics
from infer_svc.tasks import Tasks

log = logging.getLogger(__name__)

FRESH_FAILURES = 3
"""Contexts made one after the other that do not work: then the engine is loaded anew."""
MEND_LIMIT_S = 300.0
"""Longest time for one new context. It takes longer than a batch may, as every shape is run once,
but one that never ends would keep the engine from being loaded anew."""
MEND_AFTER_S = 0.05
"""The end of a context waits for all work of the GPU, with Python's lock: the batch that failed is
run elsewhere before."""


class LanePool:
    """Lends lanes, and mends behind the scenes those that failed. Lives in the event loop.

    Args:
        lanes: in service at first.
        spares: step in for lanes that are set aside.
        golden: tells whether a lane is well; None: nothing does.
        metrics: of the model.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        spares: Sequence[Lane],
        golden: Golden | None,
        metrics: ModelMetrics,
    ) -> None:
        self.lanes = (*lanes, *spares)
        self.on_free: Callable[[], None] = lambda: None
        """Called when a lane is free for new work."""
        self.on_broken: Callable[[str], None] = lambda reason: None
        """Called when new contexts of an engine do not work."""
        self.on_lost: Callable[[str], None] = lambda reason: None
        """Called when only a new process helps, as a check or a new context finds out."""
        self._service = Counter(id(lane.engine) for lane in lanes)
        self._golden = golden
        self._metrics = metrics
        self._idle = list(lanes)
        self._spares = list(spares)
        self._aside: set[Lane] = set()
        self._waiters: deque[asyncio.Future[Lane]] = deque()
        self._fresh_failures = 0
        self._paused = False
        self._tasks = Tasks(self._lose)

    @property
    def size(self) -> int:
        """Lanes in service when all is well; spares are beyond it."""
        return self._service.total()

    @property
    def busy(self) -> int:
        """Lanes that work on a batch."""
        return len(self.lanes) - len(self._idle) - len(self._spares) - len(self._aside)

    @property
    def is_whole(self) -> bool:
        """Tell whether the engine is loaded and no lane is set aside."""
        return not self._aside and not self._paused

    @property
    def has_idle(self) -> bool:
        """Tell whether `take` has a lane."""
        return bool(self._idle) and not self._paused

    def take(self) -> Lane:
        """Return a free lane; ask `has_idle` before."""
        return self._idle.pop()

    async def wait(self) -> Lane:
        """Return a lane as soon as one is free, before any new work gets it."""
        if self.has_idle:
            return self.take()
        waiter: asyncio.Future[Lane] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.give_back(waiter.result())
            raise

    def give_back(self, lane: Lane) -> None:
        """Take a lane that is well back into service."""
        while self._waiters and not self._paused:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(lane)
                return
        self._idle.append(lane)
        if not self._paused:
            self.on_free()

    def retire(self, lane: Lane, reason: str, kind: str) -> Lane | None:
        """Set a lane aside; its context is made anew meanwhile.

        Args:
            lane: that was lent.
            reason: for the log.
            kind: of failure, for the count.

        Returns:
            A spare that steps in, lent as the lane was; None: there is none now.
        """
        log.warning("lane set aside", extra={"lane": lane.name, "kind": kind, "reason": reason})
        self._aside.add(lane)
        self._tasks.begin(self._mend(lane, kind))
        spare = next((spare for spare in self._spares if spare.engine is lane.engine), None)
        if spare is not None:
            self._spares.remove(spare)
        return spare

    async def check(self, lane: Lane) -> str:
        """Return what is wrong with a lane that was lent, or nothing.

        Raises:
            DeviceLost: its GPU is.
        """
        return await lane.check(self._golden)

    def probe_idle(self, after_s: float) -> None:
        """Check lanes that have had nothing to do for so long, spares too."""
        if self._paused:
            return  # contexts are closed
        limit = time.monotonic() - after_s
        for lane in [lane for lane in self._idle if lane.idle_since <= limit][:1]:
            self._idle.remove(lane)
            self._tasks.begin(self._probe(lane, self.give_back))
        for lane in [lane for lane in self._spares if lane.idle_since <= limit][:1]:
            self._spares.remove(lane)
            self._aside.add(lane)  # meanwhile it may be missed in service
            self._tasks.begin(self._probe(lane, self._place))

    def stuck(self, after_s: float) -> Lane | None:
        """Return a lane that has worked on one batch for longer than that."""
        now = time.monotonic()
        for lane in self.lanes:
            since = lane.busy_since
            if since and now - since > after_s:
                return lane
        return None

    async def reload(self) -> str:
        """Load the engines anew, once no lane works; return what went wrong, or nothing.

        After a failure no lane is lent any more: their contexts are closed.
        """
        self._paused = True
        while self.busy or self._tasks:
            await asyncio.sleep(0.005)
        self._metrics.reloaded()
        for engine in {id(lane.engine): lane.engine for lane in self.lanes}.values():
            lanes = [lane for lane in self.lanes if lane.engine is engine]
            for lane in lanes:
                await lane.release()
            await asyncio.to_thread(engine.reload)
            for lane in lanes:
                wrong = await self._reopen(lane)
                if wrong:
                    return wrong
        self._paused = False
        self._fresh_failures = 0
        lanes = [*self._idle, *self._spares, *self._aside]
        self._idle, self._spares, self._aside = [], [], set(lanes)
        for lane in lanes:
            self._place(lane)
        return ""

    async def _reopen(self, lane: Lane) -> str:
        wrong = ""
        for _ in range(FRESH_FAILURES):
            wrong = await lane.reopen() or await lane.check(self._golden)
            if not wrong:
                break
            await lane.release()
        return wrong

    async def _mend(self, lane: Lane, kind: str) -> None:
        self._metrics.rebuilt(kind)
        await asyncio.sleep(MEND_AFTER_S)
        started = time.monotonic()
        try:
            async with asyncio.timeout(MEND_LIMIT_S):
                wrong = await lane.rebuild() or await lane.check(self._golden)
        except TimeoutError:
            self.on_lost(f"lane {lane.name} has no new context after {MEND_LIMIT_S:g} s")
            return
        took = round(time.monotonic() - started, 3)
        if wrong:
            self._fresh_failures += 1
            fields = {"lane": lane.name, "reason": wrong, "in_a_row": self._fresh_failures}
            log.warning("new context does not work", extra=fields)
            if self._fresh_failures >= FRESH_FAILURES:
                self.on_broken(wrong)
            else:
                await self._mend(lane, kind)
            return
        self._fresh_failures = 0
        log.info("lane mended", extra={"lane": lane.name, "s": took})
        self._place(lane)

    def _place(self, lane: Lane) -> None:
        """Put a lane that is well into service, or to the spares where its engine has enough."""
        self._aside.discard(lane)
        out = self._aside.union(self._spares)
        in_service = sum(one.engine is lane.engine and one not in out for one in self.lanes)
        if in_service > self._service[id(lane.engine)]:
            self._spares.append(lane)
        else:
            self.give_back(lane)

    async def _probe(self, lane: Lane, then: Callable[[Lane], None]) -> None:
        wrong = await lane.check(self._golden)
        if not wrong:
            then(lane)
        elif (spare := self.retire(lane, wrong, "probe")) is not None:
            then(spare)

    def _lose(self, reason: str) -> None:
        self.on_lost(reason)  # which is set after the pool is made
