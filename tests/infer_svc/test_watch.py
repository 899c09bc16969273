"""Lanes that hang are told, lanes that idle are checked."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import numpy as np

from infer_svc.generation.generator import Generator
from infer_svc.generation.running import Prompt
from infer_svc.generation.scheduler import Scheduler
from infer_svc.golden import Golden
from infer_svc.lane import Batch, Lane
from infer_svc.metrics import ModelMetrics
from infer_svc.pool import LanePool
from infer_svc.watch import watch
from tests.conftest import eventually
from tests.infer_svc.fakes import FakeEngine
from tests.infer_svc.generation.test_scheduler import CountingStepper

KNOWN = {"x": np.array([[7]])}


@asynccontextmanager
async def watching(
    engine: FakeEngine, lost: list[str], hang_s: float, probe_s: float
) -> AsyncIterator[tuple[LanePool, ModelMetrics]]:
    loop = asyncio.get_running_loop()
    lanes = [Lane(f"m-{index}", engine, loop) for index in range(2)]
    metrics = ModelMetrics("m", 1, 1)
    pool = LanePool(lanes[:1], lanes[1:], Golden.record(KNOWN, lanes[0].answer), metrics)
    task = asyncio.create_task(watch(lambda: [pool], lambda: [], lost.append, hang_s, probe_s))
    try:
        yield pool, metrics
    finally:
        task.cancel()
        for context in engine.contexts:
            context.release()
        for lane in lanes:
            lane.close()


async def test_batch_that_never_ends_is_told_once() -> None:
    engine, lost = FakeEngine(), list[str]()
    async with watching(engine, lost, hang_s=0.1, probe_s=100) as (pool, _):
        engine.contexts[0].hold()
        pool.take().submit(Batch([KNOWN], [1]), lambda result: None)
        await eventually(lambda: bool(lost))
        assert lost == ["lane m-0 has worked on one batch for more than 0.1 s"]


async def test_lanes_without_work_are_checked_and_a_wrong_one_is_set_aside() -> None:
    engine, lost = FakeEngine(), list[str]()
    async with watching(engine, lost, hang_s=100, probe_s=0.05) as (pool, metrics):
        await eventually(lambda: all(len(context.batches) >= 2 for context in engine.contexts))
        assert not metrics.rebuilds
        context = engine.contexts[0]
        context.fail_rebuild = lambda: vars(context).update(wrong=False)
        context.wrong = True
        await eventually(lambda: metrics.rebuilds["probe"] == 1 and pool.is_whole)
    assert lost == []


async def test_step_of_a_generation_that_never_ends_is_told_once() -> None:
    lost: list[str] = []
    stepper = CountingStepper()
    scheduler = Scheduler(stepper)
    generator = cast(Generator, scheduler)
    task = asyncio.create_task(watch(lambda: [], lambda: [generator], lost.append, 0.1, 100))
    await asyncio.sleep(0.3)
    assert lost == []
    stepper.gate.clear()
    call = asyncio.create_task(scheduler.run(Prompt([1], 3), lambda _: None))
    await eventually(lambda: bool(lost))
    assert lost == ["a step of a generation has not ended for more than 0.1 s"]
    assert task.done()
    stepper.gate.set()
    await call
    await asyncio.to_thread(scheduler.close)
