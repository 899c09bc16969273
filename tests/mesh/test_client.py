import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from mesh import arena
from mesh.arena import Lender, Writer
from mesh.client import ClientLimits, StageClient
from mesh.errors import (
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    ReplicaFull,
    StageUnavailable,
)
from mesh.item import Handler, Reply, Request
from mesh.server import Limits
from mesh.tensor import Tensors, unpack
from tests.conftest import STAGE, Replica, echo, eventually, running_client, running_replica


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


async def test_every_item_gets_its_own_answer(one_client: StageClient) -> None:
    async def ask(number: int) -> bool:
        payload = b"%d" % number * (number % 50)
        return (await one_client.call(Request("t", payload))).payload == payload

    assert all(await asyncio.gather(*map(ask, range(2000))))


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 1024**2 + 1, 10 * 1024**2], ids=str)
async def test_items_of_any_size_pass_unchanged(one_client: StageClient, size: int) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    reply = await one_client.call(Request("t", payload[:size], context=b"kept"))
    assert reply.payload == payload[:size]
    assert reply.context == b"kept"


async def test_item_over_the_limit_is_refused_and_the_next_one_works(
    one_client: StageClient,
) -> None:
    with pytest.raises(InvalidInput, match="wanted at most"):
        await one_client.call(Request("t", bytes(65 * 1024**2)))
    assert (await one_client.call(Request("t", b"x"))).payload == b"x"


async def test_error_is_raised_as_the_same_type_on_the_other_side() -> None:
    async def refuse(request: Request) -> Reply:
        raise InvalidInput("no such thing")

    async with running_replica(refuse) as replica, running_client(replica) as client:
        reply = await client.call(Request("t", b""))
        error = reply.error()
        assert isinstance(error, InvalidInput)
        assert str(error) == "no such thing"


async def test_unexpected_error_tells_the_caller_nothing_of_its_text() -> None:
    async def crash(request: Request) -> Reply:
        raise ValueError("secret")

    async with running_replica(crash) as replica, running_client(replica) as client:
        error = (await client.call(Request("t", b""))).error()
        assert "secret" not in str(error)


async def test_deadline_ends_the_wait_and_cancels_the_work() -> None:
    ended = asyncio.Event()

    async def hang(request: Request) -> Reply:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return Reply()

    async with running_replica(hang) as replica, running_client(replica) as client:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await client.call(Request("t", b"", deadline=soon(0.1)))
        assert time.monotonic() - started < 1
        await asyncio.wait_for(ended.wait(), 2)
        assert replica.stage.depth == 0


async def test_deadline_reaches_the_handler() -> None:
    async def tell(request: Request) -> Reply:
        return Reply(str(request.deadline - time.monotonic()).encode())

    async with running_replica(tell) as replica, running_client(replica) as client:
        left = float((await client.call(Request("t", b"", deadline=soon(3)))).payload)
        assert 2 < left <= 3
        assert (await client.call(Request("t", b""))).payload == b"inf"


async def test_caller_that_gives_up_cancels_the_work() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def hang(request: Request) -> Reply:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return Reply()

    async with running_replica(hang) as replica, running_client(replica) as client:
        task = asyncio.create_task(client.call(Request("t", b"")))
        await started.wait()
        task.cancel()
        await asyncio.wait_for(ended.wait(), 2)
        assert all(link.items == 0 for link in client.replicas)


async def test_replies_before_the_last_one_come_in_order() -> None:
    async def count(request: Request) -> Reply:
        assert request.emit is not None
        for number in range(5):
            request.emit(Reply(b"%d" % number, more=True))
        return Reply(b"end")

    async with running_replica(count) as replica, running_client(replica) as client:
        parts: list[bytes] = []
        last = await client.call(Request("t", b""), more=lambda part: parts.append(part.payload))
        assert (parts, last.payload) == ([b"0", b"1", b"2", b"3", b"4"], b"end")


