"""infer_svc without its network: tensors into the batcher, tensors out of it."""

import asyncio
import json
import math
import mmap
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from opentelemetry.trace import NoOpTracer

from benchmarks.gpu.networks import ROWS, Network
from infer_svc.backends.cuda import device
from infer_svc.backends.machine import Machine
from infer_svc.batcher import Batcher
from infer_svc.metrics import ModelMetrics
from infer_svc.pool import LanePool
from infer_svc.repository import load_model
from infer_svc.served import Served, open_lanes
from mesh.item import Request
from mesh.tensor import Tensors

DISTINCT = 128
"""Rows that requests bring in turn."""


class Model:
    """A network as infer_svc serves it."""

    def __init__(self, folder: Path, network: Network, machine: Machine) -> None:
        self.network = network
        self.lost: list[str] = []
        started = time.perf_counter()
        model = load_model(folder, machine)
        self.load_s = time.perf_counter() - started
        self.metrics = ModelMetrics(network.name, model.version, ROWS)
        lanes, spares, golden = open_lanes(model, asyncio.get_running_loop())
        self.open_s = time.perf_counter() - started - self.load_s
        self.pool = LanePool(lanes, spares, golden, self.metrics)
        self.batcher = Batcher(
            model.config, self.pool, NoOpTracer(), self.metrics, self.lost.append
        )
        self._served = Served(model, self.batcher, self.pool, self.metrics)
        self._key = tuple(network.shapes.values())

    def close(self) -> None:
        """End its lanes."""
        self._served.close()

    async def ask(self, tensors: Tensors) -> None:
        """Ask for one row and wait for the answer."""
        await self.batcher.run(Request(self.network.name, b""), tensors, self._key, 1)

    async def rate(self, items: Sequence[Tensors], seconds: float, waiting: int) -> float:
        """Return answers per second, with so many requests under way all the time."""
        count = 0
        end = time.perf_counter() + seconds

        async def client(first: int) -> None:
            nonlocal count
            at = first
            while time.perf_counter() < end:
                await self.ask(items[at % len(items)])
                count += 1
                at += 1

        began = time.perf_counter()
        await asyncio.gather(*(client(number) for number in range(waiting)))
        return count / (time.perf_counter() - began)

    async def latencies(self, items: Sequence[Tensors], rate: float, seconds: float) -> list[float]:
        """Return seconds from when each request was due to its answer; they are due at random.

        A request that this process sends late was due all the same.
        """
        random = np.random.default_rng(0)
        due = np.cumsum(random.exponential(1 / rate, math.ceil(rate * seconds)))
        found: list[float] = []
        began = time.perf_counter()

        async def one(index: int) -> None:
            await self.ask(items[index % len(items)])
            found.append(time.perf_counter() - began - due[index])

        tasks = []
        for index, moment in enumerate(due):
            if (pause := moment - (time.perf_counter() - began)) > 0:
                await asyncio.sleep(pause)
            tasks.append(asyncio.ensure_future(one(index)))
        await asyncio.gather(*tasks)
        return found


def pinned_items(network: Network) -> list[Tensors]:
    """Return rows in memory that the GPU reads where it is, as those that came by the arena."""
    rows = network.rows(DISTINCT)
    items: list[Tensors] = [{} for _ in range(DISTINCT)]
    for name, array in rows.items():
        memory = memoryview(mmap.mmap(-1, array.nbytes))
        device(0).register(memory)
        shared = np.frombuffer(memory, array.dtype).reshape(array.shape)
        shared[...] = array
        for index in range(DISTINCT):
            items[index][name] = shared[index : index + 1]
    return items


def plain_items(network: Network) -> list[Tensors]:
    """Return rows in memory of the process, as those that came with their request."""
    return [network.rows(1, seed) for seed in range(DISTINCT)]


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return mean and percentiles in milliseconds."""
    values = 1e3 * np.asarray(seconds)
    return {
        "mean_ms": round(float(values.mean()), 3),
        **{f"p{q}_ms": round(float(np.percentile(values, q)), 3) for q in (50, 95, 99)},
        "max_ms": round(float(values.max()), 3),
    }


def show(figures: object) -> None:
    """Print figures for a person."""
    print(json.dumps(figures, indent=2), flush=True)
