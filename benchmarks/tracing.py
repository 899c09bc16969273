"""CPU that tracing costs the services: off, on with unsampled requests, and sampled ones.

Three meshes are up at once, on which bursts run in turn: two without tracing, whose difference
shows what the figures are good for, and one that traces what its callers ask for. Requests are
small pictures through all stages by `Stream`, 32 at a time, from this process. CPU is user and
system time of the four services, spans' export to the gateway's own store included.
"""

import asyncio
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks.environment import keep
from mesh.cli.up import wait_ready
from mesh.client import StageClient
from mesh.item import Request
from mesh.tensor import bytes_tensor, pack

MODELS = Path(__file__).parent.parent / "models"
DIGIT = MODELS / "digits-classify/samples/digit.png"
OFF, CONTROL, ON = "127.0.0.1:18993", "127.0.0.1:18994", "127.0.0.1:18995"
DISABLED = {"OTEL_SDK_DISABLED": "true"}
"""Of a mesh that makes no trace."""
ASKED = {"OTEL_TRACES_SAMPLER": "parentbased_always_off"}
"""Of a mesh that samples what its callers ask for, and writes late traces of slow requests."""
CONCURRENCY = 32
BURST = 1500
"""Requests."""
ROUNDS = 20
FLUSH_S = 1.2
"""After each burst: the last spans leave within half a second."""

SEVERAL = [(OFF, DISABLED), (CONTROL, DISABLED), (ON, ASKED)]


@dataclass(frozen=True)
class Mode:
    """One way to ask."""

    name: str
    gateway: str
    trace: Callable[[], bytes]


def sampled() -> bytes:
    """Return a new trace context that asks for spans."""
    return random.randbytes(24) + b"\1"


MODES = [
    Mode("off", OFF, bytes),
    Mode("control", CONTROL, bytes),
    Mode("unsampled", ON, bytes),
    Mode("sampled", ON, sampled),
]


@contextmanager
def running(gateway: str, settings: dict[str, str]) -> Any:
    """Run a mesh and yield its services."""
    up = [sys.executable, "-m", "mesh.cli", "up", "--models", str(MODELS), "--bind", gateway]
    up += ["--workers", "gateway=1", "preprocess=1", "postprocess=1"]
    others = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    env = {**others, "GATEWAY_HTTP": "", "GATEWAY_METRICS_PORT": "0", **settings}
    mesh = subprocess.Popen(up, env=env, stderr=subprocess.DEVNULL)
    try:
        if not asyncio.run(wait_ready(gateway, 60)):
            raise RuntimeError("the mesh is not ready")
        yield psutil.Process(mesh.pid).children()
    finally:
        mesh.terminate()
        mesh.wait()


def cpu_s(services: list[psutil.Process]) -> float:
    """Return user and system seconds of processes together."""
    return sum(sum(service.cpu_times()[:2]) for service in services)


async def burst(client: StageClient, trace: Callable[[], bytes]) -> None:
    """Send requests in a closed loop."""
    payload = pack({"image": bytes_tensor(DIGIT.read_bytes())})
    left = iter(range(BURST))

    async def worker() -> None:
        for _ in left:
            request = Request("digits-classify", payload, deadline=time.monotonic() + 60)
            request.trace = trace()
            error = (await client.call(request)).error()
            if error is not None:
                raise error

    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))


async def rounds(services: dict[str, list[psutil.Process]]) -> list[dict[str, float]]:
    """Return CPU microseconds per request of each mode, of each round but the first."""
    rows = []
    for number in range(ROUNDS + 1):
        row = {}
        shift = number % len(MODES)
        for mode in MODES[shift:] + MODES[:shift]:
            async with StageClient("mesh.v1.Mesh", mode.gateway, "Stream") as client:
                await client.wait_ready(10)
                before = cpu_s(services[mode.gateway])
                await burst(client, mode.trace)
                await asyncio.sleep(FLUSH_S)
                row[mode.name] = (cpu_s(services[mode.gateway]) - before) / BURST * 1e6
        print({name: round(value) for name, value in row.items()}, flush=True)
        rows.append(row)
    return rows[1:]


def summary(values: list[float]) -> dict[str, float]:
    """Return the median and the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 1), "quartile_1": round(low, 1), "quartile_3": round(high, 1)}


def measure() -> None:
    with ExitStack() as stack:
        services = {
            gateway: stack.enter_context(running(gateway, settings))
            for gateway, settings in SEVERAL
        }
        rows = uvloop.run(rounds(services))
    figures = {f"{mode.name}_us": summary([row[mode.name] for row in rows]) for mode in MODES}
    for name in ("control", "unsampled", "sampled"):
        over = summary([row[name] - row["off"] for row in rows])
        figures[f"{name}_over_off_us"] = over
        print(f"{name} over off, µs of CPU per request: {over}")
    keep("tracing", figures)


if __name__ == "__main__":
    measure()
