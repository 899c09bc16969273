"""Tensors in, tensors out inside infer_svc, against the engine alone; rounds in turn."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.bare import Bare
from benchmarks.gpu.networks import NETWORKS, ROWS, Network, write
from benchmarks.gpu.served import Model, pinned_items, plain_items
from infer_svc.backends.cuda import device
from infer_svc.backends.machine import Machine
from infer_svc.backends.tensorrt import tensorrt_api
from infer_svc.build.builds import Builds
from infer_svc.config import read_config
from infer_svc.metrics import ModelMetrics

SECONDS = 3.0
ROUNDS = 3
BARE_CONTEXTS = 4
LANES = {"resnet50": 8, "bert-large": 6}
"""More than contexts of the bare loop: while some batches are gathered, others run."""


async def measure(root: Path) -> dict[str, Any]:
    """Return the figures of each network."""
    return {name: await _network(network, root) for name, network in NETWORKS.items()}


async def _network(network: Network, root: Path) -> dict[str, Any]:
    builds = Builds(root / "engines")
    lanes = LANES[network.name]
    folder = write(network, root / "models", lanes)
    model = Model(folder, network, Machine(builds=builds))
    plan = builds.engine_for(folder / "1/model.onnx", read_config(folder), 0).plan
    bare = Bare(tensorrt_api(), device(0), plan, network.rows(ROWS), BARE_CONTEXTS)
    pinned, plain = pinned_items(network), plain_items(network)
    waiting = 3 * lanes * ROWS
    shares: dict[str, list[dict[str, float]]] = {"shared": [], "bytes": []}
    rows = []
    for _ in range(ROUNDS):
        row = [bare.rate(1, SECONDS), bare.rate(BARE_CONTEXTS, SECONDS)]
        for name, items in (("shared", pinned), ("bytes", plain)):
            before = Spent.of(model.metrics)
            row.append(await model.rate(items, SECONDS, waiting))
            shares[name].append(Spent.of(model.metrics).since(before))
        rows.append(row)
    figures = {
        "gpu": device(0).name, "lanes": lanes, "bare_contexts": BARE_CONTEXTS,
        "load_s": round(model.load_s, 2), "open_lanes_s": round(model.open_s, 2),
        **{
            name: round(statistics.median(row[index] for row in rows))
            for index, name in enumerate(
                ("bare_one_per_s", "bare_per_s", "served_shared_per_s", "served_bytes_per_s")
            )
        },
        "served_shared_to_bare": round(statistics.median(row[2] / row[1] for row in rows), 3),
        "served_bytes_to_bare": round(statistics.median(row[3] / row[1] for row in rows), 3),
        "ms_per_batch": {
            name: {
                part: round(statistics.median(one[part] for one in found), 3) for part in found[0]
            }
            for name, found in shares.items()
        },
    }  # fmt: skip
    bare.close()
    model.close()
    device(0).unregister_all()
    return figures


@dataclass(frozen=True)
class Spent:
    """What a model had done at some moment."""

    batches: int
    rows: int
    seconds: dict[str, float]

    @classmethod
    def of(cls, metrics: ModelMetrics) -> "Spent":
        parts = ("h2d", "run", "d2h", "around")
        seconds = {part: getattr(metrics, part).total for part in parts}
        return cls(metrics.batches, metrics.rows, seconds)

    def since(self, before: "Spent") -> dict[str, float]:
        """Return milliseconds of a batch in each part, and its rows."""
        batches = max(1, self.batches - before.batches)
        return {"rows": (self.rows - before.rows) / batches} | {
            part: 1e3 * (seconds - before.seconds[part]) / batches
            for part, seconds in self.seconds.items()
        }
