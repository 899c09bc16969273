"""ResNet-50 with batches that fail: failed calls, and how soon a spare lane runs them again.

One batch in a hundred fails: first 100,000 requests as fast as they are answered, then 0.8 of that
rate.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.networks import RESNET, write
from benchmarks.gpu.served import Model, percentiles, pinned_items
from infer_svc.backends.cuda import device
from infer_svc.backends.machine import Machine
from infer_svc.build.builds import Builds
from infer_svc.faults import parse_faults
from infer_svc.metrics import ModelMetrics
from mesh.errors import MeshError
from mesh.tensor import Tensors

REQUESTS = 100_000
FAULTS = "h2d=0.0033,enqueue=0.0033,sync=0.0034"
SHARE = 0.8
SECONDS = 20.0
LANES = 6
WAITING = 256


class Recording(ModelMetrics):
    """Keeps each time from a failure to the next run."""

    def __init__(self, name: str, version: int, max_rows: int) -> None:
        super().__init__(name, version, max_rows)
        self.times: list[float] = []

    def failed_over(self, seconds: float) -> None:
        """Keep it, and count it as always."""
        self.times.append(seconds)
        super().failed_over(seconds)


async def measure(root: Path) -> dict[str, Any]:
    """Return the figures."""
    folder = write(RESNET, root / "models", LANES)
    items = pinned_items(RESNET)
    full = await _flood(*_open(folder, root, FAULTS), items)
    model, recording = _open(folder, root, FAULTS)
    rate, failed = SHARE * full["per_s"], []
    try:
        latencies = await model.latencies(items, rate, SECONDS)
    except MeshError as err:
        latencies = []
        failed.append(f"{type(err).__name__}: {err}")
    eased = {
        "offered_per_s": round(rate), "faults": FAULTS, "failed": failed,
        "latency": percentiles(latencies) if latencies else {}, **_told(recording),
    }  # fmt: skip
    model.close()
    device(0).unregister_all()
    return {"gpu": device(0).name, "full": full, "eased": eased}


def _open(folder: Path, root: Path, faults: str) -> tuple[Model, Recording]:
    model = Model(
        folder, RESNET, Machine(faults=parse_faults(faults), builds=Builds(root / "engines"))
    )
    recording = Recording(RESNET.name, 1, 32)
    model.batcher._metrics = model.batcher._recovery._metrics = model.pool._metrics = recording
    return model, recording


async def _flood(model: Model, recording: Recording, items: list[Tensors]) -> dict[str, Any]:
    before = _usage()
    failed: list[str] = []
    left = REQUESTS

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            try:
                await model.ask(items[left % len(items)])
            except MeshError as err:
                failed.append(f"{type(err).__name__}: {err}")

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(WAITING)))
    took = time.perf_counter() - began
    while not model.pool.is_whole:
        await asyncio.sleep(0.01)
    figures = {
        "requests": REQUESTS, "faults": FAULTS, "failed_calls": len(failed),
        "first_failures": failed[:3], "lost": model.lost, "per_s": round(REQUESTS / took),
        **_told(recording), "usage_before": before, "usage_after": _usage(),
    }  # fmt: skip
    model.close()
    return figures


def _told(recording: Recording) -> dict[str, Any]:
    return {
        "batches": recording.batches, "batch_failures": dict(recording.batch_failures),
        "steps": dict(recording.steps), "contexts_rebuilt": sum(recording.rebuilds.values()),
        "failure_to_next_run": percentiles(recording.times) if recording.times else {},
    }  # fmt: skip


def _usage() -> dict[str, int]:
    usage = device(0).usage
    free, _ = device(0).memory()
    return {
        "contexts": usage.contexts, "pinned_bytes": usage.pinned_bytes,
        "device_bytes": usage.device_bytes, "gpu_free_bytes": free,
    }  # fmt: skip