async def test_items_of_a_replica_that_dies_are_answered_by_another() -> None:
    async def slow(request: Request) -> Reply:
        await asyncio.sleep(0.3)
        return Reply(request.payload)

    async with running_replica(slow) as first, running_replica(slow) as second:
        async with running_client(first, second) as client:
            calls = [asyncio.create_task(client.call(Request("t", b"%d" % i))) for i in range(100)]
            await asyncio.sleep(0.1)
            await first.kill()
            replies = await asyncio.gather(*calls)
            assert [reply.payload for reply in replies] == [b"%d" % i for i in range(100)]
            assert client.retries > 0


@contextmanager
def lending(count: int) -> Iterator[list[Lender]]:
    """Make arenas of a few slots of 8 kB."""
    lenders = [Lender(1) for _ in range(count)]
    for lender in lenders:
        lender.open(8192)
    yield lenders
    for lender in lenders:
        lender.close()


def reading(lender: Lender, kinds: list[bool]) -> Handler:
    """Return a handler that sums a tensor, and notes whether it came by shared memory."""

    async def total(request: Request) -> Reply:
        shared = len(request.payload) < 4096
        x = unpack(request.payload, lambda at: lender.read(at, request.client))["x"]
        kinds.append(shared)
        return Reply(str(x.sum(dtype=np.int64)).encode())

    return total


async def test_tensor_in_shared_memory_is_read_by_the_replica_that_lent_it() -> None:
    kinds: list[bool] = []
    with lending(1) as (lender,):
        async with (
            running_replica(reading(lender, kinds), lender=lender) as replica,
            running_client(replica) as client,
        ):
            for number in range(200):
                lease = await client.reserve(5000, soon())
                tensors: Tensors = {"x": np.full(5000, number % 251, np.uint8)}
                request = Request("t", Writer().pack(tensors, lease.take_slot()))
                reply = await client.call(request, lease)
                assert reply.payload == b"%d" % (5000 * (number % 251))
            assert kinds == [True] * 200, "more requests than slots: each came back"


async def test_tensor_in_memory_of_a_replica_that_died_goes_to_another_as_bytes() -> None:
    kinds: list[bool] = []
    with lending(2) as lenders:
        async with (
            running_replica(reading(lenders[0], kinds), lender=lenders[0]) as first,
            running_replica(reading(lenders[1], kinds), lender=lenders[1]) as second,
            running_client(first, second) as client,
        ):
            replicas = {first.address: first, second.address: second}
            lease = await client.reserve(5000, soon())
            tensors: Tensors = {"x": np.ones(5000, np.uint8)}
            payload = Writer().pack(tensors, lease.take_slot())
            await replicas[lease.link.address].kill()
            await eventually(lambda: not lease.link.open)
            assert lease.link.take_slot() is None
            reply = await client.call(Request("t", payload), lease)
            assert reply.payload == b"5000"
            assert kinds == [False]


async def test_tensor_in_memory_of_a_replica_that_is_full_goes_to_another_as_bytes() -> None:
    kinds: list[bool] = []
    asked = 0
    with lending(1) as (lender,):
        read = reading(lender, kinds)

        async def full_at_first(request: Request) -> Reply:
            nonlocal asked
            asked += 1
            if asked == 1:
                raise ReplicaFull("no room")
            return await read(request)

        async with (
            running_replica(full_at_first, lender=lender) as replica,
            running_client(replica) as client,
        ):
            lease = await client.reserve(5000, soon())
            tensors: Tensors = {"x": np.ones(5000, np.uint8)}
            payload = Writer().pack(tensors, lease.take_slot())
            assert (await client.call(Request("t", payload), lease)).payload == b"5000"
            assert (asked, kinds) == (2, [False])


