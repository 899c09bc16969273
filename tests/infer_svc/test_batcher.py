import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracer, Tracer

from infer_svc import queue
from infer_svc.batcher import Batcher
from infer_svc.config import Batching, Instances, ModelConfig, QueuePolicy
from infer_svc.lane import Lane
from infer_svc.metrics import ModelMetrics
from infer_svc.pool import LanePool
from mesh.errors import DeadlineExceeded, EngineError, MeshError, Overloaded
from mesh.item import Reply, Request
from mesh.layers import stack, standard_layers
from mesh.telemetry import BATCH_INDEX, BATCH_ITEMS, BATCH_ROWS, LANE, TARGET
from mesh.tensor import unpack
from tests.conftest import eventually
from tests.infer_svc.fakes import FakeContext

LONG_S = 60.0
"""A delay that no test waits for."""


class Rig:
    """A batcher whose lanes share one fake engine."""

    def __init__(
        self, batching: Batching | None, max_rows: int, lanes: int, tracer: Tracer
    ) -> None:
        self.engine = FakeContext()
        loop = asyncio.get_running_loop()
        self.lanes = [Lane(f"m-{index}", self.engine, loop) for index in range(lanes)]
        config = ModelConfig("m", "none", "", max_rows, (), (), (Instances(lanes),), batching, ())
        self.lost: list[str] = []
        self.metrics = ModelMetrics("m", 1, max_rows)
        self.pool = LanePool(self.lanes, [], None, self.metrics)
        self.batcher = Batcher(config, self.pool, tracer, self.metrics, self.lost.append)
        self._first = 0

    async def ask(
        self, rows: int = 1, width: int = 1, request: Request | None = None, **wishes: Any
    ) -> Reply:
        """Ask for rows that no other request has, and check that the answer is theirs."""
        deadline = wishes.pop("deadline", math.inf)
        parameters = json.dumps(wishes).encode() if wishes else b""
        request = request or Request("m", b"", parameters, deadline=deadline)
        values = np.arange(self._first, self._first + rows * width).reshape(rows, width)
        self._first += rows * width
        reply = await self.batcher.run(request, {"x": values}, ((width,),), rows)
        np.testing.assert_array_equal(unpack(reply.payload)["y"], values + 1)
        return reply

    def start(self, *rows: int, width: int = 1, **wishes: Any) -> list[asyncio.Task[Reply]]:
        """Ask in the background, once for each number of rows."""
        return [asyncio.ensure_future(self.ask(count, width, **wishes)) for count in rows]

    async def occupy(self, lanes: int = 1) -> list[asyncio.Task[Reply]]:
        """Keep lanes busy with full batches until the engine is released."""
        self.engine.hold()
        rows = self.batcher._goal
        tasks = [task for _ in range(lanes) for task in self.start(rows)]
        await eventually(lambda: len(self.engine.rows) == lanes)
        return tasks

    async def waiting(self, requests: int) -> None:
        """Wait until so many requests wait."""
        await eventually(lambda: self.batcher.depth == requests)


@asynccontextmanager
async def rig(
    batching: Batching | None = Batching(),
    max_rows: int = 4,
    lanes: int = 1,
    tracer: Tracer = NoOpTracer(),
) -> AsyncIterator[Rig]:
    made = Rig(batching, max_rows, lanes, tracer)
    try:
        yield made
    finally:
        made.engine.release()
        for lane in made.lanes:
            lane.close()


async def test_lone_request_runs_at_once() -> None:
    async with rig() as m:
        reply = await m.ask(3)
        assert reply.timings is not None
        assert reply.timings.batch_rows == 3
        assert m.engine.rows == [3]


async def test_requests_that_wait_share_batches_up_to_the_largest() -> None:
    async with rig(max_rows=4) as m:
        tasks = await m.occupy() + m.start(*[1] * 10)
        await m.waiting(10)
        m.engine.release()
        await asyncio.gather(*tasks)
        assert m.engine.rows == [4, 4, 4, 2]


