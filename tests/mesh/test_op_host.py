"""Ops run in threads: fairly, in time, and one item's trouble is its own."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from mesh.errors import DeadlineExceeded, InvalidInput, MeshError, NotFound
from mesh.item import Reply, Request
from mesh.layers import errors
from mesh.op import Op
from mesh.op_host import HAND_BACK, MAX_OPS, OpHost
from mesh.tensor import Array, pack, unpack
from protos.mesh.v1.stage_pb2 import Target
from tests.conftest import eventually
from tests.mesh.ops import OPS, Gate, Scale, X


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[OpHost]:
    """A host with one thread."""
    with OpHost(OPS, tmp_path, 1) as found:
        yield found


def request(target: str, value: float = 1, client: str = "c", **more: Array) -> Request:
    tensors = {"x": np.array([[value, 0]], np.float32), **more}
    return Request(target, pack(tensors), client=client)


async def occupied() -> None:
    """Wait until the thread is at the gate."""
    assert await asyncio.to_thread(Gate.began.acquire, True, 10)


async def test_op_runs_on_the_tensors_of_the_request(host: OpHost) -> None:
    reply = await host(Request("scale", request("scale", 4).payload, b'{"factor": 3}'))
    assert unpack(reply.payload)["x"].tolist() == [[12, 0]]
    assert unpack(reply.context)["factor"].tolist() == [3]
    assert reply.timings is not None
    assert (reply.timings.batch, reply.timings.batch_rows) == (0, 0)
    assert reply.timings.run > 0


async def test_clients_take_turns(host: OpHost) -> None:
    with Gate.closed():
        first = asyncio.create_task(host(request("gate", 0)))
        await occupied()
        jobs = [request("gate", number, "heavy") for number in (1, 2, 3, 4)]
        jobs += [request("gate", number, "light") for number in (11, 12)]
        tasks = [asyncio.create_task(host(job)) for job in jobs]
        await eventually(lambda: len(host._queue) == 6)
        Gate.opened.set()
        await asyncio.gather(first, *tasks)
        assert Gate.seen == [0, 1, 11, 2, 12, 3, 4]


async def test_results_are_handed_back_together_while_others_wait(host: OpHost) -> None:
    with Gate.closed():
        tasks = [asyncio.create_task(host(request("gate", number))) for number in range(14)]
        await occupied()
        await eventually(lambda: len(host._queue) == 13)
        with patch.object(host._loop, "call_soon_threadsafe") as call:
            Gate.opened.set()
            await eventually(lambda: len(host._results) == 14)
            handed_back = [job.args[0] for job in call.mock_calls]
        # The timer for the first, all at the eighth (here: each later one too), then one by one.
        assert handed_back[0] == host._hand_back_soon
        assert set(handed_back[1:]) == {host._hand_back}
        assert len(handed_back) == 1 + 14 - (HAND_BACK - 1)
        host._hand_back()
        await asyncio.gather(*tasks)


async def test_result_does_not_wait_for_an_op_that_takes_long(host: OpHost) -> None:
    with Gate.closed():
        jobs = [request("gate", 0), request("scale"), *(request("gate", 1) for _ in range(6))]
        first, quick, *rest = [asyncio.create_task(host(job)) for job in jobs]
        await occupied()
        await eventually(lambda: len(host._queue) == 7)
        Gate.opened.set()
        Gate.opened.clear()
        await asyncio.wait_for(asyncio.gather(first, quick), 5)
        assert not any(task.done() for task in rest)
        Gate.opened.set()
        await asyncio.gather(*rest)


async def test_item_whose_time_is_over_is_not_run(host: OpHost) -> None:
    with Gate.closed():
        first = asyncio.create_task(host(request("gate", 0)))
        await occupied()
        late = request("gate", 1)
        late.deadline = time.monotonic() + 0.01
        waiting = asyncio.create_task(host(late))
        await eventually(lambda: time.monotonic() > late.deadline)
        Gate.opened.set()
        with pytest.raises(DeadlineExceeded, match="in the queue of 'gate'"):
            await waiting
        await first
        assert Gate.seen == [0]


async def test_item_that_was_given_up_is_not_run_and_holds_no_memory(host: OpHost) -> None:
    with Gate.closed():
        first = asyncio.create_task(host(request("gate", 0)))
        await occupied()
        given_up = [asyncio.create_task(host(request("gate", n, f"c{n % 3}"))) for n in range(9)]
        kept = asyncio.create_task(host(request("gate", 99)))
        await eventually(lambda: len(host._queue) == 10)
        for task in given_up:
            task.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        assert len(host._queue) == 1
        Gate.opened.set()
        await asyncio.gather(first, kept)
        assert Gate.seen == [0, 99]


async def test_item_that_is_given_up_while_it_runs_disturbs_nobody(host: OpHost) -> None:
    with Gate.closed():
        running = asyncio.create_task(host(request("gate", 0)))
        await occupied()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        Gate.opened.set()
        assert unpack((await host(request("scale", 2))).payload)["x"].tolist() == [[4, 0]]


@pytest.mark.parametrize("kind", ["InvalidInput", "ValueError", "StopIteration"])
async def test_error_of_one_item_leaves_the_others(kind: str, host: OpHost) -> None:
    bad = Request("fail", request("fail").payload, b'{"kind": "%s"}' % kind.encode())
    calls = [errors(host)(job) for job in (request("scale"), bad, request("scale"))]
    replies: list[Reply] = await asyncio.wait_for(asyncio.gather(*calls), 5)
    found = [type(reply.error()).__name__ for reply in replies]
    wanted = "InvalidInput" if kind == "InvalidInput" else "InternalError"
    assert found == ["NoneType", wanted, "NoneType"]
    assert "secret" not in str(replies[1].error())


@pytest.mark.parametrize(
    ("job", "kind", "match"),
    [
        pytest.param(request("nope"), NotFound, "op 'nope'", id="op"),
        pytest.param(Request("scale", b"\xff"), InvalidInput, "no serialized", id="garbage"),
        pytest.param(Request("scale", b""), InvalidInput, "wanted", id="no_tensor"),
        pytest.param(
            Request("scale", pack({"x": np.zeros((1, 3), np.float32)})),
            InvalidInput,
            r"FP32\[1,3\], wanted FP32\[1,2\]",
            id="shape",
        ),
        pytest.param(
            Request("scale", pack({"y": np.zeros((1, 2), np.float32)})),
            InvalidInput,
            r"tensors \['y'\] came",
            id="name",
        ),
        pytest.param(
            Request("scale", request("scale").payload, b"{"), InvalidInput, "JSON", id="parameters"
        ),
        pytest.param(
            Request("scale", request("scale").payload, context=b"\xff"),
            InvalidInput,
            "no serialized",
            id="context",
        ),
    ],
)
async def test_request_that_cannot_be_run_is_refused(
    job: Request, kind: type[MeshError], match: str, host: OpHost
) -> None:
    with pytest.raises(kind, match=match):
        await host(job)


async def test_outputs_of_a_model_that_the_op_does_not_take_are_dropped(host: OpHost) -> None:
    reply = await host(request("scale", 1, more=np.zeros(3), other=np.zeros(1)))
    assert unpack(reply.payload)["x"].tolist() == [[2, 0]]


async def test_ops_that_are_kept_are_bounded_and_the_used_ones_stay(host: OpHost) -> None:
    payload = request("scale").payload
    used = Request("scale", payload, b'{"factor": 0.5}')
    await host(used)
    kept = host._ops["scale", used.parameters]
    for number in range(MAX_OPS + 10):
        await host(Request("scale", payload, b'{"factor": %d}' % number))
        if number % 100 == 0:
            await host(used)
    assert len(host._ops) == MAX_OPS
    assert host._ops["scale", used.parameters] is kept
    assert ("scale", b'{"factor": 0}') not in host._ops


async def test_op_that_cannot_be_made_is_not_kept(host: OpHost) -> None:
    for _ in range(2):
        with pytest.raises(InvalidInput):
            await host(Request("scale", request("scale").payload, b'{"x": 1}'))
    assert not host._ops


async def test_op_that_takes_long_to_make_holds_up_no_other_and_is_made_once(
    tmp_path: Path,
) -> None:
    made, go = threading.Semaphore(0), threading.Event()

    def make(table: object, name: str, *_: object) -> Op:
        made.release()
        assert name == "scale" or go.wait(10)
        return Scale()

    with OpHost(OPS, tmp_path, 2) as host, patch("mesh.op_host.make_op", make):
        slow = [
            asyncio.create_task(asyncio.to_thread(host.describe, [Target(name="gate")]))
            for _ in range(3)
        ]
        assert await asyncio.to_thread(made.acquire, True, 10)
        assert (await asyncio.wait_for(host(request("scale")), 5)).payload
        assert not any(task.done() for task in slow)
        go.set()
        await asyncio.gather(*slow)
        assert made.acquire(blocking=False)  # of scale
        assert not made.acquire(blocking=False)


async def test_threads_run_side_by_side_and_end(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with OpHost(OPS, tmp_path, 3) as host, Gate.closed():
        assert len([t for t in threading.enumerate() if t.name.startswith("op-")]) == 3
        tasks = [asyncio.create_task(host(request("gate", number))) for number in range(3)]
        for _ in tasks:
            await occupied()
        Gate.opened.set()
        await asyncio.gather(*tasks)
    after = {thread for thread in threading.enumerate() if thread.name.startswith("op-")}
    assert not after - before


async def test_describe_tells_what_an_op_takes_and_makes(host: OpHost) -> None:
    (spec,) = host.describe([Target(name="scale", parameters=b'{"factor": 3}')])
    assert [list(spec.inputs), list(spec.outputs)] == [[X.to_proto()], [X.to_proto()]]
    assert spec.output_bytes == 8
    assert not spec.HasField("status")


async def test_describe_of_nothing_lists_every_op(host: OpHost) -> None:
    assert [spec.name for spec in host.describe([])] == sorted(OPS)


async def test_describe_keeps_the_order_and_tells_what_is_wrong_with_each(host: OpHost) -> None:
    targets = [Target(name="nope"), Target(name="scale"), Target(name="scale", parameters=b"[]")]
    specs = host.describe(targets)
    assert [spec.name for spec in specs] == ["nope", "scale", "scale"]
    assert [spec.status.kind for spec in specs] == ["NotFound", "", "InvalidInput"]


async def test_no_deadline_is_never_over(host: OpHost) -> None:
    assert request("scale").deadline == math.inf
    await host(request("scale"))


async def test_without_threads_ops_run_in_the_event_loop(tmp_path: Path) -> None:
    with OpHost(OPS, tmp_path, 0) as inline:
        before = threading.active_count()
        reply = await inline(Request("scale", request("scale", 4).payload, b'{"factor": 3}'))
        assert unpack(reply.payload)["x"].tolist() == [[12, 0]]
        assert threading.active_count() == before
        late = request("scale")
        late.deadline = time.monotonic() - 1
        with pytest.raises(DeadlineExceeded):
            await inline(late)
