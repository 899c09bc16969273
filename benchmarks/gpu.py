"""One GPU: the batcher and its lanes against bare loops over the same engine, in one run.

ResNet-50 in FP16 with random weights, 224 x 224, batches of 32, several contexts at once. The bare
loop runs full batches that are ready, one thread for each context; infer_svc's side gets single
images through the batcher, with no network. Rounds are interleaved.
"""

import asyncio
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torchvision
import uvloop
from onnxruntime.transformers.float16 import convert_float_to_float16
from opentelemetry.trace import NoOpTracer

from benchmarks.environment import keep
from infer_svc.backends import Machine
from infer_svc.backends.cuda import device
from infer_svc.batcher import Batcher
from infer_svc.build.builds import Builds
from infer_svc.lane import Lane
from infer_svc.metrics import ModelMetrics
from infer_svc.pool import LanePool
from infer_svc.repository import load_model
from mesh.item import Request
from mesh.process import tune

ROWS = 32
LANES = 4
SECONDS = 3.0
ROUNDS = 3
CONFIG = f"""
max_batch_size: {ROWS}
instance_group [ {{ count: {LANES} kind: KIND_GPU }} ]
dynamic_batching {{ preferred_batch_size: [ {ROWS} ] max_queue_delay_microseconds: 1000 }}
"""


def write_resnet(folder: Path) -> None:
    """Write ResNet-50 with random weights, in FP16, as a model of a repository."""
    torch.manual_seed(0)
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG)
    path = folder / "1/model.onnx"
    network = torchvision.models.resnet50(weights=None).eval()
    torch.onnx.export(
        network, (torch.zeros(2, 3, 224, 224),), str(path), dynamo=False, opset_version=17,
        input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
    )  # fmt: skip
    onnx.save(convert_float_to_float16(onnx.load(path)), path)


def bare_rate(contexts: list[Any], batch: np.ndarray[Any, Any]) -> float:
    """Return images per second of one thread for each context, with full batches."""
    counts = [0] * len(contexts)
    end = time.perf_counter() + SECONDS

    def work(index: int) -> None:
        while time.perf_counter() < end:
            contexts[index].run([{"x": batch}])
            counts[index] += ROWS

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(contexts))]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


async def batcher_rate(batcher: Batcher, image: np.ndarray[Any, Any]) -> float:
    """Return images per second of single requests, as many at once as keep every lane busy."""
    count = 0
    end = time.perf_counter() + SECONDS

    async def client() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await batcher.run(Request("resnet50", b""), {"x": image}, ((3, 224, 224),), 1)
            count += 1

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(3 * LANES * ROWS)))
    return count / (time.perf_counter() - began)


async def measure() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_resnet(Path(folder) / "resnet50")
        started = time.perf_counter()
        model = load_model(
            Path(folder) / "resnet50", Machine(builds=Builds(Path(folder) / "engines"))
        )
        built = time.perf_counter() - started
        engine = model.placements[0].engine
        loop = asyncio.get_running_loop()
        lanes = [Lane(f"resnet50-{n}", engine, loop) for n in range(LANES)]
        contexts = [lane._context for lane in lanes]
        opened = time.perf_counter() - started - built
        metrics = ModelMetrics(model.config.name, model.version, ROWS)
        batcher = Batcher(
            model.config, LanePool(lanes, [], None, metrics), NoOpTracer(), metrics, print
        )
        batch = np.random.default_rng(0).random((ROWS, 3, 224, 224)).astype(np.float16)
        rows = [
            (
                bare_rate(contexts[:1], batch), bare_rate(contexts, batch),
                await batcher_rate(batcher, batch[:1]),
            )
            for _ in range(ROUNDS)
        ]  # fmt: skip
        for lane in lanes:
            lane.close()
        engine.close()
    one, bare, served = (statistics.median(column) for column in zip(*rows, strict=True))
    figures = {
        "gpu": device(0).name, "build_s": round(built, 2), "open_lanes_s": round(opened, 2),
        "bare_one_per_s": round(one),
        "bare_per_s": round(bare), "served_per_s": round(served),
        "served_to_bare": round(statistics.median(row[2] / row[1] for row in rows), 3),
    }  # fmt: skip
    print(figures)
    keep("gpu", figures)


if __name__ == "__main__":
    tune()
    uvloop.run(measure())