async def test_timings_tell_of_the_queue_and_the_batch() -> None:
    async with rig(max_rows=4) as m:
        tasks = await m.occupy() + m.start(1, 2)
        await m.waiting(2)
        started = time.monotonic()
        await eventually(lambda: time.monotonic() > started + 0.05)
        m.engine.release()
        *_, reply = await asyncio.gather(*tasks)
        assert reply.timings is not None
        assert reply.timings.queue >= 0.05
        assert reply.timings.batch_rows == 3
        assert reply.timings.run > 0


async def test_without_dynamic_batching_each_request_runs_alone() -> None:
    async with rig(batching=None, max_rows=8) as m:
        m.engine.hold()
        tasks = m.start(3, 2, 1, 8)
        await m.waiting(3)
        m.engine.release()
        await asyncio.gather(*tasks)
        assert m.engine.rows == [3, 2, 1, 8]


async def test_without_dynamic_batching_every_lane_is_used() -> None:
    async with rig(batching=None, max_rows=8, lanes=3) as m:
        m.engine.hold()
        tasks = m.start(1, 1, 1, 1)
        await eventually(lambda: m.engine.running == [1, 1, 1])
        m.engine.release()
        await asyncio.gather(*tasks)


async def test_model_without_batch_dimension_runs_requests_alone() -> None:
    async with rig(max_rows=0) as m:
        m.engine.hold()
        tasks = m.start(1, 1)
        await m.waiting(1)
        m.engine.release()
        await asyncio.gather(*tasks)
        assert m.engine.rows == [1, 1]


async def test_different_shapes_never_share_a_batch() -> None:
    async with rig(max_rows=4) as m:
        tasks = await m.occupy()
        tasks += [task for width in (2, 3, 2, 3, 2) for task in m.start(1, width=width)]
        await m.waiting(5)
        m.engine.release()
        await asyncio.gather(*tasks)
        assert [batch["x"].shape for batch in m.engine.batches] == [(4, 1), (3, 2), (2, 3)]


@pytest.mark.parametrize(
    ("waiting", "batches"),
    [(1, [1]), (2, [2]), (3, [2, 1]), (7, [4, 2, 1]), (8, [8]), (17, [8, 8, 1])],
    ids=str,
)
async def test_preferred_sizes_are_run_as_soon_as_they_are_reached(
    waiting: int, batches: list[int]
) -> None:
    async with rig(Batching(preferred=(2, 4, 8)), max_rows=16) as m:
        tasks = await m.occupy() + m.start(*[1] * waiting)
        await m.waiting(waiting)
        m.engine.release()
        await asyncio.gather(*tasks)
        assert m.engine.rows[1:] == batches


async def test_preferred_size_ends_the_delay() -> None:
    async with rig(Batching(preferred=(2, 8), delay_s=LONG_S), max_rows=8) as m:
        await asyncio.gather(*m.start(1, 1))
        assert m.engine.rows == [2]


async def test_preferred_size_behind_another_shape_ends_the_delay_too() -> None:
    async with rig(Batching(preferred=(2, 8), delay_s=LONG_S), max_rows=8) as m:
        lone = m.start(1, width=5)
        await m.waiting(1)
        await asyncio.gather(*m.start(1, 1))
        assert m.engine.rows == [2]
        lone[0].cancel()


async def test_delay_waits_until_the_batch_is_full() -> None:
    async with rig(Batching(delay_s=LONG_S), max_rows=4) as m:
        tasks = m.start(1, 1, 1)
        await m.waiting(3)
        tasks += m.start(1)
        await asyncio.gather(*tasks)
        assert m.engine.rows == [4]


async def test_delay_ends_for_a_batch_that_is_not_full() -> None:
    async with rig(Batching(delay_s=0.05), max_rows=4) as m:
        *_, reply = await asyncio.gather(*m.start(1, 1))
        assert m.engine.rows == [2]
        assert reply.timings is not None
        assert reply.timings.queue >= 0.05


