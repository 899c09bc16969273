"""Lanes that fail are set aside and mended, spares step in, engines are loaded anew."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from infer_svc import pool
from infer_svc.backends.errors import DeviceLost
from infer_svc.golden import Golden
from infer_svc.lane import Lane
from infer_svc.metrics import ModelMetrics
from infer_svc.pool import FRESH_FAILURES, LanePool
from mesh.errors import EngineError
from tests.conftest import eventually
from tests.infer_svc.fakes import FakeEngine

KNOWN = {"x": np.array([[7]])}


async def lent(pool: LanePool) -> Lane:
    """Wait for the next free lane."""
    done: asyncio.Future[Lane] = asyncio.get_running_loop().create_future()
    pool.lend(done.set_result)
    pool.serve()
    return await asyncio.wait_for(done, 5)


class Rig:
    """Two engines with two lanes and a spare each."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.engines = [FakeEngine(), FakeEngine()]
        self.lanes = [Lane(f"m-{i}", self.engines[i // 2], loop) for i in range(4)]
        self.spares = [Lane(f"spare-{i}", self.engines[i], loop) for i in range(2)]
        self.metrics = ModelMetrics("m", 1, 1)
        golden = Golden.record(KNOWN, self.lanes[0].answer)
        self.pool = LanePool(self.lanes, self.spares, golden, self.metrics)
        self.broken: list[str] = []
        self.pool.on_broken = self.broken.append
        self.lost: list[str] = []
        self.pool.on_lost = self.lost.append

    def retire(self, lane: Lane) -> None:
        """Set a lane aside."""
        self.pool.retire(lane, "broken", "batch")

    def context(self, lane: Lane):  # type: ignore[no-untyped-def]
        return lane._context

    def in_service(self) -> list[int]:
        """Return how many free lanes of each engine there are, all of which are free."""
        assert self.pool.is_whole
        free = [lane.engine for lane in self.pool._idle]
        return [free.count(engine) for engine in self.engines]


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    yield made
    for lane in made.pool.lanes:
        lane.close()


async def test_free_lanes_are_lent_and_spares_are_not(rig: Rig) -> None:
    taken = []
    while rig.pool.has_idle:
        taken.append(rig.pool.take())
    assert set(taken) == set(rig.lanes)
    assert rig.pool.busy == 4


async def test_whoever_waits_gets_the_next_lane_before_new_work(rig: Rig) -> None:
    taken = [rig.pool.take() for _ in range(4)]
    freed: list[bool] = []
    rig.pool.on_free = lambda: freed.append(True)
    got: list[Lane] = []
    rig.pool.lend(got.append)
    rig.pool.give_back(taken[2])
    assert got == [taken[2]]
    assert freed == []
    rig.pool.give_back(taken[2])
    assert freed == [True]


async def test_free_lane_is_lent_by_whoever_lives_in_the_loop(rig: Rig) -> None:
    got: list[Lane] = []
    rig.pool.lend(got.append)
    assert got == []
    rig.pool.serve()
    assert got[0] in rig.lanes
    assert rig.pool.busy == 1


async def test_spare_of_the_same_engine_steps_in_at_once(rig: Rig) -> None:
    for _ in rig.lanes:
        rig.pool.take()
    for lane in (rig.lanes[3], rig.lanes[0]):
        rig.context(lane).fail_rebuild = lambda: EngineError("held")
        rig.retire(lane)
        assert rig.pool.take() is rig.spares[rig.lanes.index(lane) // 2]
    assert not rig.pool.has_idle


async def test_spare_that_stands_in_is_lent_and_no_other_steps_in(rig: Rig) -> None:
    lane = rig.pool.take()
    spare = rig.pool.stand_in(lane)
    assert spare is rig.spares[rig.lanes.index(lane) // 2]
    assert rig.pool.stand_in(lane) is None
    assert rig.pool.busy == 2
    rig.context(lane).fail_rebuild = lambda: EngineError("held")
    rig.retire(lane)
    assert rig.pool.busy == 1


async def test_spares_are_lent_to_one_thread_each() -> None:
    engine, loop = FakeEngine(), asyncio.get_running_loop()
    lane, *spares = [Lane(f"m-{index}", engine, loop) for index in range(51)]
    pool = LanePool([lane], spares, None, ModelMetrics("m", 1, 1))
    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(lambda _: pool.stand_in(lane), range(60)))
    assert sorted(one.name for one in got if one) == sorted(spare.name for spare in spares)
    for one in pool.lanes:
        one.close()


async def test_mended_lane_becomes_the_spare(rig: Rig) -> None:
    lane = rig.pool.take()
    rig.retire(lane)
    assert not rig.pool.is_whole
    await eventually(lambda: rig.pool.is_whole)
    assert rig.context(lane).rebuilt == 1
    assert rig.metrics.rebuilds == {"batch": 1}
    taken = []
    while rig.pool.has_idle:
        taken.append(rig.pool.take())
    assert len(taken) == 4
    assert lane not in taken


async def test_without_a_spare_the_mended_lane_goes_back_to_work() -> None:
    engine = FakeEngine()
    lane = Lane("m-0", engine, asyncio.get_running_loop())
    pool = LanePool([lane], [], None, ModelMetrics("m", 1, 1))
    pool.retire(pool.take(), "broken", "batch")
    assert await lent(pool) is lane
    lane.close()


async def test_context_that_does_not_work_is_made_again_until_the_engine_is_to_blame(
    rig: Rig,
) -> None:
    lane = rig.pool.take()
    context = rig.context(lane)
    context.wrong = True
    rig.retire(lane)
    await eventually(lambda: bool(rig.broken))
    assert context.rebuilt == FRESH_FAILURES
    assert len(rig.broken) == 1
    assert "off by" in rig.broken[0]


async def test_context_that_works_after_two_failures_is_taken(rig: Rig) -> None:
    lane = rig.pool.take()
    context = rig.context(lane)
    errors = [EngineError("no"), EngineError("no"), None]
    context.fail_rebuild = lambda: errors.pop(0)
    rig.retire(lane)
    await eventually(lambda: rig.pool.is_whole)
    assert rig.broken == []
    assert context.rebuilt == 3


async def test_reload_waits_for_running_work_and_opens_every_lane_anew(rig: Rig) -> None:
    lane = rig.pool.take()
    reloading = asyncio.create_task(rig.pool.reload())
    await eventually(lambda: not rig.pool.has_idle)
    assert [engine.reloaded for engine in rig.engines] == [0, 0]
    waiting = asyncio.create_task(lent(rig.pool))
    rig.pool.give_back(lane)
    assert await asyncio.wait_for(reloading, 5) == ""
    assert [engine.reloaded for engine in rig.engines] == [1, 1]
    assert [len(engine.contexts) for engine in rig.engines] == [6, 6]
    assert await waiting in rig.pool.lanes
    assert rig.pool.is_whole
    assert rig.pool.busy == 1


async def test_reload_brings_lanes_back_that_were_set_aside(rig: Rig) -> None:
    lane = rig.pool.take()
    rig.context(lane).wrong = True
    rig.retire(lane)
    await eventually(lambda: bool(rig.broken))
    assert await rig.pool.reload() == ""
    assert rig.pool.is_whole
    assert rig.pool.busy == 0


async def test_context_may_fail_twice_after_a_reload(rig: Rig) -> None:
    opened: list[object] = []

    def break_it(context: object) -> None:
        opened.append(context)
        vars(context)["wrong"] = len(opened) < FRESH_FAILURES

    rig.engines[1].prepare = break_it
    assert await rig.pool.reload() == ""
    assert len(opened) == 3 + FRESH_FAILURES - 1
    assert rig.in_service() == [2, 2]


async def test_reload_that_does_not_help_says_what_is_wrong(rig: Rig) -> None:
    def break_it(context: object) -> None:
        vars(context)["wrong"] = True

    rig.engines[1].prepare = break_it
    assert "off by" in await rig.pool.reload()
    assert not rig.pool.has_idle
    rig.pool.give_back(rig.lanes[0])
    assert not rig.pool.has_idle


async def test_each_engine_keeps_its_lanes_whichever_is_mended_first(rig: Rig) -> None:
    for _ in rig.lanes:
        rig.pool.take()
    gate = threading.Event()
    for lane in rig.lanes[:2]:
        rig.context(lane).fail_rebuild = lambda: None if gate.wait(5) else EngineError("held")
    for lane in rig.lanes[:3]:
        rig.retire(lane)
    rig.pool.give_back(rig.lanes[3])
    await eventually(lambda: rig.context(rig.lanes[2]).rebuilt == 1 and len(rig.pool._tasks) == 2)
    gate.set()
    await eventually(lambda: rig.pool.is_whole)
    assert rig.in_service() == [2, 2]


async def test_each_engine_keeps_its_lanes_after_a_reload(rig: Rig) -> None:
    for _ in rig.lanes:
        rig.pool.take()
    for lane in rig.lanes[2:]:
        rig.context(lane).wrong = True
        rig.retire(lane)
    for lane in rig.lanes[:2]:
        rig.pool.give_back(lane)
    await eventually(lambda: bool(rig.broken) and not rig.pool._tasks)
    assert await rig.pool.reload() == ""
    assert rig.in_service() == [2, 2]


async def test_spare_that_was_being_checked_steps_in_afterwards() -> None:
    engine, loop = FakeEngine(), asyncio.get_running_loop()
    lane, spare = Lane("m-0", engine, loop), Lane("spare", engine, loop)
    known = Golden.record(KNOWN, lane.answer)
    small = LanePool([lane], [spare], known, ModelMetrics("m", 1, 1))
    small.take()
    engine.contexts[1].hold()
    small.probe_idle(0.0)
    await eventually(lambda: bool(engine.contexts[1].running))
    small.retire(lane, "broken", "batch")
    assert await lent(small) is lane
    engine.contexts[1].release()
    await eventually(lambda: small.is_whole)
    assert small.busy == 1
    small.give_back(lane)
    assert small.take() is lane
    assert not small.has_idle
    for one in small.lanes:
        one.close()


async def test_nothing_is_checked_while_the_engine_is_loaded_anew(rig: Rig) -> None:
    gate, begun = threading.Event(), threading.Event()

    def reload() -> None:
        begun.set()
        assert gate.wait(5)

    rig.engines[0].reload = reload  # type: ignore[method-assign]
    reloading = asyncio.create_task(rig.pool.reload())
    await eventually(begun.is_set)
    rig.pool.probe_idle(0.0)
    assert not rig.pool._tasks
    gate.set()
    assert await asyncio.wait_for(reloading, 5) == ""


async def test_gpu_that_is_found_lost_behind_the_scenes_is_told_and_nothing_is_tried_again(
    rig: Rig,
) -> None:
    mended, probed = rig.pool.take(), rig.lanes[0]
    rig.context(mended).fail_rebuild = lambda: DeviceLost("700")
    rig.retire(mended)
    await eventually(lambda: rig.lost == ["700"])
    rig.context(probed).fail = lambda inputs: DeviceLost("719")
    rig.pool._idle = [probed]
    rig.pool.probe_idle(0.0)
    await eventually(lambda: rig.lost == ["700", "719"])
    assert rig.context(mended).rebuilt == 1
    assert rig.context(probed).rebuilt == 0
    assert rig.broken == []


async def test_new_context_that_is_never_made_is_told(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MEND_LIMIT_S", 0.05)
    gate, lane = threading.Event(), rig.pool.take()
    rig.context(lane).fail_rebuild = lambda: None if gate.wait(5) else EngineError("held")
    rig.retire(lane)
    await eventually(lambda: bool(rig.lost))
    assert rig.lost == [f"lane {lane.name} has no new context after 0.05 s"]
    gate.set()
