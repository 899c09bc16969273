"""A link ends waits in time, tells why it went down, and notices a replica that is gone."""

import asyncio
import math
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from mesh.client import StageClient
from mesh.errors import DeadlineExceeded, MeshError, StageUnavailable
from mesh.grpc_types import Context
from mesh.item import Reply, Request
from mesh.lease import Lease
from mesh.link import Link
from mesh.server import Limits
from protos.mesh.v1.stage_pb2 import Envelope, Fragment, Grant, Item
from tests.conftest import STAGE, echo, eventually, running_replica

ROOT = Path(__file__).parents[2]

Serve = Callable[[AsyncIterator[Envelope], Context], Awaitable[None]]


@asynccontextmanager
async def running_link(address: str, *, wait: bool = True) -> AsyncIterator[Link]:
    """Run one link; with `wait`, until it takes items."""
    link = Link(address, f"/{STAGE}/Run", lambda: None)
    running = asyncio.create_task(link.run())
    try:
        if wait:
            await eventually(lambda: link.ready)
        yield link
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def strange_server(serve: Serve) -> AsyncIterator[str]:
    """Serve streams in a way that no replica of ours would."""
    server = grpc.aio.server()
    method = grpc.stream_stream_rpc_method_handler(
        serve, Envelope.FromString, Envelope.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(STAGE, {"Run": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def greet(stream: AsyncIterator[Envelope], context: Context) -> bool:
    """Grant what is asked for; tell whether it is the control stream."""
    first = await anext(stream)
    await context.write(Envelope(grant=Grant(items=100, bytes=10**6)))
    return first.hello.control


async def end_of(address: str) -> str:
    """Return why a link to an address goes down."""
    async with running_link(address, wait=False) as link:
        await eventually(lambda: link.dead)
        assert link.drained.is_set()
        with pytest.raises(StageUnavailable, match="closed"):
            await link.send(Request("t", b""), b"")
        return link.reason


async def outcome(call: Awaitable[Reply]) -> Reply | MeshError:
    try:
        return await call
    except MeshError as err:
        return err


async def test_every_item_is_given_up_at_its_own_deadline() -> None:
    cancelled: list[bytes] = []

    async def hang(request: Request) -> Reply:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(request.payload)
            raise
        return Reply()

    async with running_replica(hang) as replica, running_link(replica.address) as link:
        late: dict[bytes, float] = {}

        async def ask(left: float) -> None:
            payload = str(left).encode()
            with pytest.raises(DeadlineExceeded, match=replica.address):
                await link.send(Request("t", payload, deadline=time.monotonic() + left), b"")
            late[payload] = time.monotonic() - started - left

        started = time.monotonic()
        forever = asyncio.create_task(link.send(Request("t", b"forever"), b""))
        await asyncio.gather(*(ask(left) for left in (0.3, 0.1, 0.2, 0.05, -1)))
        assert all(-0.01 < by < 1 for payload, by in late.items() if payload != b"-1")
        await eventually(lambda: replica.stage.depth == 1)
        assert sorted(cancelled) == [b"-1", b"0.05", b"0.1", b"0.2", b"0.3"]
        assert not forever.done()
        forever.cancel()
        await eventually(lambda: replica.stage.depth == 0)


async def test_answer_after_the_deadline_disturbs_nobody() -> None:
    async with running_replica(echo) as replica, running_link(replica.address) as link:
        results = await asyncio.gather(*(
            outcome(link.send(Request("t", b"%d" % i, deadline=time.monotonic() + 1e-4), b""))
            for i in range(200)
        ))  # fmt: skip
        for index, result in enumerate(results):
            if isinstance(result, Reply):
                assert result.payload == b"%d" % index
            else:
                assert isinstance(result, DeadlineExceeded)
        assert (await link.send(Request("t", b"x"), b"")).payload == b"x"
        await eventually(lambda: replica.stage.depth == 0)


async def test_refused_hello_tells_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.link.WIRE_VERSION", 99)
    async with running_replica() as replica:
        assert "wire version 99 came, wanted 1" in await end_of(replica.address)


async def test_caller_is_told_why_no_replica_could_be_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mesh.link.WIRE_VERSION", 99)
    async with running_replica() as replica, StageClient(STAGE, replica.address) as client:
        with pytest.raises(StageUnavailable, match="wire version 99 came"):
            await client.wait_ready(0.3)
        with pytest.raises(StageUnavailable, match="run one release on both sides"):
            await client.call(Request("t", b"", deadline=time.monotonic() + 0.1))


async def test_server_without_our_service_is_a_reason() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    assert await end_of(f"127.0.0.1:{port}")
    await server.stop(None)


async def test_address_where_nobody_listens_is_a_reason() -> None:
    assert "connect" in await end_of("127.0.0.1:1")


async def test_server_that_closes_the_stream_at_once_is_a_reason() -> None:
    async def serve(stream: AsyncIterator[Envelope], context: Context) -> None:
        await anext(stream)

    async with strange_server(serve) as address:
        assert "closed the stream at once" in await end_of(address)


@pytest.mark.parametrize(
    ("envelope", "match"),
    [
        pytest.param(
            Envelope(fragment=Fragment(id=1, data=b"x", total_bytes=1)), "do not add up", id="size"
        ),
        pytest.param(
            Envelope(fragment=Fragment(id=1, data=b"\xff", total_bytes=1, last=True)),
            "no item",
            id="no_item",
        ),
    ],
)
async def test_broken_reply_ends_the_link_and_every_wait(envelope: Envelope, match: str) -> None:
    async def serve(stream: AsyncIterator[Envelope], context: Context) -> None:
        if not await greet(stream, context):
            await anext(stream)
            await context.write(envelope)
        await asyncio.Event().wait()

    async with strange_server(serve) as address, running_link(address) as link:
        calls = [outcome(link.send(Request("t", b""), b"")) for _ in range(3)]
        for result in await asyncio.gather(*calls):
            assert isinstance(result, StageUnavailable)
            assert match in str(result)
        assert link.dead


async def test_reply_to_nobody_is_passed_over() -> None:
    async def serve(stream: AsyncIterator[Envelope], context: Context) -> None:
        if not await greet(stream, context):
            sent = (await anext(stream)).items[0].id
            await context.write(Envelope(items=[Item(id=999), Item(id=sent), Item(id=sent)]))
        await asyncio.Event().wait()

    async with strange_server(serve) as address, running_link(address) as link:
        assert (await link.send(Request("t", b""), b"")).error() is None
        assert link.ready


async def test_stream_that_ends_in_the_middle_ends_every_wait_at_once() -> None:
    async def serve(stream: AsyncIterator[Envelope], context: Context) -> None:
        if await greet(stream, context):
            await asyncio.Event().wait()
        await anext(stream)

    async with strange_server(serve) as address, running_link(address) as link:
        with pytest.raises(StageUnavailable, match=f"lost {address}: it ended the stream"):
            await link.send(Request("t", b""), b"")


async def test_drained_link_takes_leased_items_and_ends_after_the_last_lease() -> None:
    async with running_replica(echo) as replica, running_link(replica.address) as link:
        first, second = (Lease(link, 1, lambda: None) for _ in range(2))
        draining = asyncio.create_task(replica.stage.drain(5))
        await eventually(lambda: not link.ready)
        for lease in (first, second):
            assert not link.dead
            assert (await link.send(Request("t", b"x"), b"")).payload == b"x"
            lease.release()
        await eventually(lambda: link.dead)
        await asyncio.wait_for(draining, 1)


async def test_room_is_what_the_replica_granted() -> None:
    async with running_replica(echo, Limits(max_items=2, max_bytes=1000)) as replica:
        async with running_link(replica.address) as link:
            assert link.has_room(10**9)  # alone, any size fits
            lease = Lease(link, 600, lambda: None)
            assert link.has_room(400)
            assert not link.has_room(401)
            more = Lease(link, 1, lambda: None)
            assert not link.has_room(1)
            more.release()
            lease.release()
            assert (link.items, link.bytes) == (0, 0)


async def test_report_of_the_queue_is_forgotten_when_it_is_old() -> None:
    answer = asyncio.Event()

    async def hold(request: Request) -> Reply:
        if request.payload == b"hold":
            await answer.wait()
        return Reply()

    async with running_replica(hold) as replica, running_link(replica.address) as busy:
        async with running_link(replica.address) as other:
            held = [asyncio.create_task(busy.send(Request("t", b"hold"), b"")) for _ in range(9)]
            await eventually(lambda: replica.stage.depth == 9)
            await other.send(Request("t", b""), b"")
            now = time.monotonic()
            assert other.load(now) >= 9
            assert other.load(now + 0.2) == other.items == 0
            answer.set()
            await asyncio.gather(*held)


@asynccontextmanager
async def replica_process() -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run a replica in a process of its own, which is killed in the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.mesh.replica_process",
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        yield process, line.decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _lost_after(number: signal.Signals) -> float:
    """Return the seconds until an item of a process that gets a signal is given up."""
    async with replica_process() as (process, address), running_link(address) as link:
        assert (await link.send(Request("t", b"x"), b"")).payload == b"x"
        call = asyncio.create_task(link.send(Request("hang", b""), b""))
        await link.send(Request("t", b"x"), b"")  # so the first one is there as well
        os.kill(process.pid, number)
        started = time.monotonic()
        with pytest.raises(StageUnavailable, match="lost"):
            await asyncio.wait_for(call, 30)
        return time.monotonic() - started


async def test_replica_that_is_killed_is_noticed_at_once() -> None:
    assert await _lost_after(signal.SIGKILL) < 4


@pytest.mark.slow
async def test_replica_that_hangs_is_noticed_within_ten_seconds() -> None:
    assert await _lost_after(signal.SIGSTOP) < 11


@pytest.mark.slow
async def test_idle_link_to_a_replica_that_hangs_is_not_chosen_any_more() -> None:
    async with replica_process() as (process, address), running_link(address) as link:
        os.kill(process.pid, signal.SIGSTOP)
        await eventually(lambda: link.dead, within_s=11)
        assert not link.ready
        assert link.items == 0


async def test_deadline_of_no_limit_starts_no_timer() -> None:
    async with running_replica(echo) as replica, running_link(replica.address) as link:
        await link.send(Request("t", b"x", deadline=math.inf), b"")
        assert link._sweeper is None
