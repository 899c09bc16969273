"""Refuses at once what would be answered late, so that under overload the rest keeps its latency.

A queue that is long for more than a moment serves nobody: everything in it is late. The bound on
what is under way follows the latency of the answers, as congestion windows follow a network's: it
grows slowly while answers are in time, and shrinks to what would have been in time when even the
fastest of them were not (the fastest, as in CoDel, RFC 8289, tells a standing queue from a burst).

When that begins while more comes than is answered, what has waited too long already is refused as
well: the queue would take many times its length in time to drain, with every answer late. A queue
that is left of an interruption, and drains, is left to it.
"""

import asyncio
import math
import random
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from mesh.errors import DeadlineExceeded, Overloaded
from mesh.item import Handler, Layer, Reply, Request, name_of
from mesh.status import code_of

INTERVAL_S = 0.1
"""Between two looks at the latency."""
SUSTAINED = 2
"""Looks in a row at which the fastest answer was late, before anything is refused: a burst that
was answered by then is none of an overload."""
BASE_FACTOR = 3.0
"""A pipeline that takes long by itself may take so many times as long as when it was idle."""
BASE_INTERVALS = 600
"""For how long the fastest answer is remembered: a minute."""
GROWTH = 0.05
FLOOR = 4
_LATE = code_of(DeadlineExceeded("")).value[0]


@dataclass
class Interval:
    """What happened since the last look."""

    began: float
    """On the clock of `time.monotonic`."""
    fastest: float = math.inf
    """Seconds, of the answers; infinity: there were none."""
    answers: int = 0
    late: int = 0
    """Requests whose own deadline passed before their answer."""
    most: int = 0
    """That were under way at a time."""
    refused: int = 0
    entered: int = 0


class Admission:
    """Bounds the requests of one pipeline that are under way. Lives in the event loop.

    Args:
        target_s: latency to keep under overload.
    """

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s
        self.limit = math.inf
        """Requests that may be under way."""
        self.refused = 0
        """Since the start."""
        self.under_way: dict[asyncio.Timeout, float] = {}
        """When each began, the oldest first; who is refused afterwards is timed out."""
        self._active: Counter[str] = Counter()
        self._running = 0
        self._now = Interval(time.monotonic())
        self._bases: deque[float] = deque(maxlen=BASE_INTERVALS)
        self._late_looks = 0

    def enter(self, client: str) -> None:
        """Admit a request.

        Args:
            client: whose it is: one that has less than its share under way is always admitted.

        Raises:
            Overloaded: it would be late; the text says when to come back.
        """
        self._now.entered += 1
        if self._running >= self.limit:
            share = self.limit / max(1, len(self._active) + (client not in self._active))
            if self._active[client] >= share:
                self.refused += 1
                self._now.refused += 1
                raise self.refusal()
        self._running += 1
        self._active[client] += 1
        self._now.most = max(self._now.most, self._running)

    def refusal(self) -> Overloaded:
        """Return the error that tells a caller when to come back."""
        wait_s = self._target_s * random.uniform(0.5, 1.5)
        return Overloaded(
            f"more requests come than can be answered within {self._target_s * 1e3:.0f} ms "
            f"({self._running} are under way); try again in {wait_s * 1e3:.0f} ms",
            retry_s=wait_s,
        )

    def leave(self, client: str, seconds: float, code: int) -> None:
        """Note that a request has its answer.

        Args:
            client: as for `enter`.
            seconds: since `enter`.
            code: number of its gRPC status.
        """
        self._running -= 1
        self._active[client] -= 1
        if not self._active[client]:
            del self._active[client]
        if code == 0:
            self._now.answers += 1
            self._now.fastest = min(self._now.fastest, seconds)
        elif code == _LATE:
            self._now.late += 1
        if time.monotonic() - self._now.began >= INTERVAL_S:
            self._look()

    def _look(self) -> None:
        """Move the limit by what the last interval showed."""
        seen, self._now = self._now, Interval(time.monotonic(), most=self._running)
        self._bases.append(seen.fastest)
        allowed = max(self._target_s, BASE_FACTOR * min(self._bases))
        is_late = seen.late > seen.answers or (seen.answers > 0 and seen.fastest > allowed)
        self._late_looks = self._late_looks + 1 if is_late else 0
        if self._late_looks >= SUSTAINED and math.isinf(self.limit) and seen.entered > seen.answers:
            # By Little's law: what is answered meanwhile.
            self.limit = max(FLOOR, seen.answers / (self._now.began - seen.began) * allowed)
            self._shed(allowed)
        elif self._late_looks >= SUSTAINED:
            ratio = allowed / seen.fastest if seen.fastest > allowed and seen.answers else 0.5
            self.limit = max(FLOOR, min(self.limit, seen.most) * max(0.3, ratio))
        elif not is_late and (seen.refused or seen.most >= 0.8 * self.limit):
            self.limit += max(1.0, GROWTH * self.limit)

    def _shed(self, allowed: float) -> None:
        now = time.monotonic()
        for scope, began in self.under_way.items():
            if now - began <= allowed:
                return
            self.refused += 1
            scope.reschedule(-math.inf)


def admitting(admissions: Mapping[str, Admission]) -> Layer:
    """Admit or refuse each request before anything is done for it.

    Args:
        admissions: by pipeline; what is for another one is admitted.
    """

    def layer(handler: Handler) -> Handler:
        async def admitted(request: Request) -> Reply:
            admission = admissions.get(name_of(request.target))
            if admission is None:
                return await handler(request)
            admission.enter(request.client)
            began, code = time.monotonic(), 1
            scope = asyncio.timeout(None)
            try:
                async with scope:
                    admission.under_way[scope] = began
                    reply = await handler(request)
                code = reply.status.code if reply.status is not None else 0
                return reply
            except TimeoutError:
                if scope.expired():
                    raise admission.refusal() from None
                raise
            except Exception as err:
                code = code_of(err).value[0]
                raise
            finally:
                admission.under_way.pop(scope, None)
                admission.leave(request.client, time.monotonic() - began, code)

        return admitted

    return layer
