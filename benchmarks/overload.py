"""Three times more requests than the mesh can answer: what is answered, how late, what is refused.

JPEG to top-5 by unary calls at random moments, with `GATEWAY_TARGET_MS`. First the peak of a closed
loop, then 0.8 and 3 times that rate, then one heavy client of `Stream` beside callers that ask now
and then. The model is made heavy, as the client shares the machine: its sending, and the refusing,
must not be what the machine is busy with.
"""

import shutil
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bench_model import write_repository
from benchmarks.environment import keep
from benchmarks.peers.systems import BY_NAME, Place, start_mesh
from benchmarks.peers.turn import client

TARGET_MS = "150"
SECONDS = 5.0
ROUNDS = 4
LIGHT, OVER = 0.8, 3.0
PEAK = 8
"""Requests under way in the closed loop: enough to be busy all the time, and to be in time."""
HEAVY = 64
"""Items of the heavy client under way."""
NOW_AND_THEN = 5.0
"""Requests per second of the other callers."""


def pss_mb(root: int) -> float:
    """Return the memory of a process and all below it."""
    top = psutil.Process(root)
    processes = [top, *top.children(recursive=True)]
    return sum(process.memory_full_info().pss for process in processes) / 1e6


def rounds(place: Place) -> list[dict[str, Any]]:
    """Return the reports of each round."""
    # With admission by latency.
    start = partial(start_mesh, environment={"GATEWAY_TARGET_MS": TARGET_MS})
    system = replace(BY_NAME["mesh"], name="overload", start=start)
    with system.serve(place) as (pid, address), ThreadPoolExecutor(1) as other:
        ask = client(system, place, address)
        heavy = client(BY_NAME["mesh-stream"], place, address)
        ask("closed", "--concurrency", PEAK, "--seconds", SECONDS)
        found = []
        for number in range(ROUNDS):
            seeds = ("--seed", number, "--seconds", SECONDS)
            peak = ask("closed", "--concurrency", PEAK, "--seconds", SECONDS)
            light = ask("open", "--rate", LIGHT * peak["per_s"], *seeds)
            before = pss_mb(pid)
            over = ask("open", "--rate", OVER * peak["per_s"], *seeds)
            after = pss_mb(pid)
            flood = other.submit(heavy, "closed", "--concurrency", HEAVY, "--seconds", SECONDS)
            beside = ask("open", "--rate", NOW_AND_THEN, *seeds)
            found.append({
                "peak": peak, "light": light, "over": over, "pss_mb": [before, after],
                "heavy": flood.result(), "beside": beside,
            })  # fmt: skip
            print({name: found[-1][name] for name in ("peak", "light", "over", "beside")})
        return found


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians over the rounds but the first, in which overload is new, and that one's."""
    first, *rows = rows

    def median(values: list[float]) -> float:
        return round(statistics.median(values), 3)

    overs = [row["over"] for row in rows]
    return {
        "target_ms": float(TARGET_MS), "over": OVER,
        "peak_per_s": median([row["peak"]["per_s"] for row in rows]),
        "light_p99_ms": median([row["light"]["p99_ms"] for row in rows]),
        "goodput_to_peak": median([row["over"]["per_s"] / row["peak"]["per_s"] for row in rows]),
        "served_p99_ms": median([over["p99_ms"] for over in overs]),
        "served_p99_to_light": median(
            [row["over"]["p99_ms"] / row["light"]["p99_ms"] for row in rows]
        ),
        "refused_p99_ms": median([over["error_p99_ms"] or 0.0 for over in overs]),
        "client_late_p99_ms": median([over["late_p99_ms"] for over in overs]),
        "errors": [over["errors"] for over in overs],
        "when_new": {
            name: first["over"][name]
            for name in ("per_s", "p50_ms", "p99_ms", "error_p99_ms", "errors")
        },
        "pss_mb_after_each": [round(row["pss_mb"][1], 1) for row in rows],
        "beside_heavy": {
            "answered": sum(row["beside"]["answered"] for row in rows),
            "errors": [row["beside"]["errors"] for row in rows],
            "p50_ms": median([row["beside"]["p50_ms"] for row in rows]),
            "p99_ms": median([row["beside"]["p99_ms"] for row in rows]),
        },
    }  # fmt: skip


def measure() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        place.prepare()
        shutil.rmtree(place.models / "bench")
        write_repository(place.models, heavy=True)
        found = figures(rounds(place))
    print(found)
    keep("overload", found)


if __name__ == "__main__":
    measure()
