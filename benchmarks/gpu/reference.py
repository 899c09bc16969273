"""Latency at the rates of the reference table, beside PyTorch alone on the same GPU."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.networks import BERT, RESNET, Network, write
from benchmarks.gpu.served import Model, percentiles, pinned_items
from infer_svc.backends.cuda import device
from infer_svc.backends.machine import Machine
from infer_svc.build.builds import Builds

FACTORS = {RESNET.name: 4.8, BERT.name: 17.0}
"""Of PyTorch's rate one by one: the rates at which latency is measured."""
LANES = 4
SECONDS = 8.0
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


async def measure(root: Path) -> dict[str, Any]:
    """Return the figures of each network."""
    return {network.name: await _network(network, root) for network in (RESNET, BERT)}


async def _network(network: Network, root: Path) -> dict[str, Any]:
    half = network is BERT  # as its users run it; ResNet-50 in FP32
    alone = torch_rate(network, 1, half)
    batched = {size: round(torch_rate(network, size, True) * size) for size in BATCHES}
    torch.cuda.empty_cache()
    rate = FACTORS[network.name] * alone
    folder = write(network, root / "models", LANES, delay_us=0)
    model = Model(folder, network, Machine(builds=Builds(root / "engines")))
    items = pinned_items(network)
    await model.latencies(items, rate, 2.0)  # warm
    found = percentiles(await model.latencies(items, rate, SECONDS))
    model.close()
    device(0).unregister_all()
    best = max(batched, key=lambda size: batched[size])
    return {
        "gpu": device(0).name,
        "torch_one_by_one_per_s": round(alone, 1), "torch_dtype": "fp16" if half else "fp32",
        "factor": FACTORS[network.name], "offered_per_s": round(rate), **found,
        "torch_fp16_best_batch": best, "torch_fp16_best_per_s": batched[best],
    }  # fmt: skip


def torch_rate(network: Network, rows: int, half: bool) -> float:
    """Return batches per second of PyTorch, inputs from the CPU and outputs back to it."""
    module = network.make().cuda()
    module = module.half() if half else module
    inputs = [torch.from_numpy(array) for array in network.rows(rows).values()]
    if not half:
        inputs = [tensor.float() if tensor.is_floating_point() else tensor for tensor in inputs]

    def run() -> None:
        made = module(*(tensor.cuda() for tensor in inputs))
        (made.logits if hasattr(made, "logits") else made).cpu()

    with torch.inference_mode():
        for _ in range(10):
            run()
        return statistics.median(_rate(run) for _ in range(3))


def _rate(run: Callable[[], None]) -> float:
    count, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < 0.7:
        run()
        count += 1
    return count / took