async def test_delay_counts_from_the_oldest_of_each_batch() -> None:
    async with rig(Batching(delay_s=0.05), max_rows=4) as m:
        for _ in range(3):
            await asyncio.gather(*m.start(1, 1))
        assert m.engine.rows == [2, 2, 2]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow for an event loop that wakes up very late, as on a machine full of tests."""
    monkeypatch.setattr(queue, "EARLY_S", 0.4)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("first_width", [1, 7], ids=["same-shape", "behind-another-shape"])
async def test_delay_is_cut_short_by_a_deadline(first_width: int) -> None:
    async with rig(Batching(delay_s=LONG_S), max_rows=4) as m:
        first = m.start(1, width=first_width)
        await m.waiting(1)
        await m.ask(deadline=time.monotonic() + 0.5)
        assert len(m.engine.rows) == 1
        first[0].cancel()


async def test_request_starts_two_batch_times_before_its_deadline() -> None:
    async with rig(Batching(delay_s=LONG_S), max_rows=4) as m:
        (full,) = await m.occupy()
        started = time.monotonic()
        await eventually(lambda: time.monotonic() > started + 0.15)
        m.engine.release()
        await full
        reply = await m.ask(deadline=time.monotonic() + 0.6)
        assert reply.timings is not None
        assert reply.timings.queue < 0.5


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("reject", [True, False], ids=["reject", "delay"])
async def test_delay_is_cut_short_by_the_queue_policy_while_a_lane_is_free(reject: bool) -> None:
    policy = QueuePolicy(timeout_s=0.5, reject=reject)
    async with rig(Batching(delay_s=LONG_S, default_policy=policy), max_rows=4) as m:
        await asyncio.wait_for(m.ask(), 5)


async def test_full_shape_does_not_wait_behind_one_that_waits_for_more() -> None:
    async with rig(Batching(delay_s=LONG_S), max_rows=4) as m:
        first = m.start(1, width=5)
        await m.waiting(1)
        await asyncio.gather(*m.start(2, 2))
        assert m.engine.rows == [4]
        first[0].cancel()


async def test_requests_answered_under_uvloop_whose_timers_may_be_early() -> None:
    async def main() -> list[int]:
        async with rig(Batching(delay_s=0.0016), max_rows=4) as m:
            for _ in range(5):
                await asyncio.wait_for(m.ask(), 5)
            return m.engine.rows

    def run() -> list[int]:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())

    assert await asyncio.to_thread(run) == [1] * 5


async def test_second_partial_batch_waits_and_full_ones_go_to_further_lanes() -> None:
    async with rig(max_rows=4, lanes=3) as m:
        m.engine.hold()
        tasks = m.start(1)
        await eventually(lambda: m.engine.running == [1])
        tasks += m.start(1, 1)
        await m.waiting(2)
        tasks += m.start(1, 1)
        await eventually(lambda: m.engine.running == [1, 4])
        tasks += m.start(2, width=7)
        await m.waiting(1)
        tasks += m.start(2, width=7)
        await eventually(lambda: m.engine.running == [1, 4, 4])
        m.engine.release()
        await asyncio.gather(*tasks)


async def test_next_partial_batch_starts_when_the_last_one_ends() -> None:
    async with rig(max_rows=4, lanes=2) as m:
        m.engine.hold()
        tasks = m.start(1)
        await eventually(lambda: m.engine.running == [1])
        tasks += m.start(1, 1)
        await m.waiting(2)
        m.engine.release()
        await asyncio.gather(*tasks)
        assert m.engine.rows == [1, 2]


async def test_requests_too_large_to_share_a_batch_use_every_lane() -> None:
    async with rig(max_rows=4, lanes=3) as m:
        m.engine.hold()
        tasks = m.start(3, 3, 3, 3)
        await eventually(lambda: m.engine.running == [3, 3, 3])
        m.engine.release()
        await asyncio.gather(*tasks)


@pytest.mark.usefixtures("patient")
async def test_batch_that_the_next_request_does_not_fit_into_is_no_partial_one() -> None:
    async with rig(Batching(delay_s=LONG_S), max_rows=4, lanes=2) as m:
        m.engine.hold()
        tasks = m.start(3, 3)
        await eventually(lambda: m.engine.running == [3])
        partial = m.start(1, width=7, deadline=time.monotonic() + 0.5)
        await eventually(lambda: m.engine.running == [3, 1])
        m.engine.release()
        await asyncio.gather(tasks[0], *partial)
        tasks[1].cancel()


async def test_smaller_level_starts_first() -> None:
    batching = Batching(levels=2, default_level=2)
    async with rig(batching, max_rows=1) as m:
        tasks = await m.occupy() + m.start(1, width=2) + m.start(1, width=3, priority=1)
        await m.waiting(2)
        m.engine.release()
        await asyncio.gather(*tasks)
        assert [batch["x"].shape[1] for batch in m.engine.batches] == [1, 3, 2]


async def test_full_queue_refuses_at_once_and_counts_nobody_who_gave_up() -> None:
    async with rig(Batching(default_policy=QueuePolicy(max_size=2)), max_rows=4) as m:
        tasks = await m.occupy()
        first, second = m.start(1, 1)
        await m.waiting(2)
        with pytest.raises(Overloaded):
            await m.ask()
        first.cancel()
        await m.waiting(1)
        tasks += [second, *m.start(1)]
        await m.waiting(2)
        m.engine.release()
        await asyncio.gather(*tasks)
        assert m.engine.rows == [4, 2]


@pytest.mark.parametrize("limit", ["deadline", "policy", "own-timeout"])
async def test_late_request_is_refused_in_time_and_never_reaches_the_engine(limit: str) -> None:
    policy = QueuePolicy(timeout_s=0.0 if limit == "deadline" else 0.05, allow_override=True)
    async with rig(Batching(default_policy=policy), max_rows=4) as m:
        tasks = await m.occupy()
        wishes: dict[str, Any] = {}
        if limit == "deadline":
            wishes = {"deadline": time.monotonic() + 0.05}
        elif limit == "own-timeout":
            wishes = {"timeout": 20_000}
        with pytest.raises(DeadlineExceeded) as caught:  # while the lane is still busy
            await asyncio.wait_for(m.ask(**wishes), 5)
        assert ("the deadline passed" if limit == "deadline" else "the queue policy of model") in (
            str(caught.value)
        )
        assert m.batcher.depth == 0
        m.engine.release()
        await asyncio.gather(*tasks)
        await m.ask()
        assert m.engine.rows == [4, 1]


async def test_request_whose_deadline_has_passed_already_is_refused() -> None:
    async with rig() as m:
        with pytest.raises(DeadlineExceeded):
            await m.ask(deadline=time.monotonic() - 1)
        assert m.engine.batches == []


async def test_request_that_gave_up_while_it_waited_is_not_run_and_others_are() -> None:
    async with rig(max_rows=4) as m:
        tasks = await m.occupy()
        before, gave_up, after = m.start(1, 2, 1)
        await m.waiting(3)
        gave_up.cancel()
        await m.waiting(2)
        m.engine.release()
        await asyncio.gather(*tasks, before, after)
        assert gave_up.cancelled()
        assert m.engine.rows == [4, 2]


async def test_requests_that_gave_up_do_not_make_a_batch_full() -> None:
    async with rig(Batching(delay_s=LONG_S), max_rows=4) as m:
        gone = m.start(1, 1)
        await m.waiting(2)
        for task in gone:
            task.cancel()
        await m.waiting(0)
        tasks = m.start(1, 1, 1)
        await m.waiting(3)
        await asyncio.gather(*tasks, *m.start(1))
        assert m.engine.rows == [4]


async def test_request_that_gives_up_while_it_runs_does_not_break_its_batch() -> None:
    async with rig(Batching(delay_s=LONG_S), max_rows=3) as m:
        m.engine.hold()
        before, gave_up, after = m.start(1, 1, 1)
        await eventually(lambda: m.engine.running == [3])
        gave_up.cancel()
        await eventually(gave_up.cancelled)
        m.engine.release()
        await asyncio.gather(before, after)
        await m.ask(3)


async def test_failing_batch_is_an_engine_error_to_its_members_and_the_lane_works_on() -> None:
    async with rig(max_rows=4) as m:
        tasks = await m.occupy()
        m.engine.fail = lambda inputs: EngineError("broken") if len(inputs["x"]) < 4 else None
        members = m.start(1, 2)
        await m.waiting(2)
        m.engine.release()
        await asyncio.gather(*tasks)
        for outcome in await asyncio.gather(*members, return_exceptions=True):
            assert isinstance(outcome, EngineError)
            assert str(outcome).endswith("request every time, and not on others: broken")
        await m.ask(4)
        assert m.engine.rows[-1] == 4


async def test_failing_partial_batch_lets_the_next_one_start() -> None:
    async with rig(max_rows=4, lanes=2) as m:
        m.engine.fail = lambda inputs: EngineError("broken")
        for _ in range(3):
            with pytest.raises(EngineError):
                await asyncio.wait_for(m.ask(), 5)


async def test_unexpected_error_is_told_to_the_log_and_not_to_the_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with rig() as m:
        m.engine.fail = lambda inputs: ZeroDivisionError("secret")
        with pytest.raises(EngineError, match="the log of the server has why"):
            await m.ask()
    assert "secret" in caplog.text


Ask = tuple[int, int, float, bool]
"""Rows, width, seconds to the deadline, whether the caller gives up."""

ASKS = st.lists(
    st.tuples(
        st.integers(1, 5),
        st.sampled_from([1, 1, 1, 2, 3]),
        st.sampled_from([0.02, LONG_S, LONG_S]),
        st.sampled_from([False, False, False, True]),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60)
@given(
    asks=ASKS,
    lanes=st.integers(1, 3),
    delay_s=st.sampled_from([0.0, 0.003]),
    preferred=st.sampled_from([(), (4,), (2, 8)]),
    dynamic=st.sampled_from([True, True, False]),
)
def test_every_request_ends_and_gets_its_own_rows(
    asks: Sequence[Ask], lanes: int, delay_s: float, preferred: tuple[int, ...], dynamic: bool
) -> None:
    max_rows = 8
    batching = Batching(preferred=preferred, delay_s=delay_s) if dynamic else None

    async def one(m: Rig, ask: Ask) -> str:
        rows, width, left_s, gives_up = ask
        try:
            work = m.ask(rows, width, deadline=time.monotonic() + left_s)
            await (asyncio.wait_for(work, 0.001) if gives_up else work)
        except TimeoutError:
            return "gave up"
        except DeadlineExceeded:
            return "late"
        return "answered"

    async def main() -> None:
        async with rig(batching, max_rows, lanes) as m:
            outcomes = await asyncio.wait_for(asyncio.gather(*(one(m, ask) for ask in asks)), 10)
            for (_, _, left_s, gives_up), outcome in zip(asks, outcomes, strict=True):
                assert outcome == "answered" or (outcome == "late" and left_s < 1) or gives_up
            await eventually(lambda: not m.engine.running)
            check(m.engine)
            assert m.batcher.depth == 0
            await m.ask()  # no lane was lost

    def check(engine: FakeContext) -> None:
        assert not dynamic or all(rows <= max_rows for rows in engine.rows)
        largest = max(rows for rows, *_ in asks)
        goal = preferred[-1] if preferred else max_rows
        if dynamic and not any(gives_up for *_, gives_up in asks):
            for running in engine.most:
                # A batch is full, too, when the next request did not fit into it.
                assert sum(rows <= goal - largest for rows in running) <= 1

    asyncio.run(main())


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Iterator[Tracer]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider.get_tracer("test")
    provider.shutdown()


SAMPLED = bytes(range(1, 25)) + b"\x01"
UNSAMPLED = bytes(range(1, 25)) + b"\x00"


def spans(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


async def traced(m: Rig, tracer: Tracer, *traces: bytes) -> list[Reply]:
    """Run requests with these trace contexts as one batch, inside the layers of every service."""

    async def handle(request: Request) -> Reply:
        return await m.ask(request=request)

    handler = stack(handle, standard_layers(tracer, "mesh.v1.Infer/Run"))
    tasks = await m.occupy()
    members = [asyncio.ensure_future(handler(Request("m", b"", trace=trace))) for trace in traces]
    await m.waiting(len(traces))
    m.engine.release()
    await asyncio.gather(*tasks)
    return await asyncio.gather(*members)


async def test_batch_span_is_a_root_with_links_both_ways(
    exporter: InMemorySpanExporter, tracer: Tracer
) -> None:
    async with rig(max_rows=4, tracer=tracer) as m:
        await traced(m, tracer, SAMPLED, UNSAMPLED, SAMPLED)
    (batch,) = spans(exporter, "batch m")
    assert batch.parent is None
    assert batch.context is not None
    assert batch.context.trace_id != int.from_bytes(SAMPLED[:16], "big")
    assert dict(batch.attributes or {}) == {
        TARGET: "m", LANE: "m-0", BATCH_ITEMS: 3, BATCH_ROWS: 3,
    }  # fmt: skip
    servers = spans(exporter, "mesh.v1.Infer/Run")
    linked = {(link.context.span_id, (link.attributes or {})[BATCH_INDEX]) for link in batch.links}
    assert {index for _, index in linked} == {0, 2}
    assert {span_id for span_id, _ in linked} == {
        server.context.span_id for server in servers if server.context
    }
    runs = spans(exporter, "run")
    assert len(runs) == len(servers) == 2
    for run in runs:
        (link,) = run.links
        assert (link.context.trace_id, link.context.span_id) == (
            batch.context.trace_id, batch.context.span_id,
        )  # fmt: skip


async def test_batch_span_lasts_from_the_queue_to_the_answers(
    exporter: InMemorySpanExporter, tracer: Tracer
) -> None:
    async with rig(max_rows=4, tracer=tracer) as m:
        before = time.time_ns()
        (reply,) = await traced(m, tracer, SAMPLED)
        after = time.time_ns()
    (batch,) = spans(exporter, "batch m")
    assert batch.start_time is not None
    assert batch.end_time is not None
    assert reply.timings is not None
    slack_ns = 5_000_000  # two clocks are compared
    took_ns = (reply.timings.batch + reply.timings.run) * 1e9
    assert before - slack_ns <= batch.start_time <= batch.end_time <= after + slack_ns
    assert batch.end_time - batch.start_time == pytest.approx(took_ns, abs=slack_ns)


@pytest.mark.parametrize("trace", [b"", UNSAMPLED], ids=["none", "unsampled"])
async def test_batch_without_sampled_members_has_no_span(
    exporter: InMemorySpanExporter, tracer: Tracer, trace: bytes
) -> None:
    async with rig(tracer=tracer) as m:
        reply = await m.ask(request=Request("m", b"", trace=trace))
        assert reply.timings is not None
        assert reply.timings.batch_trace == b""
    assert exporter.get_finished_spans() == ()


async def test_span_of_a_failed_batch_has_its_error(
    exporter: InMemorySpanExporter, tracer: Tracer
) -> None:
    async with rig(tracer=tracer) as m:
        m.engine.fail = lambda inputs: EngineError("broken")
        with pytest.raises(EngineError):
            await m.ask(request=Request("m", b"", trace=SAMPLED))
    first, *others = spans(exporter, "batch m")
    (event,) = first.events
    assert (event.attributes or {})["exception.message"] == "broken"
    steps = [(event.attributes or {}).get("step") for span in others for event in span.events]
    assert [step for step in steps if step] == ["retry", "alone", "alone", "alone"]


async def test_heavy_load_on_several_lanes_is_answered_without_loss() -> None:
    async with rig(Batching(preferred=(4, 16), delay_s=0.001), max_rows=16, lanes=3) as m:
        outcomes: Counter[str] = Counter()

        async def client(number: int) -> None:
            for turn in range(20):
                try:
                    await m.ask(rows=1 + (number + turn) % 3, width=1 + number % 4)
                    outcomes["answered"] += 1
                except MeshError as err:
                    outcomes[type(err).__name__] += 1

        await asyncio.wait_for(asyncio.gather(*(client(number) for number in range(64))), 15)
        assert outcomes == {"answered": 1280}


async def test_batches_and_answers_are_counted_with_their_times() -> None:
    async with rig(max_rows=4) as m:
        tasks = await m.occupy() + m.start(1, 2)
        await m.waiting(2)
        m.engine.release()
        replies = await asyncio.gather(*tasks)
        timings = [reply.timings for reply in replies if reply.timings is not None]
        counted = m.metrics
        assert (counted.batches, counted.rows, counted.succeeded) == (2, 7, 3)
        assert counted.batch_rows.counts == [0, 0, 2, 0]
        assert counted.queue_s == pytest.approx(sum(t.queue for t in timings))
        assert counted.infer_s == pytest.approx(sum(t.run for t in timings))
        assert counted.output_s == pytest.approx(sum(t.batch for t in timings))
        assert counted.request_s >= counted.queue_s + counted.infer_s
        assert not counted.failures


async def test_gauges_tell_what_waits_how_long_and_which_lanes_are_busy() -> None:
    async with rig(max_rows=4, lanes=2) as m:
        gauges = m.metrics.gauges

        def now(*names: str) -> list[float]:
            return [gauges[f"mesh_infer_{name}"]() for name in names]

        assert now("queue_depth", "queue_age_seconds", "lanes", "lanes_busy") == [0, 0, 2, 0]
        tasks = await m.occupy(2) + m.start(1, 2)
        await m.waiting(2)
        assert now("queue_depth", "lanes", "lanes_busy") == [2, 2, 2]
        started = time.monotonic()
        await eventually(lambda: gauges["mesh_infer_queue_age_seconds"]() >= 0.02)
        assert time.monotonic() - started < 2
        m.engine.release()
        await asyncio.gather(*tasks)
        assert now("queue_depth", "queue_age_seconds", "lanes_busy") == [0, 0, 0]


async def test_failed_requests_are_counted_by_reason_and_every_failed_run() -> None:
    batching = Batching(default_policy=QueuePolicy(max_size=2))
    async with rig(batching, max_rows=4) as m:
        tasks = await m.occupy()
        waiting = m.start(1, 1)
        await m.waiting(2)
        with pytest.raises(Overloaded):
            await m.ask()
        waiting[0].cancel()
        await m.waiting(1)
        with pytest.raises(DeadlineExceeded):
            await m.ask(deadline=time.monotonic() + 0.01)
        m.engine.fail = lambda inputs: EngineError("broken")
        m.engine.release()
        await asyncio.gather(*tasks, *waiting, return_exceptions=True)
        assert m.metrics.failures == {"REJECTED": 2, "CANCELED": 1, "BACKEND": 2}
        assert m.metrics.batch_failures == {"EngineError": 2 * 5}
        assert m.metrics.steps == {"retry": 2, "alone": 2 * 3, "blamed": 2}
        assert (m.metrics.batches, m.metrics.succeeded) == (0, 0)


class Interrupting(ModelMetrics):
    """Calls back in the moment of an answer, before whoever asked has it."""

    interrupt: Callable[[], object]

    def answered(self, requests: int, duration_s: float) -> None:
        super().answered(requests, duration_s)
        self.interrupt()


async def test_caller_that_gives_up_in_the_moment_of_its_answer_is_counted_once() -> None:
    async with rig() as m:
        m.batcher._metrics = metrics = Interrupting("m", 1, 4)
        (task,) = m.start(1)
        metrics.interrupt = task.cancel
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (metrics.succeeded, metrics.failures.total()) == (1, 0)
