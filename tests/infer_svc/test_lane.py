import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_svc.backends.batch import NO_TIMES, join
from infer_svc.backends.errors import DeviceLost
from infer_svc.golden import Golden
from infer_svc.lane import Batch, BatchResult, Lane, Run
from mesh.errors import EngineError
from mesh.tensor import Tensors, bytes_tensor, unpack
from tests.conftest import eventually
from tests.infer_svc.fakes import FakeContext


class WrongRows:
    """Answers with a row too few."""

    times = NO_TIMES
    inputs = outputs = ()

    def open(self) -> "WrongRows":
        return self

    def close(self) -> None:
        """Do nothing."""

    rebuild = reload = settle = close

    def run(self, parts: Sequence[Tensors]) -> Tensors:
        return {"y": join(parts)["x"][1:]}


def rows_of(count: int, first: int = 0) -> Tensors:
    return {"x": np.arange(first, first + count, dtype=np.int64).reshape(count, 1)}


class Results:
    """Collects what a lane hands back, and in which thread."""

    def __init__(self) -> None:
        self.got: list[BatchResult] = []
        self.lanes: list[Lane] = []
        self.threads: set[int] = set()

    def __call__(self, runs: list[Run]) -> None:
        self.got += [run.result for run in runs]
        self.lanes += [run.lane for run in runs]
        self.threads.add(threading.get_ident())


@pytest.fixture
def context() -> FakeContext:
    return FakeContext()


@pytest.fixture
async def lane(context: FakeContext) -> AsyncIterator[Lane]:
    lane = Lane("m-0", context, asyncio.get_running_loop())
    yield lane
    context.release()
    lane.close()


async def test_batch_runs_in_the_lanes_thread_and_is_handed_back_in_the_loop(
    context: FakeContext, lane: Lane
) -> None:
    ran_in: list[str] = []
    context.fail = lambda inputs: ran_in.append(threading.current_thread().name)
    results = Results()
    lane.submit(Batch([rows_of(1)], [1]), results)
    await eventually(lambda: len(results.got) == 1)
    assert ran_in == ["m-0"]
    assert results.threads == {threading.get_ident()}


async def test_batches_run_one_at_a_time_in_the_order_they_came(
    context: FakeContext, lane: Lane
) -> None:
    context.hold()
    results = Results()
    for number in range(20):
        lane.submit(Batch([rows_of(1, number)], [1]), results)
    await eventually(lambda: context.rows == [1])
    context.release()
    await eventually(lambda: len(results.got) == 20)
    assert context.most == [[1]] * 20
    answers = [unpack(result.payloads[0])["y"].item() for result in results.got]
    assert answers == list(range(1, 21))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_each_part_gets_its_own_rows(rows: list[int]) -> None:
    loop = asyncio.new_event_loop()
    lane = Lane("m-0", FakeContext(), loop)
    parts = [rows_of(count, 100 * index) for index, count in enumerate(rows)]
    result = lane.run(Batch(parts, rows))
    lane.close()
    loop.close()
    assert result.error is None
    for part, payload in zip(parts, result.payloads, strict=True):
        np.testing.assert_array_equal(unpack(payload)["y"], part["x"] + 1)


async def test_engine_gets_the_rows_of_all_parts_as_one_contiguous_tensor(
    context: FakeContext, lane: Lane
) -> None:
    lane.run(Batch([rows_of(2), rows_of(1, 7)], [2, 1]))
    (inputs,) = context.batches
    np.testing.assert_array_equal(inputs["x"], [[0], [1], [7]])
    assert inputs["x"].flags.c_contiguous


async def test_single_part_is_given_to_the_engine_without_a_copy(
    context: FakeContext, lane: Lane
) -> None:
    part = rows_of(3)
    lane.run(Batch([part], [3]))
    assert context.batches[0]["x"] is part["x"]


async def test_strings_are_joined_too(lane: Lane, context: FakeContext) -> None:
    context.fail = lambda inputs: EngineError("enough seen")
    lane.run(Batch([{"x": bytes_tensor(b"a", b"")}, {"x": bytes_tensor(b"ccc")}], [2, 1]))
    assert context.batches[0]["x"].tolist() == [b"a", b"", b"ccc"]


