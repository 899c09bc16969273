"""Whoever waits for a replica's credit can give up at any moment, and nothing stays behind."""

import asyncio
import math
import time
from collections.abc import AsyncIterator

import pytest

from mesh.client import ClientLimits, StageClient
from mesh.errors import DeadlineExceeded, InvalidInput, StageUnavailable
from mesh.item import Reply, Request
from mesh.lease import Lease
from mesh.server import Limits
from tests.conftest import Replica, echo, eventually, running_client, running_replica


@pytest.fixture
async def narrow() -> AsyncIterator[Replica]:
    """A replica with credit for one item of 1000 bytes."""
    async with running_replica(echo, Limits(max_items=1, max_bytes=1000)) as replica:
        yield replica


def soon(seconds: float) -> float:
    return time.monotonic() + seconds


def leased(client: StageClient) -> tuple[int, int]:
    """Return what is leased in all."""
    links = client.replicas
    return sum(link.items for link in links), sum(link.bytes for link in links)


@pytest.mark.parametrize("deadline_s", [math.inf, 30.0], ids=["no_deadline", "deadline"])
async def test_cancel_in_the_moment_of_the_grant_is_a_cancel(
    narrow: Replica, deadline_s: float
) -> None:
    async with running_client(narrow) as client:
        lease = await client.reserve(1, math.inf)
        waiting = asyncio.create_task(client.reserve(1, soon(deadline_s)))
        await eventually(lambda: client.waiting == 1)
        lease.release()  # grants the credit to the one that waits, before it can run
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert leased(client) == (0, 0)


async def test_those_that_gave_up_do_not_count_as_waiting(narrow: Replica) -> None:
    """The first in line stays, so that the queue's head does not move."""
    async with running_client(narrow, limits=ClientLimits(max_waiting=10)) as client:
        lease = await client.reserve(1, math.inf)
        first = asyncio.create_task(client.reserve(1, math.inf))
        await eventually(lambda: client.waiting == 1)
        for _ in range(3):
            late = [client.reserve(1, soon(0.01)) for _ in range(9)]
            results = await asyncio.gather(*late, return_exceptions=True)
            assert {type(result) for result in results} == {DeadlineExceeded}
            assert client.waiting == 1
        lease.release()
        (await first).release()
        assert leased(client) == (0, 0)


async def test_small_one_goes_when_the_large_one_before_it_gives_up() -> None:
    async with running_replica(echo, Limits(max_items=5, max_bytes=1000)) as replica:
        async with running_client(replica) as client:
            lease = await client.reserve(600, math.inf)
            large = asyncio.create_task(client.reserve(500, math.inf))
            small = asyncio.create_task(client.reserve(100, math.inf))
            await eventually(lambda: client.waiting == 2)
            large.cancel()
            found: Lease = await asyncio.wait_for(small, 1)
            assert leased(client) == (2, 700)
            found.release()
            lease.release()


async def test_deadline_that_is_over_is_told_at_once_when_there_is_no_room(
    narrow: Replica,
) -> None:
    async with running_client(narrow) as client:
        lease = await client.reserve(1, math.inf)
        with pytest.raises(DeadlineExceeded, match="room"):
            await client.reserve(1, soon(-1))
        lease.release()


async def test_end_of_the_client_ends_every_wait(narrow: Replica) -> None:
    async with running_client(narrow) as client:
        await client.reserve(1, math.inf)
        waits = [asyncio.create_task(client.reserve(1, math.inf)) for _ in range(3)]
        await eventually(lambda: client.waiting == 3)
    results = await asyncio.gather(*waits, return_exceptions=True)
    assert {type(result) for result in results} == {StageUnavailable}
    with pytest.raises(StageUnavailable, match="closed"):
        await client.call(Request("t", b""))


async def test_lease_of_a_replica_that_went_away_is_exchanged_for_another() -> None:
    async with running_replica() as first, running_client(first) as client:
        lease = await client.reserve(1, math.inf)
        await first.kill()
        await eventually(lambda: not client.replicas)
        async with running_replica(address=first.address):
            reply = await client.call(Request("t", b"x", deadline=soon(10)), lease)
            assert reply.payload == b"x"
            assert leased(client) == (0, 0)


async def test_random_waits_cancels_and_deadlines_leave_no_lease(narrow: Replica) -> None:
    async with running_client(narrow) as client:

        async def hold(index: int) -> None:
            (await client.reserve(1, soon(0.002 * (index % 7)), f"client-{index % 3}")).release()

        tasks = []
        for index in range(300):
            tasks.append(asyncio.create_task(hold(index)))
            if index % 5 == 0:
                await asyncio.sleep(0)
            if index % 3 == 0:
                tasks[index // 2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert client.waiting == 0
        assert leased(client) == (0, 0)
        assert (await client.call(Request("t", b"x", deadline=soon(2)))).payload == b"x"


async def test_stream_that_grew_old_is_replaced_without_a_pause() -> None:
    """Only a lost replica is left alone for a while."""
    limits = ClientLimits(backoff_s=60)
    async with running_replica(echo, Limits(max_age_s=0.05)) as replica:
        async with running_client(replica, limits=limits) as client:
            first = client.replicas[0]
            await eventually(lambda: first.dead)
            reply = await client.call(Request("t", b"x", deadline=soon(5)))
            assert reply.payload == b"x"


async def test_replica_is_left_alone_after_failures_in_a_row_only() -> None:
    errors: list[Exception] = []

    async def fail(request: Request) -> Reply:
        raise errors.pop(0)

    limits = ClientLimits(eject_after=3, retry_burst=0, retry_ratio=0)
    async with running_replica(fail) as replica, running_client(replica, limits=limits) as client:
        (link,) = client.replicas
        for row in ([StageUnavailable("s")] * 2, [InvalidInput("i")], [StageUnavailable("s")] * 2):
            for error in row:
                errors.append(error)
                await client.call(Request("t", b""))
            assert link.ejected_until == 0
        errors.append(StageUnavailable("s"))
        await client.call(Request("t", b""))
        assert link.ejected_until > time.monotonic()