async def test_replica_whose_memory_is_not_seen_here_gets_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[bool] = []
    with lending(1) as (lender,):
        monkeypatch.setattr(arena, "FOLDER", tmp_path)
        async with (
            running_replica(reading(lender, kinds), lender=lender) as replica,
            running_client(replica) as client,
        ):
            lease = await client.reserve(5000, soon())
            assert lease.take_slot() is None
            payload = Writer().pack({"x": np.ones(5000, np.uint8)}, None)
            assert (await client.call(Request("t", payload), lease)).payload == b"5000"
        monkeypatch.undo()


async def test_requests_wait_for_a_replica_that_comes_back() -> None:
    async with running_replica() as replica, running_client(replica) as client:
        await replica.kill()
        await eventually(lambda: not client.replicas)
        call = asyncio.create_task(client.call(Request("t", b"x", deadline=soon(10))))
        async with running_replica(address=replica.address):
            assert (await call).payload == b"x"


async def test_no_replica_within_the_deadline_is_unavailable() -> None:
    async with StageClient(STAGE, "127.0.0.1:1", limits=ClientLimits(backoff_s=0.02)) as client:
        with pytest.raises(StageUnavailable, match="could be reached"):
            await client.call(Request("t", b"", deadline=soon(0.2)))


async def test_unavailable_replies_are_retried_only_within_the_budget() -> None:
    calls = 0

    async def sick(request: Request) -> Reply:
        nonlocal calls
        calls += 1
        raise StageUnavailable("sick")

    limits = ClientLimits(retry_burst=5, retry_ratio=0)
    async with running_replica(sick) as replica, running_client(replica, limits=limits) as client:
        for _ in range(10):
            error = (await client.call(Request("t", b""))).error()
            assert isinstance(error, StageUnavailable)
        assert calls == 15


async def test_request_that_ends_replica_after_replica_is_not_tried_for_ever() -> None:
    killings: list[asyncio.Task[None]] = []
    replicas: list[Replica] = []

    def dying(index: int) -> Handler:
        async def handler(request: Request) -> Reply:
            if request.payload == b"poison":
                killings.append(asyncio.create_task(replicas[index].kill()))
                await asyncio.sleep(60)
            return Reply(request.payload)

        return handler

    async with AsyncExitStack() as stack:
        for index in range(6):
            replicas.append(await stack.enter_async_context(running_replica(dying(index))))
        client = await stack.enter_async_context(running_client(*replicas))
        with pytest.raises(StageUnavailable, match=r"3 replicas of .* went away with this request"):
            await client.call(Request("t", b"poison", deadline=soon(20)))
        assert len(killings) == 3
        assert (await client.call(Request("t", b"x", deadline=soon(20)))).payload == b"x"
        await asyncio.gather(*killings)


async def test_other_errors_are_never_retried() -> None:
    calls = 0

    async def invalid(request: Request) -> Reply:
        nonlocal calls
        calls += 1
        raise InvalidInput("no")

    async with running_replica(invalid) as replica, running_client(replica) as client:
        await client.call(Request("t", b""))
        assert calls == 1


async def test_more_than_may_wait_is_answered_at_once() -> None:
    release = asyncio.Event()

    async def hold(request: Request) -> Reply:
        await release.wait()
        return Reply(request.payload)

    limits = ClientLimits(max_waiting=3)
    async with running_replica(hold, Limits(max_items=2)) as replica:
        async with running_client(replica, limits=limits) as client:
            calls = [asyncio.create_task(client.call(Request("t", b"x"))) for _ in range(5)]
            await eventually(lambda: client.waiting == 3)
            started = time.monotonic()
            with pytest.raises(Overloaded, match="try again"):
                await client.call(Request("t", b"x"))
            assert time.monotonic() - started < 0.05
            release.set()
            assert all(reply.payload == b"x" for reply in await asyncio.gather(*calls))


async def test_full_replica_sends_back_and_nothing_is_lost() -> None:
    """Two clients believe in the whole grant at first; the second one's items go round again."""

    async def slow(request: Request) -> Reply:
        await asyncio.sleep(0.01)
        return Reply(request.payload)

    async with running_replica(slow, Limits(max_items=4)) as replica:
        async with running_client(replica) as first, running_client(replica) as second:
            calls = [c.call(Request("t", b"x")) for _ in range(50) for c in (first, second)]
            replies = await asyncio.gather(*calls)
            assert all(reply.error() is None for reply in replies)


