"""How many processes a rate needs, and what rate processes and cores take: from CPU time.

A process is busy for its CPU time per request times the rate, and no busier than one of its kind
was seen: for a core, as Python runs one thread at a time, and for what libraries do beside it. A
machine is busy for the sum. Both are the utilization law of queueing theory, U = X · D.
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


@dataclass(frozen=True)
class Costs:
    """CPU time of one request, in seconds, by service."""

    services: Mapping[str, float]
    client: float = 0.0
    """Of whoever asks, where that is on the same machine."""
    busiest: Mapping[str, float] = field(default_factory=dict)
    """Cores that a process of a service keeps busy at most; one where it is not named."""

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
        limits = [
            (processes[service] * self._cores(service) / seconds, service)
            for service, seconds in self.services.items()
            if seconds
        ]
        whole = sum(self.services.values()) + self.client
        return min([*limits, (cores / whole, "cores")])

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
        services = {name: found["cpu_ms"][name] / 1e3 for name in SERVICES}
        busiest = {name: float(found["busiest_cores"][name]) for name in SERVICES}
        return Costs(services, found["client_cpu_ms"] / 1e3, busiest), where
    except (KeyError, TypeError) as err:
        raise SettingsError(f"{path} has no figures of {pipeline!r} over {hops}: {err!r}") from err
