"""CPU time per request of each service, and the rate that more preprocess workers give.

`trtmesh size` answers from these figures. CPU times are those of the runs with the fewest and the
most workers, where the machine has least and most to do; how busy a process of preprocess gets is
what it was as the only one. Each run between is compared with the rate that these predict for it.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.environment import keep
from benchmarks.load.cpu import cpu_seconds, cpu_us
from benchmarks.peers.systems import BY_NAME, NOTHING, Place, start_mesh
from benchmarks.peers.turn import CONCURRENCY, client
from mesh.cores import workers
from mesh.sizing import HOPS, SERVICES, Costs

SECONDS = 4.0
WORKERS = (1, 2, 3, 4, 8, 16)
FEWEST_RUNS = 3
CORES_PER_CLIENT = 4
MODULES = {
    "gateway": ("gateway", "gateway.worker", "gateway.control"), "preprocess": ("preprocess_svc",),
    "infer": ("infer_svc",), "postprocess": ("postprocess_svc",),
}  # fmt: skip
"""Processes of each service, as `benchmarks.load.cpu` names them."""
WORK = {"bench": "mesh", "language": "mesh-text"}
"""The system of `benchmarks.peers` that asks each pipeline."""


@dataclass(frozen=True)
class Run:
    """One mesh under load."""

    processes: dict[str, int]
    per_s: float
    costs: Costs

    @property
    def busy(self) -> float:
        """Cores of the machine that were busy."""
        return self.per_s * (sum(self.costs.services.values()) + self.costs.client)

    def record(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "processes": self.processes, "per_s": round(self.per_s, 1),
            "cpu_ms": _ms(self.costs.services),
        }  # fmt: skip


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--pipelines", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--workers", nargs="+", type=int, metavar="N", help="of preprocess")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    return parser.parse_args(words)


def measure(place: Place, pipeline: str, hops: str, counts: list[int], seconds: float) -> Any:
    """Return the figures of a pipeline over a kind of hops."""
    runs = [load(place, WORK[pipeline], hops, seconds, preprocess=count) for count in counts]
    costs = fit(runs[0], runs[-1])
    cores = len(os.sched_getaffinity(0))
    records = [run.record() for run in runs]
    for run, record in zip(runs, records, strict=True):
        predicted, busy = costs.limit(run.processes, cores)
        print(pipeline, hops, record, f"predicted {predicted:.0f}/s: {busy}", flush=True)
    return {
        "cpu_ms": _ms(costs.services), "client_cpu_ms": round(1e3 * costs.client, 4),
        "busiest_cores": {name: round(busy, 3) for name, busy in costs.busiest.items()},
        "fitted_on": [records[0]["processes"], records[-1]["processes"]], "runs": records,
    }  # fmt: skip


def fit(light: Run, full: Run) -> Costs:
    """Return the costs of two runs, with how busy a process of each service was in either."""
    busiest = {
        name: max(
            1.0,
            *(run.per_s * run.costs.services[name] / run.processes[name] for run in (light, full)),
        )
        for name in SERVICES
    }
    return replace(
        full.costs, busiest=busiest, light=light.costs.services, busy=(light.busy, full.busy)
    )  # fmt: skip


def load(
    place: Place,
    work: str,
    hops: str,
    seconds: float,
    environment: Mapping[str, str] = NOTHING,
    clients: int = 0,
    options: Sequence[str] = (),
    **processes: int,
) -> Run:
    """Load a mesh as hard as clients can.

    Args:
        place: with its models and inputs.
        work: name of the system of `benchmarks.peers` that says what is asked, and how.
        hops: `shared` or `tcp`.
        seconds: of the measurement.
        environment: of the mesh.
        clients: processes that ask; 0: one for every four cores.
        options: of `trtmesh up` beside.
        processes: of the services; others have as many as the cores are worth, infer one.
    """
    counts = {name: processes.get(name) or workers(name, 0) for name in SERVICES}
    start = partial(start_mesh, processes=counts, environment=environment, options=options)
    system = replace(BY_NAME[work], name=f"scaling-{hops}", start=start)
    clients = clients or max(1, len(os.sched_getaffinity(0)) // CORES_PER_CLIENT)
    with system.serve(place) as (pid, address), ThreadPoolExecutor(clients) as pool:
        ask = client(system, place, address)

        def busy(seconds: float) -> list[Any]:
            words = ("closed", "--concurrency", CONCURRENCY, "--seconds", seconds)
            return list(pool.map(lambda _: ask(*words), range(clients)))

        busy(seconds / 2)
        before = cpu_seconds(pid)
        reports = busy(seconds)
        answered = sum(report["answered"] for report in reports)
        used = cpu_us(before, cpu_seconds(pid), answered + clients)
    costs = Costs(
        {name: sum(used.get(module, 0.0) for module in MODULES[name]) / 1e6 for name in SERVICES},
        sum(report["client_cpu_us"] * report["answered"] for report in reports) / answered / 1e6,
    )
    return Run(counts, sum(report["per_s"] for report in reports), costs)


def _ms(services: Any) -> dict[str, float]:
    return {name: round(1e3 * seconds, 4) for name, seconds in services.items()}


def main(words: list[str]) -> None:
    job = parse(words)
    cores = len(os.sched_getaffinity(0))
    counts = job.workers or [count for count in WORKERS if count <= max(cores, FEWEST_RUNS)]
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        place.prepare()
        figures = {
            pipeline: {hops: measure(place, pipeline, hops, counts, job.seconds) for hops in HOPS}
            for pipeline in job.pipelines
        }
    keep("scaling", figures)


if __name__ == "__main__":
    main(sys.argv[1:])
