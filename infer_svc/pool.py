"""The lanes of a model: which are free, which are set aside, and a warm spare of each engine."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

from infer_svc.backends import Engine
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
        self._waiters: deque[Callable[[Lane], None]] = deque()
        self._fresh_failures = 0
        self._paused = False
        self._tasks = Tasks(self._lose)
        for lane in self.lanes:
            lane.pass_on = self._pass_on

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

    def lend(self, then: Callable[[Lane], None]) -> None:
        """Call back with a lane as soon as one is free, before any new work gets it.

        May be called in any thread, and calls back in this one or in that of the lane. One that is
        idle by now is found by `serve` only.
        """
        self._waiters.append(then)

    def serve(self) -> None:
        """Give idle lanes to those who wait."""
        while self.has_idle and (waiter := self._next_waiter()) is not None:
            waiter(self.take())

    def give_back(self, lane: Lane) -> None:
        """Take a lane that is well back into service."""
        if not self._pass_on(lane):
            self._idle.append(lane)
            if not self._paused:
                self.on_free()

    def add(self, lanes: Sequence[Lane]) -> None:
        """Take more lanes of the same engines into service."""
        self.lanes = (*self.lanes, *lanes)
        for lane in lanes:
            self._service[id(lane.engine)] += 1
            lane.pass_on = self._pass_on
            self.give_back(lane)

    async def remove(self, count: int) -> list[Lane]:
        """Take lanes out of service, each once it is free, and return them to be closed."""
        loop = asyncio.get_running_loop()
        gone = []
        for _ in range(count):
            lane = await self._next_free(loop)
            self._service[id(lane.engine)] -= 1
            self.lanes = tuple(other for other in self.lanes if other is not lane)
            gone.append(lane)
        return gone

    async def _next_free(self, loop: asyncio.AbstractEventLoop) -> Lane:
        free: asyncio.Future[Lane] = loop.create_future()

        def take(lane: Lane) -> None:  # maybe in its thread
            loop.call_soon_threadsafe(free.set_result, lane)

        self.lend(take)
        self.serve()
        return await free

    def _pass_on(self, lane: Lane) -> bool:
        """Give a lane to whoever waits for one; called in its thread as well."""
        waiter = self._next_waiter() if not self._paused else None
        if waiter is None:
            return False
        waiter(lane)
        return True

    def _next_waiter(self) -> Callable[[Lane], None] | None:
        try:
            return self._waiters.popleft()
        except IndexError:
            return None

    def stand_in(self, lane: Lane) -> Lane | None:
        """Return a spare of a lane's engine, lent from now on; None: there is none now.

        May be called in any thread.
        """
        for spare in list(self._spares):
            if spare.engine is lane.engine and self._remove_spare(spare):
                return spare
        return None

    def retire(self, lane: Lane, reason: str, kind: str) -> None:
        """Set a lane aside that was lent; its context is made anew meanwhile.

        A spare goes into service for it, unless one stands in for it already.

        Args:
            lane: to set aside.
            reason: for the log.
            kind: of failure, for the count.
        """
        log.warning("lane set aside", extra={"lane": lane.name, "kind": kind, "reason": reason})
        self._aside.add(lane)
        self._tasks.begin(self._mend(lane, kind))
        wanted = self._service[id(lane.engine)]
        if self._in_service(lane.engine) < wanted and (spare := self.stand_in(lane)) is not None:
            self.give_back(spare)

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
            if not self._remove_spare(lane):
                continue
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
        if self._in_service(lane.engine) > self._service[id(lane.engine)]:
            self._spares.append(lane)
        else:
            self.give_back(lane)

    def _in_service(self, engine: Engine) -> int:
        out = self._aside.union(self._spares)
        return sum(lane.engine is engine and lane not in out for lane in self.lanes)

    async def _probe(self, lane: Lane, then: Callable[[Lane], None]) -> None:
        wrong = await lane.check(self._golden)
        if wrong:
            self.retire(lane, wrong, "probe")
        else:
            then(lane)

    def _remove_spare(self, spare: Lane) -> bool:
        try:
            self._spares.remove(spare)
        except ValueError:  # another thread was faster
            return False
        return True

    def _lose(self, reason: str) -> None:
        self.on_lost(reason)  # which is set after the pool is made
