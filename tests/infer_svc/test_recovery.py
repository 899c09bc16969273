"""Every rung of the ladder, through the batcher: what callers get, and what it takes."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from opentelemetry.trace import NoOpTracer

from infer_svc import recovery
from infer_svc.backends.errors import DeviceLost, OutOfMemory
from infer_svc.batcher import Batcher
from infer_svc.config import Batching, Instances, ModelConfig
from infer_svc.golden import Golden
from infer_svc.lane import Lane
from infer_svc.metrics import ModelMetrics
from infer_svc.pool import LanePool
from mesh.errors import DeadlineExceeded, EngineError, InvalidInput, StageUnavailable
from mesh.item import Request
from mesh.tensor import Tensors, unpack
from tests.conftest import eventually
from tests.infer_svc.fakes import FakeContext, FakeEngine

KNOWN = {"x": np.array([[-7]])}
POISON = 13
Fail = Callable[[Tensors], Exception | None]


class Rig:
    """A model with two lanes and a spare, each with a context of its own."""

    def __init__(self, lanes: int, max_rows: int, *, golden: bool) -> None:
        self.engine = FakeEngine()
        loop = asyncio.get_running_loop()
        self.lanes = [Lane(f"m-{index}", self.engine, loop) for index in range(lanes + 1)]
        self.contexts = self.engine.contexts
        known = Golden.record(KNOWN, self.lanes[0].answer) if golden else None
        self.metrics = ModelMetrics("m", 1, max_rows)
        self.pool = LanePool(self.lanes[:-1], self.lanes[-1:], known, self.metrics)
        self.lost: list[str] = []
        self.serving: list[bool] = []
        config = ModelConfig("m", "none", "", max_rows, (), (), (Instances(lanes),), Batching(), ())
        self.batcher = Batcher(
            config, self.pool, NoOpTracer(), self.metrics, self.lost.append, self.serving.append
        )

    def fail(self, *contexts: int, fail: Fail) -> None:
        """Let contexts fail, all where none is named; the known batch never does."""
        for index in contexts or range(len(self.contexts)):
            self.contexts[index].fail = lambda inputs: (
                None if inputs["x"][0, 0] == KNOWN["x"][0, 0] else fail(inputs)
            )

    async def ask(self, value: int, deadline: float = math.inf) -> int:
        """Ask for one value; return the answer."""
        request = Request("m", b"", deadline=deadline)
        reply = await self.batcher.run(request, {"x": np.array([[value]])}, ((1,),), 1)
        return int(unpack(reply.payload)["y"].item())

    async def ask_together(self, values: Sequence[int]) -> list[int | BaseException]:
        """Ask for values that share a batch; return the answers and errors."""
        lanes = [self.pool.take() for _ in range(len(self.lanes) - 1)]
        tasks = [asyncio.ensure_future(self.ask(value)) for value in values]
        await eventually(lambda: self.batcher.depth == len(values))
        for lane in lanes:
            self.pool.give_back(lane)
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)


@asynccontextmanager
async def rig(lanes: int = 2, max_rows: int = 8, *, golden: bool = True) -> AsyncIterator[Rig]:
    made = Rig(lanes, max_rows, golden=golden)
    try:
        yield made
    finally:
        for context in made.contexts:
            context.release()
        await eventually(lambda: not made.pool._tasks)
        for lane in made.lanes:
            lane.close()


def times(count: int, error: Exception | None = None) -> Fail:
    """Fail so many times, then work."""
    left = [count]

    def fail(inputs: Tensors) -> Exception | None:
        left[0] -= 1
        return (error or EngineError("broken")) if left[0] >= 0 else None

    return fail


def poisoned(inputs: Tensors) -> Exception | None:
    return EngineError("an ill value") if POISON in inputs["x"] else None


async def test_failed_batch_is_answered_by_another_lane_and_the_lane_is_mended() -> None:
    async with rig() as m:
        m.fail(fail=times(1))
        assert await m.ask_together(range(4)) == [1, 2, 3, 4]
        assert m.metrics.steps == {"retry": 1}
        await eventually(lambda: m.pool.is_whole)
        assert sum(context.rebuilt for context in m.contexts) == 1
        assert m.metrics.rebuilds == {"batch": 1}
        assert m.lost == []


async def test_batch_that_fails_while_no_spare_is_left_runs_on_the_next_free_lane() -> None:
    async with rig() as m:
        spare = m.pool.stand_in(m.lanes[0])
        assert spare is not None
        m.fail(fail=times(1))
        assert await m.ask_together(range(4)) == [1, 2, 3, 4]
        assert m.metrics.steps == {"retry": 1}
        m.pool.give_back(spare)
        await eventually(lambda: m.pool.is_whole)


async def test_next_free_lane_takes_a_failed_batch_while_the_loop_is_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with rig(max_rows=1) as m:
        assert m.pool.stand_in(m.lanes[0]) is not None
        late: list[float] = []
        monkeypatch.setattr(m.metrics, "failed_over", late.append)
        m.pool._idle.reverse()  # the first lane gets the first batch
        for context in m.contexts[:2]:
            context.hold()
        m.fail(0, fail=times(1))
        m.fail(1, fail=lambda inputs: time.sleep(0.1))
        calls = [asyncio.ensure_future(m.ask(value)) for value in (1, 2)]
        await eventually(lambda: all(context.running for context in m.contexts[:2]))
        for context in m.contexts[:2]:
            context.release()
        time.sleep(0.5)
        assert await asyncio.gather(*calls) == [2, 3]
        assert len(late) == 1
        assert late[0] < 0.3


async def test_nobody_stands_in_for_a_batch_whose_callers_gave_up() -> None:
    async with rig() as m:
        m.contexts[0].hold()
        m.contexts[1].hold()
        call = asyncio.ensure_future(m.ask(1))
        await eventually(lambda: any(context.running for context in m.contexts))
        m.fail(fail=times(1))
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        for context in m.contexts:
            context.release()
        await eventually(lambda: m.metrics.batch_failures.total() == 1 and m.pool.is_whole)
        assert m.metrics.steps == {}


async def test_every_kind_of_error_of_a_lane_is_survived() -> None:
    async with rig() as m:
        for error in (EngineError("x"), ValueError("x"), MemoryError("x"), RuntimeError("x")):
            m.fail(fail=times(1, error))
            assert await m.ask(1) == 2
            await eventually(lambda: m.pool.is_whole)


async def test_callers_own_fault_is_answered_at_once_and_no_lane_suffers() -> None:
    async with rig() as m:
        m.fail(fail=lambda inputs: InvalidInput("too long"))
        with pytest.raises(InvalidInput, match="too long"):
            await m.ask(1)
        assert m.metrics.steps == {}
        assert m.pool.is_whole
        assert not m.metrics.rebuilds


@pytest.mark.parametrize("values", [[POISON], [1, POISON], [1, 2, 3, POISON, 5, 6, 7, 8]], ids=len)
async def test_poison_is_found_and_the_innocent_are_answered(values: list[int]) -> None:
    async with rig() as m:
        m.fail(fail=poisoned)
        outcomes = await m.ask_together(values)
        for value, outcome in zip(values, outcomes, strict=True):
            if value == POISON:
                assert isinstance(outcome, EngineError)
                assert "'m' fails on this request every time, and not on others" in str(outcome)
                assert "an ill value" in str(outcome)
            else:
                assert outcome == value + 1
        assert m.metrics.steps["blamed"] == 1
        await eventually(lambda: m.pool.is_whole)
        assert m.engine.reloaded == 0
        assert m.lost == []
        assert await m.ask(5) == 6


async def test_much_poison_does_not_reload_the_engine_that_is_well() -> None:
    async with rig() as m:
        m.fail(fail=poisoned)
        for _ in range(5):
            outcomes = await m.ask_together([POISON, 1, POISON, 2])
            assert [outcomes[1], outcomes[3]] == [2, 3]
            await eventually(lambda: m.pool.is_whole)
        assert m.metrics.steps["blamed"] == 10
        assert m.engine.reloaded == 0
        assert m.lost == []


async def test_one_client_that_sends_nothing_but_poison_does_not_reload_the_engine() -> None:
    async with rig() as m:
        m.fail(fail=poisoned)
        for _ in range(40):
            assert isinstance((await m.ask_together([POISON]))[0], EngineError)
            await eventually(lambda: m.pool.is_whole)
        assert m.metrics.steps["blamed"] == 40
        assert m.engine.reloaded == 0
        assert await m.ask(5) == 6


async def test_lane_that_is_not_well_is_not_held_against_the_batch() -> None:
    async with rig() as m:

        def hurt(context: FakeContext) -> Fail:
            def fail(inputs: Tensors) -> Exception | None:
                if inputs["x"][0, 0] == KNOWN["x"][0, 0] and context.rebuilt:
                    return None
                return EngineError("a broken lane") if not context.rebuilt else None

            return fail

        for context in m.contexts[:2]:
            context.fail = hurt(context)
        assert await m.ask_together([1, 2]) == [2, 3]
        assert m.metrics.steps["blamed"] == 0
        await eventually(lambda: m.pool.is_whole)


async def test_batch_too_large_for_the_memory_is_run_in_halves_on_lanes_that_stay() -> None:
    async with rig() as m:
        m.fail(fail=lambda inputs: OutOfMemory("no room") if len(inputs["x"]) > 2 else None)
        assert await m.ask_together(range(8)) == list(range(1, 9))
        assert not m.metrics.rebuilds
        assert m.metrics.steps["split"] == 2 + 4


async def test_request_too_large_by_itself_is_answered_so() -> None:
    async with rig() as m:
        m.fail(fail=lambda inputs: OutOfMemory("no room"))
        with pytest.raises(EngineError, match="no room"):
            await m.ask(1)
        assert m.lost == []


async def test_lost_gpu_is_told_at_once_and_nothing_is_tried() -> None:
    async with rig() as m:
        m.fail(fail=lambda inputs: DeviceLost("700"))
        asking = asyncio.ensure_future(m.ask(1))
        await eventually(lambda: bool(m.lost))
        assert m.lost == ["700"]
        assert m.metrics.steps == {"lost": 1}
        assert not asking.done()
        asking.cancel()


async def test_gpu_lost_on_the_second_try_is_told_too() -> None:
    async with rig() as m:
        errors: list[Exception] = [EngineError("first"), DeviceLost("719")]
        m.fail(fail=lambda inputs: errors.pop(0))
        asking = asyncio.ensure_future(m.ask(1))
        await eventually(lambda: m.lost == ["719"])
        assert not asking.done()
        asking.cancel()


async def test_gpu_that_the_check_of_a_lane_finds_lost_is_told_too() -> None:
    async with rig() as m:
        for context in m.contexts:
            context.fail = lambda inputs: (
                DeviceLost("700") if inputs["x"][0, 0] == KNOWN["x"][0, 0] else EngineError("x")
            )
        asking = asyncio.ensure_future(m.ask(1))
        await eventually(lambda: len(m.lost) == 2)  # by the lane that is mended, and by the retry
        await eventually(lambda: not m.batcher._recovery._tasks)
        assert m.lost == ["700", "700"]
        assert m.engine.reloaded == 0
        assert not asking.done()
        asking.cancel()


def fall_ill(context: FakeContext, runs: list[int], when: range) -> None:
    """Let a context fail at the first runs and at some later ones; after those it is not well."""
    sick: list[bool] = []
    context.fail_rebuild = sick.clear

    def fail(inputs: Tensors) -> Exception | None:
        if inputs["x"][0, 0] == KNOWN["x"][0, 0]:
            return EngineError("an ill lane") if sick else None
        runs[0] += 1
        if runs[0] in when:
            sick.append(True)
        return EngineError("chance") if runs[0] < when.stop else None

    context.fail = fail


@pytest.mark.parametrize("ill", [3, 99])
async def test_request_is_not_held_to_blame_for_lanes_that_are_not_well(
    ill: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "WINDOW_BATCHES", 1000)
    async with rig(lanes=1) as m:
        runs = [0]
        for context in m.contexts:
            fall_ill(context, runs, range(3, 3 + ill))
        if ill == 3:
            assert await m.ask(1) == 2
        else:
            with pytest.raises(StageUnavailable, match="are not well, another replica may do it"):
                await m.ask(1)
        assert m.metrics.steps["blamed"] == 0


async def test_recovery_that_fails_by_itself_ends_the_process_with_its_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with rig() as m:
        m.fail(fail=times(2))
        monkeypatch.setattr(m.batcher._recovery, "_note", lambda attempt: 1 / 0)
        asking = asyncio.ensure_future(m.ask(1))
        await eventually(lambda: m.lost == ["ZeroDivisionError: division by zero"])
        assert not asking.done()
        asking.cancel()


async def test_time_that_is_over_ends_the_tries() -> None:
    async with rig() as m:
        m.contexts[1].hold()
        m.fail(fail=times(1))
        asking = asyncio.ensure_future(m.ask(1, time.monotonic() + 0.1))
        await eventually(lambda: sum(m.contexts[1].rows) == 1)
        await asyncio.sleep(0.15)
        m.contexts[1].release()
        with pytest.raises(DeadlineExceeded, match="the deadline passed"):
            await asking


async def test_caller_who_gave_up_is_not_tried_again() -> None:
    async with rig() as m:
        m.contexts[1].hold()
        m.fail(fail=times(1))
        asking = asyncio.ensure_future(m.ask(1))
        await eventually(lambda: sum(m.contexts[1].rows) == 1)
        asking.cancel()
        m.contexts[1].release()
        await eventually(lambda: m.pool.is_whole and m.pool.busy == 0)
        assert m.metrics.steps == {}
        assert sum(sum(context.rows) for context in m.contexts) <= 3  # with the golden one


async def test_engine_whose_new_contexts_do_not_work_is_loaded_anew() -> None:
    async with rig() as m:
        for context in m.contexts:
            context.fail = lambda inputs: EngineError("the engine is broken")
        assert await m.ask(1) == 2
        assert m.engine.reloaded == 1
        assert m.serving == [False, True]
        assert m.metrics.steps["reload"] == 1
        assert m.pool.is_whole
        assert m.lost == []


async def test_engine_that_fails_again_soon_after_ends_the_process() -> None:
    async with rig() as m:

        def broken(context: FakeContext) -> None:
            context.fail = lambda inputs: (
                None if len(context.batches) == 1 else EngineError("broken")
            )

        for context in m.contexts:
            context.fail = lambda inputs: EngineError("broken")
        m.engine.prepare = broken
        asking = asyncio.ensure_future(m.ask(1))
        await eventually(lambda: bool(m.lost))
        assert "fails again after it was loaded anew" in m.lost[0]
        asking.cancel()
        (outcome,) = await asyncio.gather(asking, return_exceptions=True)
        # Told to be done elsewhere, or not answered at all: the end of the stream says the same.
        assert isinstance(outcome, StageUnavailable | asyncio.CancelledError)


async def test_engine_that_cannot_be_loaded_anew_ends_the_process() -> None:
    async with rig() as m:

        def broken(context: FakeContext) -> None:
            context.fail = lambda inputs: EngineError("still broken")

        for context in m.contexts:
            broken(context)
        m.engine.prepare = broken
        asking = asyncio.ensure_future(m.ask(1))
        await eventually(lambda: bool(m.lost))
        assert m.lost == ["the engine of 'm' cannot be loaded anew: EngineError: still broken"]
        assert not asking.done()
        asking.cancel()


async def test_engine_that_is_never_loaded_anew_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recovery, "RELOAD_LIMIT_S", 0.05)
    async with rig() as m:
        gate = threading.Event()
        m.engine.reload = lambda: vars(m).update(waited=gate.wait(5))  # type: ignore[method-assign]
        m.pool.on_broken("a reason")
        await eventually(lambda: bool(m.lost))
        assert m.lost == ["the engine of 'm' cannot be loaded anew: TimeoutError: "]
        assert not m.pool.has_idle
        gate.set()


async def test_many_failures_in_a_short_time_load_the_engine_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recovery, "WINDOW_BATCHES", 10)
    async with rig() as m:
        for turn in range(12):
            m.fail(fail=times(turn % 2))  # every second batch fails once
            assert await m.ask(turn) == turn + 1
            await eventually(lambda: m.pool.is_whole)
        assert m.engine.reloaded == 1
        assert m.lost == []


async def test_few_failures_do_not() -> None:
    async with rig() as m:
        for turn in range(60):
            m.fail(fail=times(1 if turn % 10 == 0 else 0))
            assert await m.ask(turn) == turn + 1
            await eventually(lambda: m.pool.is_whole)
        assert m.engine.reloaded == 0


async def test_without_a_known_batch_lanes_are_taken_to_be_well() -> None:
    async with rig(golden=False) as m:
        m.fail(fail=poisoned)
        outcomes = await m.ask_together([1, POISON, 3])
        assert [outcomes[0], outcomes[2]] == [2, 4]
        assert isinstance(outcomes[1], EngineError)


@pytest.mark.parametrize(("lanes", "max_rows"), [(1, 1), (1, 8), (3, 4)])
async def test_no_call_fails_at_a_fault_rate_of_five_percent(lanes: int, max_rows: int) -> None:
    random = np.random.default_rng(0)
    async with rig(lanes, max_rows) as m:
        for context in m.contexts:
            context.fail = lambda inputs: EngineError("chance") if random.random() < 0.05 else None

        async def client(first: int) -> int:
            return sum([await m.ask(value) == value + 1 for value in range(first, first + 50)])

        asked = asyncio.gather(*(client(1000 * number) for number in range(20)))
        assert await asyncio.wait_for(asked, 30) == [50] * 20
        assert m.metrics.steps["retry"] > 5
        assert m.lost == []