async def test_output_of_wrong_length_is_an_engine_error_that_says_the_fix() -> None:
    lane = Lane("m-0", WrongRows(), asyncio.get_running_loop())
    result = lane.run(Batch([rows_of(2), rows_of(1)], [2, 1]))
    lane.close()
    assert isinstance(result.error, EngineError)
    assert "'y' has 2 rows for a batch of 3; set max_batch_size to 0" in str(result.error)


@pytest.mark.parametrize(
    "error",
    [EngineError("no"), ValueError("no"), MemoryError("no")],
    ids=lambda e: type(e).__name__,
)
async def test_failure_is_handed_back_and_the_lane_works_on(
    context: FakeContext, lane: Lane, error: Exception
) -> None:
    context.fail = lambda inputs: error if inputs["x"][0] == 13 else None
    results = Results()
    lane.submit(Batch([rows_of(1, 13)], [1]), results)
    lane.submit(Batch([rows_of(1)], [1]), results)
    await eventually(lambda: len(results.got) == 2)
    failed, fine = results.got
    assert failed.error is error
    assert list(failed.payloads) == []
    assert fine.error is None


async def test_batch_that_failed_runs_again_at_once_on_the_lane_that_stands_in(
    context: FakeContext, lane: Lane
) -> None:
    spare_context, ran_in, asked = FakeContext(), set[str](), list[BaseException]()
    spare = Lane("spare", spare_context, asyncio.get_running_loop())
    error = EngineError("no")
    context.fail = lambda inputs: error
    spare_context.fail = lambda inputs: ran_in.add(threading.current_thread().name)

    def stand_in(why: BaseException) -> Lane:
        asked.append(why)
        return spare

    results = Results()
    lane.submit(Batch([rows_of(1)], [1]), results, stand_in)
    await asyncio.sleep(0)
    time.sleep(0.2)  # the loop is busy, and the lane needs it not
    await eventually(lambda: len(results.got) == 2)
    assert results.lanes == [lane, spare]
    failed, again = results.got
    assert (failed.error, again.error, asked) == (error, None, [error])
    assert ran_in == {"m-0"}
    assert 0 <= again.began - failed.ended < 0.1
    spare.close()


async def test_batch_that_nobody_stands_in_for_is_handed_back_with_its_error(
    context: FakeContext, lane: Lane
) -> None:
    context.fail = lambda inputs: EngineError("no")
    results = Results()
    lane.submit(Batch([rows_of(1)], [1]), results, lambda error: None)
    await eventually(lambda: results.lanes == [lane])


async def test_parts_that_cannot_be_joined_are_an_error_and_the_engine_is_not_asked(
    context: FakeContext, lane: Lane
) -> None:
    result = lane.run(Batch([{"x": np.zeros((1, 2))}, {"x": np.zeros((1, 3))}], [1, 1]))
    assert isinstance(result.error, ValueError)
    assert context.batches == []


async def test_times_add_up_to_the_time_since_the_batch_was_formed(
    context: FakeContext, lane: Lane
) -> None:
    context.hold()
    formed = time.monotonic() - 1.0
    results = Results()
    lane.submit(Batch([rows_of(1)], [1], formed), results)
    await eventually(lambda: context.rows == [1])
    context.release()
    await eventually(lambda: len(results.got) == 1)
    (result,) = results.got
    assert result.run_s > 0
    assert 1.0 <= result.around_s + result.run_s <= time.monotonic() - formed
    assert result.around_s >= 1.0


async def test_close_finishes_what_was_submitted_and_ends_the_thread(
    context: FakeContext,
) -> None:
    lane = Lane("m-closing", context, asyncio.get_running_loop())
    results = Results()
    for _ in range(3):
        lane.submit(Batch([rows_of(1)], [1]), results)
    lane.close()
    assert context.rows == [1, 1, 1]
    assert "m-closing" not in [thread.name for thread in threading.enumerate()]
    await eventually(lambda: len(results.got) == 3)


async def test_lost_gpu_is_raised_by_whatever_finds_it_out(
    context: FakeContext, lane: Lane
) -> None:
    known = Golden.record(rows_of(1), lane.answer)
    context.fail = lambda inputs: DeviceLost("700")
    context.fail_rebuild = lambda: DeviceLost("719")
    with pytest.raises(DeviceLost, match="700"):
        await lane.check(known)
    with pytest.raises(DeviceLost, match="719"):
        await lane.rebuild()
