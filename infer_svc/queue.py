"""What waits for a lane of one model: by priority, by shape, first in first out."""

import asyncio
import heapq
import itertools
import json
import math
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from infer_svc.config import MICRO, Batching
from mesh.errors import InvalidInput, Overloaded
from mesh.item import Reply, Request
from mesh.tensor import Tensors

ShapeKey = tuple[tuple[int, ...], ...]
"""Shapes of a request's inputs beyond the first axis, in the order of the model's inputs."""

Rank = tuple[int, bool]
"""Level and `moved` of the entries that wait in one line."""

EARLY_S = 0.02
"""An entry is due so long before it would be late: a busy event loop may wake up that late."""

SLACK = 8
"""Moments of entries that wait no more, beyond as many as wait, that are kept."""


@dataclass(eq=False, slots=True)
class Entry:
    """One request that waits."""

    request: Request
    tensors: Tensors
    key: ShapeKey
    rows: int
    future: asyncio.Future[Reply]
    queued: float = field(default_factory=time.monotonic)
    due: float = math.inf
    """When it must start, whether its batch is full or not."""
    level: int = 0
    """Its priority; 1 is the most urgent."""
    moved: bool = False
    """Whether the queue policy put it behind the others of its level."""
    waits: bool = False
    """Whether it is in the queue."""

    @property
    def rank(self) -> Rank:
        """Return its place among all lines; the smallest is served first."""
        return self.level, self.moved


Line = OrderedDict[Entry, None]
"""Entries in order, each of which can be taken out."""


