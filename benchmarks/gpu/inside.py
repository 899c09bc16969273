"""Tensors in, tensors out inside infer_svc, against the engine alone; rounds in turn."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.gpu.bare import Bare
from benchmarks.gpu.networks import NETWORKS, ROWS, Network, write
from benchmarks.gpu.served import Model, pinned_items, plain_items
from infer_svc.backends.cuda import device
from infer_svc.backends.machine import Machine
from infer_svc.backends.tensorrt import tensorrt_api
from infer_svc.build.builds import Builds

SECONDS = 3.0
ROUNDS = 3
BARE_CONTEXTS = 4
LANES = 6
"""More than contexts of the bare loop: while some batches are gathered, others run."""


async def measure(root: Path) -> dict[str, Any]:
    """Return the figures of each network."""
    return {name: await _network(network, root) for name, network in NETWORKS.items()}


async def _network(network: Network, root: Path) -> dict[str, Any]:
    builds = Builds(root / "engines")
    folder = write(network, root / "models", LANES)
    model = Model(folder, network, Machine(builds=builds))
    plan = next(path for path in (root / "engines").glob("*/model.plan") if _is_of(path, network))
    bare = Bare(tensorrt_api(), device(0), plan, network.rows(ROWS), BARE_CONTEXTS)
    pinned, plain = pinned_items(network), plain_items(network)
    waiting = 3 * LANES * ROWS
    rows = [
        (
            bare.rate(1, SECONDS), bare.rate(BARE_CONTEXTS, SECONDS),
            await model.rate(pinned, SECONDS, waiting), await model.rate(plain, SECONDS, waiting),
        )
        for _ in range(ROUNDS)
    ]  # fmt: skip
    metrics = model.metrics
    figures = {
        "gpu": device(0).name, "lanes": LANES, "bare_contexts": BARE_CONTEXTS,
        "load_s": round(model.load_s, 2), "open_lanes_s": round(model.open_s, 2),
        **{
            name: round(statistics.median(row[index] for row in rows))
            for index, name in enumerate(
                ("bare_one_per_s", "bare_per_s", "served_shared_per_s", "served_bytes_per_s")
            )
        },
        "served_shared_to_bare": round(statistics.median(row[2] / row[1] for row in rows), 3),
        "served_bytes_to_bare": round(statistics.median(row[3] / row[1] for row in rows), 3),
        "rows_per_batch": round(metrics.rows / metrics.batches, 1),
        "ms_per_batch": {
            "h2d": round(1e3 * metrics.h2d.total / metrics.batches, 3),
            "run": round(1e3 * metrics.run.total / metrics.batches, 3),
            "d2h": round(1e3 * metrics.d2h.total / metrics.batches, 3),
            "around": round(1e3 * metrics.around.total / metrics.batches, 3),
        },
    }  # fmt: skip
    bare.close()
    model.close()
    device(0).unregister_all()
    return figures


def _is_of(plan: Path, network: Network) -> bool:
    return f'"{network.name}"' in (plan.parent / "manifest.json").read_text()
