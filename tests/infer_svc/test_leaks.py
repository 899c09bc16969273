"""Nothing grows while batches fail and lanes are mended, on a GPU that is none."""

import asyncio
import gc
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.trace import NoOpTracer

from infer_svc.backends.machine import Machine
from infer_svc.backends.tensorrt import TensorRTEngine
from infer_svc.batcher import Batcher
from infer_svc.config import Batching, Instances, ModelConfig
from infer_svc.faults import Fault, Faults
from infer_svc.golden import Golden
from infer_svc.lane import Lane
from infer_svc.metrics import ModelMetrics
from infer_svc.pool import LanePool
from mesh.item import Request
from mesh.tensor import Tensors
from tests.conftest import eventually
from tests.infer_svc import graphs
from tests.infer_svc.backends.fake_gpu import FakeApi, FakeStream, fake_device

REQUESTS = 50_000
ROUNDS = 5
LANES = 3


async def test_contexts_and_memory_stay_the_same_over_50000_requests_with_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Here the engine is never to blame.
    monkeypatch.setattr("infer_svc.recovery.WINDOW_SHARE", 1.0)
    monkeypatch.setattr("infer_svc.pool.FRESH_FAILURES", 1000)
    (tmp_path / "model.onnx").write_bytes(graphs.identity(dims=("n", 4)))
    (tmp_path / "model.plan").write_text(str(tmp_path / "model.onnx"))
    gpu, driver, _ = fake_device()
    api: Any = FakeApi(32, (16,))
    faults = Faults(
        {seam: Fault(0.01) for seam in ("h2d", "enqueue", "sync", "memory")}
        | {"context": Fault(0.05)}
    )
    engine = TensorRTEngine(api, gpu, tmp_path / "model.plan", Machine())
    loop = asyncio.get_running_loop()
    lanes = [Lane(f"leak-{index}", engine, loop) for index in range(LANES + 1)]
    inputs: Tensors = {"x": np.ones((1, 4), np.float32)}
    golden = Golden.record(inputs, lanes[0].answer)
    for lane in lanes:
        vars(lane._context)["_faults"] = faults  # none until here
    metrics = ModelMetrics("m", 1, 32)
    pool = LanePool(lanes[:-1], lanes[-1:], golden, metrics)
    config = ModelConfig("m", "none", "", 32, (), (), (Instances(LANES),), Batching(), ())
    lost: list[str] = []
    batcher = Batcher(config, pool, NoOpTracer(), metrics, lost.append)

    async def client() -> None:
        for _ in range(REQUESTS // ROUNDS // 100):
            reply = await batcher.run(Request("m", b""), inputs, ((4,),), 1)
            assert reply.status is None

    def state() -> tuple[Any, ...]:
        gc.collect()
        streams = len(FakeStream.by_handle)
        alive = sum(thread.name.startswith("leak-") for thread in threading.enumerate())
        usage = replace(gpu.usage)
        return usage, dict(driver.calls), streams, alive, len(asyncio.all_tasks()), batcher.depth

    before = state()
    for _ in range(ROUNDS):
        await asyncio.gather(*(client() for _ in range(100)))
        await eventually(lambda: pool.is_whole and pool.busy == 0)
        assert state() == before
    assert metrics.succeeded == REQUESTS
    assert sum(metrics.rebuilds.values()) > 20, "too few faults to show anything"
    assert lost == []
    for lane in lanes:
        lane.close()
    engine.close()
    usage = gpu.usage
    assert (usage.contexts, usage.pinned_bytes, usage.device_bytes) == (0, 0, 0)
