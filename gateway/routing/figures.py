"""What was counted of versions: requests, faults, and how long their calls took."""

import math
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from protos.mesh.v1 import routes_pb2

SMALLEST_S, GROWTH = 1e-5, 1.05
"""Bucket n ends at 10 µs · 1.05ⁿ: a percentile is right within 5 %."""

Key = tuple[str, str, str]
"""Pipeline, version and arm."""


@dataclass
class Figures:
    """Of one version in one arm."""

    requests: int = 0
    errors: int = 0
    same: int = 0
    """Answers of a shadow that were those of callers."""
    seconds: Counter[int] = field(default_factory=Counter)
    """Calls by bucket."""

    def note(self, seconds: float, *, failed: bool) -> None:
        """Count a call."""
        self.requests += 1
        self.errors += failed
        self.seconds[bucket(seconds)] += 1

    def add(self, other: "Figures") -> None:
        """Add those of another time or process."""
        self.requests += other.requests
        self.errors += other.errors
        self.same += other.same
        self.seconds.update(other.seconds)

    def percentile(self, share: float) -> float:
        """Return the seconds that a share (0..1) of the calls did not exceed; 0: no calls."""
        wanted, seen = math.ceil(share * self.seconds.total()), 0
        for index in sorted(self.seconds):
            seen += self.seconds[index]
            if seen >= wanted > 0:
                return float(SMALLEST_S * GROWTH**index)
        return 0.0

    @property
    def error_rate(self) -> float:
        """Share of requests that failed; 0: there were none."""
        return self.errors / self.requests if self.requests else 0.0


def bucket(seconds: float) -> int:
    """Return the number of the bucket of a time."""
    return max(0, math.ceil(math.log(max(seconds, SMALLEST_S) / SMALLEST_S, GROWTH)))


def pack_figures(found: dict[Key, Figures]) -> routes_pb2.RouteFigures:
    """Return figures as a message."""
    message = routes_pb2.RouteFigures()
    for (pipeline, version, arm), one in found.items():
        message.arms.add(
            pipeline=pipeline, version=version, arm=arm, requests=one.requests, errors=one.errors,
            same=one.same, seconds=one.seconds,
        )  # fmt: skip
    return message


def unpack_figures(message: routes_pb2.RouteFigures) -> dict[Key, Figures]:
    """Return the figures of a message."""
    return {
        (one.pipeline, one.version, one.arm): Figures(
            one.requests, one.errors, one.same, Counter(dict(one.seconds))
        )
        for one in message.arms
    }


class Window:
    """Figures of the last seconds."""

    def __init__(self) -> None:
        self._parts: deque[tuple[float, dict[Key, Figures]]] = deque()

    def add(self, figures: Iterable[dict[Key, Figures]], keep_s: float) -> None:
        """Add what processes counted since the last call, and forget what is older.

        Args:
            figures: of each process.
            keep_s: seconds that are asked for at most.
        """
        now = time.monotonic()
        whole: dict[Key, Figures] = {}
        for part in figures:
            for key, one in part.items():
                whole.setdefault(key, Figures()).add(one)
        self._parts.append((now, whole))
        while self._parts[0][0] < now - keep_s:
            self._parts.popleft()

    def of(self, key: Key, seconds: float) -> Figures:
        """Return the sum of the last seconds."""
        begin = time.monotonic() - seconds
        found = Figures()
        for at, part in self._parts:
            if at >= begin and key in part:
                found.add(part[key])
        return found

    def forget(self, pipeline: str) -> None:
        """Begin anew with a pipeline: its route is another one now."""
        for _, part in self._parts:
            for key in [key for key in part if key[0] == pipeline]:
                del part[key]
