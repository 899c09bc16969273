"""How many processes a rate needs, and what rate processes and cores take: from CPU time.

A process is busy for its CPU time per request times the rate, and no busier than one of its kind
was seen: for a core, as Python runs one thread at a time, and for what libraries do beside it. A
machine is busy for the sum. Both are the utilization law of queueing theory, U = X · D.

The busier a machine is, the more CPU time a request takes: two hyperthreads share a core, and all
share the memory. What it takes is measured on a machine with little to do and on one with much, and
taken to grow in proportion between them.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.errors import InvalidInput, NotFound, SettingsError

SERVICES = ("gateway", "preprocess", "infer", "postprocess")
HOPS = ("shared", "tcp")
HALVINGS = 40
"""More than a float's bits of what is searched for: cores."""


@dataclass(frozen=True)
class Costs:
    """CPU time of one request, in seconds, by service, on a machine with much to do."""

    services: Mapping[str, float]
    client: float = 0.0
    """Of whoever asks, where that is on the same machine."""
    busiest: Mapping[str, float] = field(default_factory=dict)
    """Cores that a process of a service keeps busy at most; one where it is not named."""
    light: Mapping[str, float] = field(default_factory=dict)
    """As `services`, on a machine with little to do; empty: the same."""
    busy: tuple[float, float] = (0.0, 0.0)
    """Cores of the machine that were busy: with little to do, and with much."""

    def needed(self, rate: float, load: float) -> dict[str, int]:
        """Return the processes of each service, each as busy as a share of what it can be.

        Args:
            rate: requests per second.
            load: that share, over 0 and up to 1.
        """
        if not rate > 0 or not 0 < load <= 1:
            raise InvalidInput(f"rate {rate:g} and load {load:g} came, wanted over 0, and 0 to 1")
        return {
            service: max(1, math.ceil(rate * seconds / (load * self._cores(service))))
            for service, seconds in self.services.items()
        }

    def limit(self, processes: Mapping[str, int], cores: int) -> tuple[float, str]:
        """Return the most requests per second, and what is busy all the time then.

        Args:
            processes: of each service.
            cores: that the services have, and the client with them.
        """
        low, high = 0.0, float(cores)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            rate, _, whole = self._limit(processes, cores, middle)
            low, high = (middle, high) if rate * whole > middle else (low, middle)
        return self._limit(processes, cores, high)[:2]

    def _limit(
        self, processes: Mapping[str, int], cores: int, busy: float
    ) -> tuple[float, str, float]:
        """Return rate, what limits it, and a request's CPU time while so many cores are busy."""
        taken = self._taken(busy)
        limits = [
            (processes[service] * self._cores(service) / seconds, service)
            for service, seconds in taken.items()
            if seconds
        ]
        whole = sum(taken.values()) + self.client
        return *min([*limits, (cores / whole, "cores")]), whole

    def _taken(self, busy: float) -> dict[str, float]:
        """Return the CPU time of each service while so many cores are busy."""
        little, much = self.busy
        share = min(1.0, max(0.0, (busy - little) / (much - little))) if much > little else 1.0
        return {
            name: (1 - share) * self.light.get(name, full) + share * full
            for name, full in self.services.items()
        }

    def _cores(self, service: str) -> float:
        return self.busiest.get(service, 1.0)


def read_costs(path: Path, pipeline: str, hops: str) -> tuple[Costs, str]:
    """Read what `benchmarks.scaling` measured; return costs, and the machine that they are of.

    Raises:
        SettingsError: there is no such file, or it is another one.
        NotFound: it has no such pipeline.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        figures, machine = record["figures"], record["environment"]
        where = f"{machine['cpu']}, {machine['cores']} cores"
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise SettingsError(
            f"no figures can be read from {path}: {err!r}; `python -m benchmarks.scaling` of the "
            "source tree measures them, --figures says where they are"
        ) from err
    if pipeline not in figures:
        raise NotFound(
            f"{path} has no figures of pipeline {pipeline!r}, but of {sorted(figures)}; take the "
            "one that is most like it"
        )
    try:
        found = figures[pipeline][hops]
        little, much = found["runs"][0], found["runs"][-1]
        light, services = (
            {name: run["cpu_ms"][name] / 1e3 for name in SERVICES} for run in (little, much)
        )
        client = found["client_cpu_ms"] / 1e3
        busiest = {name: float(found["busiest_cores"][name]) for name in SERVICES}
        busy = tuple(
            run["per_s"] * (sum(taken.values()) + client)
            for run, taken in ((little, light), (much, services))
        )
        return Costs(services, client, busiest, light, (busy[0], busy[1])), where
    except (KeyError, IndexError, TypeError) as err:
        raise SettingsError(f"{path} has no figures of {pipeline!r} over {hops}: {err!r}") from err
