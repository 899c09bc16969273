"""Under overload some are refused at once, and the others are answered in time."""

import asyncio
import math
import time
from collections.abc import Iterator

import numpy as np
import pytest

from gateway.admission import FLOOR, INTERVAL_S, SUSTAINED, Admission, admitting
from mesh.errors import DeadlineExceeded, Overloaded
from mesh.item import Handler, Reply, Request

LATE = 4
"""DEADLINE_EXCEEDED."""


class Clock:
    """Time that passes when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr("gateway.admission.time.monotonic", made)
    yield made


def interval(made: Admission, clock: Clock, latency: float, running: int, code: int = 0) -> None:
    """Let so many requests run at a time, and answer them after so many seconds."""
    entered = 0
    for number in range(running):
        try:
            made.enter(f"client-{number}")
            entered += 1
        except Overloaded:
            break
    for number in range(entered):
        if number == entered - 1:
            clock.now += INTERVAL_S  # the last answer ends the interval
        made.leave(f"client-{number}", latency, code)


def overloaded(clock: Clock, latency: float, running: int, code: int = 0) -> Admission:
    """Return one with a target of 0.1 s that was in time, and then late for long enough."""
    made = Admission(0.1)
    interval(made, clock, 0.01, 5)
    for _ in range(SUSTAINED):
        interval(made, clock, latency, running, code)
    return made


def test_nothing_is_refused_while_answers_are_in_time(clock: Clock) -> None:
    made = Admission(0.1)
    for _ in range(20):
        interval(made, clock, 0.09, 200)
    assert math.isinf(made.limit)
    assert made.refused == 0


def test_burst_that_ends_soon_is_no_overload(clock: Clock) -> None:
    made = Admission(0.1)
    interval(made, clock, 0.02, 5)
    for _ in range(SUSTAINED - 1):
        interval(made, clock, 0.5, 300)
    interval(made, clock, 0.02, 5)
    assert math.isinf(made.limit)


def test_standing_queue_shrinks_to_what_would_have_been_in_time(clock: Clock) -> None:
    made = overloaded(clock, 0.2, 300)
    assert made.limit == pytest.approx(150, rel=0.02)
    with pytest.raises(Overloaded, match=r"within 100 ms \(150 are under way\); try again in"):
        for _ in range(301):
            made.enter("one")
    assert made.refused == 1


def test_limit_grows_again_while_answers_are_in_time_and_more_would_come(clock: Clock) -> None:
    made = overloaded(clock, 0.2, 300)
    shrunk = made.limit
    for _ in range(30):
        interval(made, clock, 0.05, 10_000)
    assert made.limit > 2 * shrunk


def test_limit_does_not_grow_while_nobody_asks_for_more(clock: Clock) -> None:
    made = overloaded(clock, 0.2, 300)
    shrunk = made.limit
    for _ in range(30):
        interval(made, clock, 0.05, 3)
    assert made.limit == shrunk


def test_pipeline_that_takes_long_by_itself_is_not_throttled_for_that(clock: Clock) -> None:
    made = Admission(0.1)
    for _ in range(50):
        interval(made, clock, 2.0, 4)
    assert math.isinf(made.limit)
    for _ in range(SUSTAINED):
        interval(made, clock, 12.0, 100)
    assert made.limit == pytest.approx(50, rel=0.05)


def test_answers_that_all_come_after_their_deadline_shrink_the_limit(clock: Clock) -> None:
    made = overloaded(clock, 0.05, 200, LATE)
    assert made.limit <= 100


def test_some_are_always_admitted(clock: Clock) -> None:
    made = Admission(0.1)
    interval(made, clock, 0.01, 5)
    for _ in range(50):
        interval(made, clock, 60.0, 100)
    assert made.limit == FLOOR


def test_client_with_less_than_its_share_is_admitted_beside_a_heavy_one(clock: Clock) -> None:
    made = overloaded(clock, 0.2, 40)
    for _ in range(20):
        made.enter("heavy")
    with pytest.raises(Overloaded):
        made.enter("heavy")
    for _ in range(10):
        made.enter("light")
    with pytest.raises(Overloaded):
        made.enter("light")


async def test_request_for_something_else_is_not_bounded() -> None:
    async def handler(request: Request) -> Reply:
        return Reply(b"x")

    admissions: dict[str, Admission] = {}
    assert (await admitting(admissions)(handler)(Request("other", b""))).payload == b"x"
    assert admissions == {}


@pytest.mark.parametrize("error", [DeadlineExceeded("late"), ValueError("bug")])
async def test_request_that_fails_is_no_more_under_way(error: Exception) -> None:
    async def handler(request: Request) -> Reply:
        raise error

    made = Admission(0.1)
    with pytest.raises(type(error)):
        await admitting({"p": made})(handler)(Request("p", b""))
    assert made._running == 0
    assert not made._active


class Stage:
    """Answers so many at a time, each after some seconds, the others wait in their order."""

    def __init__(self, lanes: int, seconds: float) -> None:
        self.rate = lanes / seconds
        self._lanes = asyncio.Semaphore(lanes)
        self._seconds = seconds

    async def __call__(self, request: Request) -> Reply:
        async with self._lanes:
            await asyncio.sleep(self._seconds)
        return Reply(b"x")


async def offer(handler: Handler, rate: float, seconds: float) -> tuple[list[float], list[float]]:
    """Send requests when they are due; return the latencies of answers and of refusals."""
    served: list[float] = []
    refused: list[float] = []

    async def one() -> None:
        began = time.monotonic()
        try:
            await handler(Request("p", b"", client="c"))
            served.append(time.monotonic() - began)
        except Overloaded as err:
            refused.append(time.monotonic() - began)
            assert 0 < err.retry_s < 1

    began, sent, tasks = time.monotonic(), 0, []
    while (gone := time.monotonic() - began) < seconds:
        while sent < gone * rate:
            tasks.append(asyncio.create_task(one()))
            sent += 1
        await asyncio.sleep(0.002)
    await asyncio.gather(*tasks)
    return served, refused


async def test_at_three_times_the_capacity_three_quarters_of_it_are_answered_in_time() -> None:
    stage, seconds = Stage(4, 0.01), 3.0
    handler = admitting({"p": Admission(0.1)})(stage)
    await offer(handler, 3 * stage.rate, 2.0)  # until the limit has settled
    found = []
    for _ in range(3):  # the machine may do something else meanwhile
        served, refused = await offer(handler, 3 * stage.rate, seconds)
        found.append({
            "served": len(served) >= 0.75 * stage.rate * seconds,
            "in time": np.percentile(served, 99) <= 0.2,
            "refused": len(refused) > stage.rate * seconds,
            "at once": np.percentile(refused, 99) <= 0.05,
        })  # fmt: skip
        if all(found[-1].values()):
            return
    pytest.fail(f"not once in three rounds: {found}")


async def test_queue_that_stood_when_overload_is_seen_is_refused_and_not_answered_late() -> None:
    stage = Stage(4, 0.01)
    handler = admitting({"p": Admission(0.1)})(stage)
    served, refused = await offer(handler, 3 * stage.rate, 3.0)  # from its first moment
    assert max(refused) > 0.1  # what stood
    assert max(refused) < 1.5
    assert max(served) < 1.5  # the queue alone would take as long as it grew: 3 s and more
    assert np.median(served) <= 0.2
    assert len(served) >= 0.6 * stage.rate * 3.0


async def test_queue_that_an_interruption_left_is_answered_though_late() -> None:
    stage = Stage(4, 0.01)
    made = Admission(0.1)
    handler = admitting({"p": made})(stage)
    await offer(handler, 0.5 * stage.rate, 0.5)
    for _ in range(4):
        await stage._lanes.acquire()
    waiting = asyncio.create_task(offer(handler, 0.5 * stage.rate, 1.0))
    await asyncio.sleep(0.8)
    for _ in range(4):
        stage._lanes.release()
    served, refused = await waiting
    assert max(served) > 0.5
    assert len(served) >= 0.9 * (len(served) + len(refused))


async def test_time_limit_of_a_stage_is_no_refusal() -> None:
    async def handler(request: Request) -> Reply:
        raise TimeoutError("a stage's own")

    made = Admission(0.1)
    with pytest.raises(TimeoutError, match="a stage's own"):
        await admitting({"p": made})(handler)(Request("p", b""))
    assert not made.under_way


async def test_without_admission_the_same_load_is_late() -> None:
    stage = Stage(4, 0.01)
    served, refused = await offer(stage, 3 * stage.rate, 1.5)
    assert refused == []
    assert np.percentile(served, 50) > 0.5
