"""What waits for a lane of one model: by priority, by shape, fair between clients."""

import asyncio
import json
import math
import time
from dataclasses import dataclass, field

from infer_svc.config import Batching
from mesh.errors import InvalidInput, Overloaded
from mesh.item import Reply, Request
from mesh.tensor import Tensors

ShapeKey = tuple[tuple[int, ...], ...]
"""Shapes of a request's inputs beyond the first axis, in the order of the model's inputs."""


@dataclass(eq=False, slots=True)
class Entry:
    """One request that waits."""

    request: Request
    tensors: Tensors
    key: ShapeKey
    rows: int
    future: asyncio.Future[Reply]
    queued: float = field(default_factory=time.monotonic)
    expires: float = math.inf
    """When the queue policy ends its wait; its own deadline is apart."""


class RequestQueue:
    """Entries in the order they are to be served: level first, then turn by turn of clients."""

    def __init__(self, batching: Batching) -> None:
        self._batching = batching
        self._levels: dict[int, list[Entry]] = {}
        self._size = 0
        self._next_expiry = math.inf

    def __len__(self) -> int:
        return self._size

    def push(self, entry: Entry) -> None:
        """Queue an entry on its level.

        Raises:
            Overloaded: the level's `max_queue_size` is reached.
            InvalidInput: its priority or timeout cannot be used.
        """
        level, timeout_s = self._wishes(entry.request)
        policy = self._batching.policy(level)
        entries = self._levels.setdefault(level, [])
        if policy.max_size and len(entries) >= policy.max_size:
            raise Overloaded(
                f"{len(entries)} requests wait for model {entry.request.target!r}, "
                f"its max_queue_size is {policy.max_size}; try again in a moment"
            )
        limit = policy.timeout_s or math.inf
        if policy.allow_override and timeout_s:
            limit = min(limit, timeout_s)
        entry.expires = entry.queued + limit
        entries.append(entry)
        self._size += 1
        self._next_expiry = min(self._next_expiry, entry.expires, entry.request.deadline)

    def drop_late(self, now: float) -> list[Entry]:
        """Take out and return what may not start any more; what its policy delays moves back."""
        if now < self._next_expiry:
            return []
        late: list[Entry] = []
        moved: list[Entry] = []
        for level, entries in list(self._levels.items()):
            kept = []
            for entry in entries:
                if entry.request.deadline <= now:
                    late.append(entry)
                elif entry.expires > now:
                    kept.append(entry)
                else:
                    (late if self._batching.policy(level).reject else moved).append(entry)
            self._levels[level] = kept
        for entry in moved:
            entry.expires = math.inf
            self._levels.setdefault(max(self._levels), []).append(entry)
        self._size -= len(late)
        waiting = [entry for entries in self._levels.values() for entry in entries]
        self._next_expiry = min(
            (min(entry.expires, entry.request.deadline) for entry in waiting), default=math.inf
        )
        return late

    def next_key(self) -> ShapeKey | None:
        """Return the shapes of the entry that is served next."""
        for level in sorted(self._levels):
            if self._levels[level]:
                return self._levels[level][0].key
        return None

    def rows(self, key: ShapeKey) -> int:
        """Return how many rows of these shapes wait."""
        return sum(entry.rows for entry in self._of(key))

    def due(self, key: ShapeKey, delay_s: float, batch_s: float) -> float:
        """Return when entries of these shapes must start, on the clock of `time.monotonic`.

        Args:
            key: shapes.
            delay_s: longest wait of the oldest for more rows.
            batch_s: about how long a batch takes; an entry starts that much before its deadline.
        """
        return min(
            (min(e.queued + delay_s, e.request.deadline - 2 * batch_s) for e in self._of(key)),
            default=math.inf,
        )

    def take(self, key: ShapeKey, max_rows: int) -> list[Entry]:
        """Take entries of these shapes, in order, as long as their rows fit; at least one."""
        taken: list[Entry] = []
        rows = 0
        for level in sorted(self._levels):
            kept: list[Entry] = []
            for entry in self._levels[level]:
                if entry.future.done():
                    self._size -= 1  # its caller gave up
                elif entry.key == key and (not taken or rows + entry.rows <= max_rows):
                    taken.append(entry)
                    rows += entry.rows
                else:
                    kept.append(entry)
            self._levels[level] = kept
        self._size -= len(taken)
        return taken

    def _of(self, key: ShapeKey) -> list[Entry]:
        return [e for entries in self._levels.values() for e in entries if e.key == key]

    def _wishes(self, request: Request) -> tuple[int, float]:
        """Return the level and the timeout in seconds that a request's parameters ask for."""
        if not request.parameters:
            return self._batching.default_level, 0.0
        try:
            wishes = json.loads(request.parameters)
            level, timeout_s = int(wishes.get("priority", 0)), int(wishes.get("timeout", 0)) * 1e-6
        except (ValueError, TypeError, AttributeError) as err:
            raise InvalidInput(
                f"parameters {request.parameters[:80]!r} came, wanted a JSON object with priority "
                "(1 is the most urgent) and timeout (microseconds)"
            ) from err
        if not 0 <= level <= self._batching.levels or timeout_s < 0:
            raise InvalidInput(
                f"priority {level} and timeout {timeout_s} s came, wanted 0 to "
                f"{self._batching.levels} and at least 0"
            )
        return level or self._batching.default_level, timeout_s