async def test_heavy_client_does_not_starve_another() -> None:
    order: list[str] = []

    async def note(request: Request) -> Reply:
        order.append(request.payload.decode())
        await asyncio.sleep(0.001)
        return Reply()

    async with running_replica(note, Limits(max_items=1)) as replica:
        async with running_client(replica) as client:
            heavy = [client.call(Request("t", b"heavy", client="a")) for _ in range(100)]
            light = [client.call(Request("t", b"light", client="b")) for _ in range(5)]
            await asyncio.gather(*heavy, *light)
            assert max(index for index, who in enumerate(order) if who == "light") < 20


async def test_less_busy_replica_gets_more() -> None:
    counts = {"slow": 0, "fast": 0}

    async def slow(request: Request) -> Reply:
        counts["slow"] += 1
        await asyncio.sleep(0.05)
        return Reply()

    async def fast(request: Request) -> Reply:
        counts["fast"] += 1
        await asyncio.sleep(0.001)
        return Reply()

    async with running_replica(slow) as first, running_replica(fast) as second:
        async with running_client(first, second) as client:

            async def worker() -> None:
                for _ in range(25):
                    await client.call(Request("t", b""))

            await asyncio.gather(*(worker() for _ in range(16)))
            assert counts["fast"] > 3 * counts["slow"]


async def test_credit_is_held_by_a_lease_and_comes_back() -> None:
    async with running_replica(echo, Limits(max_items=1)) as replica:
        async with running_client(replica) as client:
            lease = await client.reserve(10, math.inf)
            with pytest.raises(DeadlineExceeded, match="room"):
                await client.call(Request("t", b"", deadline=soon(0.1)))
            lease.release()
            lease.release()
            assert (await client.call(Request("t", b"x"))).payload == b"x"
            assert [link.items for link in client.replicas] == [0]


async def test_bytes_are_credit_too() -> None:
    async with running_replica(echo, Limits(max_bytes=1000)) as replica:
        async with running_client(replica) as client:
            lease = await client.reserve(600, math.inf)
            with pytest.raises(DeadlineExceeded):
                await client.reserve(600, soon(0.05))
            lease.release()
            (await client.reserve(5000, soon(1))).release()  # alone, even a large one fits


async def test_waiter_that_gives_up_leaves_no_lease_behind() -> None:
    async with running_replica(echo, Limits(max_items=1)) as replica:
        async with running_client(replica) as client:
            lease = await client.reserve(1, math.inf)
            waiting = asyncio.create_task(client.reserve(1, math.inf))
            await eventually(lambda: client.waiting == 1)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            lease.release()
            assert [link.items for link in client.replicas] == [0]
            assert (await client.call(Request("t", b"x"))).payload == b"x"


async def test_many_large_items_at_once_all_pass(one_client: StageClient) -> None:
    """Together they are more than a receiver keeps of incomplete ones."""
    payload = bytes(20 * 1024**2)
    sizes = [len((await call).payload) for call in [
        asyncio.create_task(one_client.call(Request("t", payload, deadline=soon(60))))
        for _ in range(16)
    ]]  # fmt: skip
    assert sizes == [len(payload)] * 16
    assert one_client.retries == 0


async def test_further_attempt_takes_along_what_came_before() -> None:
    async def fall_once(request: Request) -> Reply:
        if request.context == b"came: 0":
            raise StageUnavailable("going away")
        return Reply(request.context)

    came = iter(range(1, 9))
    async with running_replica(fall_once) as replica, running_client(replica) as client:
        request = Request("t", b"", context=b"came: 0")
        request.resume = lambda: b"came: %d" % next(came)
        assert (await client.call(request)).payload == b"came: 1"