class Moments:
    """Entries by a moment of each, the soonest first; those that wait no more are passed over."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Entry]] = []
        self._serial = itertools.count()

    def add(self, moment: float, entry: Entry, waiting: int) -> None:
        """Add an entry; `waiting` is how many wait at most."""
        if math.isinf(moment):
            return
        heapq.heappush(self._heap, (moment, next(self._serial), entry))
        if len(self._heap) > 2 * waiting + SLACK:
            self._heap = [item for item in self._heap if item[2].waits]
            heapq.heapify(self._heap)

    def soonest(self) -> tuple[float, Entry | None]:
        """Return the soonest moment and whose it is; infinity where there is none."""
        while self._heap and not self._heap[0][2].waits:
            heapq.heappop(self._heap)
        return (self._heap[0][0], self._heap[0][2]) if self._heap else (math.inf, None)

    def pop(self) -> Entry:
        """Take out the soonest."""
        return heapq.heappop(self._heap)[2]


class Shape:
    """Entries whose inputs have the same shapes, so that they can share a batch."""

    def __init__(self) -> None:
        self.rows = 0
        self.lines: defaultdict[Rank, Line] = defaultdict(OrderedDict)


class RequestQueue:
    """Entries in the order they are to be served: level first, then first in, first out.

    Hundreds wait under load, and every arrival comes by here: no step looks at all of them.

    Args:
        batching: with the queue policies.
        ripe_rows: rows of one shape that need not wait for more.
    """

    def __init__(self, batching: Batching, ripe_rows: int = 1) -> None:
        self._batching = batching
        self._ripe_rows = ripe_rows
        self._lines: defaultdict[Rank, Line] = defaultdict(OrderedDict)
        self._shapes: defaultdict[ShapeKey, Shape] = defaultdict(Shape)
        self._ripe: dict[ShapeKey, None] = {}
        self._size = 0
        self._due = Moments()
        self._late = Moments()

    def __len__(self) -> int:
        return self._size

    def push(self, entry: Entry, batch_s: float = 0.0) -> None:
        """Queue an entry on its level.

        Args:
            entry: that waits nowhere yet.
            batch_s: about how long a batch takes; an entry starts that much before its deadline.

        Raises:
            Overloaded: the level's `max_queue_size` is reached.
            InvalidInput: its priority or timeout cannot be used.
        """
        entry.level, timeout_s = self._wishes(entry.request)
        policy = self._batching.policy(entry.level)
        waiting = sum(len(self._lines.get((entry.level, moved), ())) for moved in (False, True))
        if policy.max_size and waiting >= policy.max_size:
            raise Overloaded(
                f"{waiting} requests wait for model {entry.request.target!r}, "
                f"its max_queue_size is {policy.max_size}; try again in a moment"
            )
        limit = policy.timeout_s or math.inf
        if policy.allow_override and timeout_s:
            limit = min(limit, timeout_s)
        expires = entry.queued + limit
        entry.due = min(
            entry.queued + self._batching.delay_s,
            entry.request.deadline - max(2 * batch_s, EARLY_S),
            expires - EARLY_S,
        )
        self._insert(entry)
        if self._batching.delay_s:
            self._due.add(entry.due, entry, self._size)
        self._late.add(min(expires, entry.request.deadline), entry, self._size)

    def discard(self, entry: Entry) -> None:
        """Take out an entry whose caller gave up, unless it is out already."""
        if entry.waits:
            self._remove(entry)

    def drop_late(self, now: float) -> list[Entry]:
        """Take out and return what may not start any more; what its policy delays moves back."""
        late: list[Entry] = []
        while self.next_late() <= now:
            entry = self._late.pop()
            self._remove(entry)
            if entry.request.deadline <= now or self._batching.policy(entry.level).reject:
                late.append(entry)
                continue
            entry.moved = True
            self._insert(entry)
            self._late.add(entry.request.deadline, entry, self._size)
        return late

    def first(self) -> Entry | None:
        """Return the entry that is served next."""
        return next(iter(self._lines[min(self._lines)])) if self._lines else None

    def oldest(self) -> float:
        """Return when the entry that waits longest was queued; infinity: none waits.

        Any thread may ask: lines are copied, each in one step of the interpreter.
        """
        firsts = [next(iter(tuple(line)), None) for line in tuple(self._lines.values())]
        return min((entry.queued for entry in firsts if entry is not None), default=math.inf)

    def ripe(self) -> Iterable[ShapeKey]:
        """Return the shapes whose rows need not wait for more, in the order they became so."""
        return self._ripe

    def next_due(self) -> tuple[float, Entry | None]:
        """Return when the next entry that waits for more rows is due, and which it is."""
        return self._due.soonest()

    def next_late(self) -> float:
        """Return when the next entry may not start any more."""
        return self._late.soonest()[0]

    def rows(self, key: ShapeKey) -> int:
        """Return how many rows of these shapes wait."""
        shape = self._shapes.get(key)
        return shape.rows if shape is not None else 0

    def take(self, key: ShapeKey, max_rows: int) -> list[Entry]:
        """Take entries of these shapes, in order, as long as their rows fit; at least one."""
        taken: list[Entry] = []
        gave_up: list[Entry] = []
        rows = 0
        for entry in self._of(key):
            if entry.future.done():
                gave_up.append(entry)
                continue
            if taken and rows + entry.rows > max_rows:
                break
            taken.append(entry)
            rows += entry.rows
        for entry in (*gave_up, *taken):
            self._remove(entry)
        return taken

    def _of(self, key: ShapeKey) -> Iterator[Entry]:
        lines = self._shapes[key].lines if key in self._shapes else {}
        for rank in sorted(lines):
            yield from lines[rank]

    def _insert(self, entry: Entry) -> None:
        entry.waits = True
        rank = entry.rank
        shape = self._shapes[entry.key]
        shape.rows += entry.rows
        self._lines[rank][entry] = None
        shape.lines[rank][entry] = None
        if shape.rows >= self._ripe_rows:
            self._ripe[entry.key] = None
        self._size += 1

    def _remove(self, entry: Entry) -> None:
        entry.waits = False
        rank = entry.rank
        shape = self._shapes[entry.key]
        shape.rows -= entry.rows
        for lines in (self._lines, shape.lines):
            del lines[rank][entry]
            if not lines[rank]:
                del lines[rank]
        if not shape.lines:
            del self._shapes[entry.key]
        if shape.rows < self._ripe_rows:
            self._ripe.pop(entry.key, None)
        self._size -= 1

    def _wishes(self, request: Request) -> tuple[int, float]:
        """Return the level and the timeout in seconds that a request's parameters ask for.

        A level that the model does not have is its default one: so it is in Triton.
        """
        level, timeout_us = read_wishes(request.parameters)
        if level < 0 or timeout_us < 0:
            raise InvalidInput(
                f"priority {level} and timeout {timeout_us * MICRO} s came, wanted at least 0"
            )
        if not 1 <= level <= self._batching.levels:
            level = self._batching.default_level
        return level, timeout_us * MICRO


def read_wishes(parameters: bytes) -> tuple[int, int]:
    """Return the priority and the timeout in microseconds that a request asks for; 0: none.

    Raises:
        InvalidInput: the parameters are no JSON object with such numbers.
    """
    if not parameters:
        return 0, 0
    try:
        wishes = json.loads(parameters)
        level, timeout_us = int(wishes.get("priority", 0)), int(wishes.get("timeout", 0))
        float(timeout_us)  # one that is too large for a clock
    except (ValueError, TypeError, AttributeError, OverflowError) as err:
        raise InvalidInput(
            f"parameters {parameters[:80]!r} came, wanted a JSON object with priority "
            "(1 is the most urgent) and timeout (microseconds)"
        ) from err
    return level, timeout_us
