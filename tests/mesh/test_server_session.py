"""Sessions that overtake, repeat or cross each other leave nothing behind in the server."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, NoReturn, cast

import grpc
import pytest

from mesh.grpc_types import Context
from mesh.item import Reply, Request
from mesh.layers import errors
from mesh.server import Limits, StageServer
from protos.mesh.v1.stage_pb2 import Envelope, Hello, Item
from tests.conftest import echo, eventually, running_client, running_replica


class Peer:
    """The other end of one stream, under the test's control step by step."""

    def __init__(self) -> None:
        self.received: list[Envelope] = []
        self.refusal = ""
        self._sent: asyncio.Queue[Envelope | None] = asyncio.Queue()

    def send(self, *envelopes: Envelope) -> None:
        for envelope in envelopes:
            self._sent.put_nowait(envelope)

    def close(self) -> None:
        self._sent.put_nowait(None)

    async def stream(self) -> AsyncIterator[Envelope]:
        while (envelope := await self._sent.get()) is not None:
            yield envelope

    async def write(self, envelope: Envelope) -> None:
        self.received.append(envelope)

    async def abort(self, code: grpc.StatusCode, details: str, *_: Any) -> NoReturn:
        self.refusal = details
        raise grpc.aio.AbortError(details)

    def item_ids(self) -> list[int]:
        return [item.id for envelope in self.received for item in envelope.items]


def hello(session: str = "s", *, control: bool = False) -> Envelope:
    return Envelope(hello=Hello(session=session, control=control, wire_version=1))


def items(*ids: int) -> Envelope:
    return Envelope(items=[Item(id=key, target="t") for key in ids])


def serve(stage: StageServer, peer: Peer) -> "asyncio.Task[None]":
    return asyncio.create_task(stage.run(peer.stream(), cast(Context, peer)))


async def opened(
    stage: StageServer, *greetings: Envelope
) -> list[tuple[Peer, "asyncio.Task[None]"]]:
    """Open one stream for each greeting and wait for its grant."""
    streams = []
    for greeting in greetings:
        peer = Peer()
        streams.append((peer, serve(stage, peer)))
        peer.send(greeting)
        await eventually(lambda peer=peer: bool(peer.received or peer.refusal))  # type: ignore[misc]
    return streams


async def ended(tasks: Iterable["asyncio.Task[None]"]) -> list[BaseException | None]:
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)


def open_stage(handler: Any = echo, limits: Limits = Limits()) -> StageServer:
    stage = StageServer(errors(handler), limits)
    stage.open()
    return stage


async def test_cancel_that_comes_with_its_item_leaves_no_item_behind() -> None:
    """The control stream is a connection of its own: both may be read in one turn of the loop."""
    stage = open_stage()
    (data, data_task), (control, _) = await opened(stage, hello(), hello(control=True))
    data.send(items(1))
    control.send(Envelope(cancel=[1]))
    data.send(items(2))
    await eventually(lambda: 2 in data.item_ids())
    assert stage.depth == 0
    data.close()
    await ended([data_task])


async def test_cancel_before_its_item_is_no_error() -> None:
    stage = open_stage()
    (data, _), (control, control_task) = await opened(stage, hello(), hello(control=True))
    control.send(Envelope(cancel=[1, 7]))
    await asyncio.sleep(0)
    data.send(items(1))
    await eventually(lambda: data.item_ids() == [1])
    assert not control_task.done()


async def test_second_data_stream_of_a_session_is_refused_and_the_first_works() -> None:
    stage = open_stage()
    (first, task), (second, _) = await opened(stage, hello(), hello())
    assert "session 's'" in second.refusal
    first.send(items(1))
    await eventually(lambda: first.item_ids() == [1])
    first.close()
    assert await ended([task]) == [None]
    ((again, _),) = await opened(stage, hello())
    assert not again.refusal


async def test_id_that_is_in_flight_already_ends_the_stream() -> None:
    async def hang(request: Request) -> Reply:
        await asyncio.Event().wait()
        return Reply()

    stage = open_stage(hang)
    ((data, task),) = await opened(stage, hello())
    data.send(items(1), items(1))
    await ended([task])
    assert "item 1" in data.refusal
    await eventually(lambda: stage.depth == 0)


async def test_id_may_be_used_again_after_its_answer() -> None:
    stage = open_stage()
    ((data, _),) = await opened(stage, hello())
    for count in range(1, 4):
        data.send(items(5))
        await eventually(lambda count=count: len(data.item_ids()) == count)  # type: ignore[misc]


async def test_items_of_a_stream_that_is_refused_are_cancelled() -> None:
    cancelled = []

    async def hang(request: Request) -> Reply:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(request)
        return Reply()

    stage = open_stage(hang)
    ((data, task),) = await opened(stage, hello())
    broken = items(1, 2)
    broken.fragment.id = 3
    data.send(broken)
    await ended([task])
    assert "fragments" in data.refusal
    await eventually(lambda: stage.depth == 0)
    assert len(cancelled) == 2


async def test_client_that_closes_its_side_still_gets_every_answer() -> None:
    answer = asyncio.Event()

    async def hold(request: Request) -> Reply:
        await answer.wait()
        return Reply()

    stage = open_stage(hold)
    ((data, task),) = await opened(stage, hello())
    data.send(items(1, 2, 3))
    data.close()
    await eventually(lambda: stage.depth == 3)
    answer.set()
    assert await ended([task]) == [None]
    assert sorted(data.item_ids()) == [1, 2, 3]


async def test_fair_share_of_the_credit_is_divided_by_the_clients_that_are_active() -> None:
    async with running_replica(echo, Limits(max_items=100, max_bytes=1000)) as replica:
        async with running_client(replica) as one, running_client(replica) as two:

            def granted() -> list[int]:
                return [link._max_items for client in (one, two) for link in client.replicas]

            assert granted() == [100, 100]
            end = asyncio.get_running_loop().time() + 5
            while granted() != [50, 50]:
                assert asyncio.get_running_loop().time() < end
                await asyncio.gather(*(c.call(Request("t", b"")) for c in (one, two)))


async def test_drain_gives_up_after_its_grace() -> None:
    async def hang(request: Request) -> Reply:
        await asyncio.Event().wait()
        return Reply()

    async with running_replica(hang) as replica, running_client(replica) as client:
        call = asyncio.create_task(client.call(Request("t", b"")))
        await eventually(lambda: replica.stage.depth == 1)
        await asyncio.wait_for(replica.stage.drain(0.05), 2)
        assert replica.stage.depth == 1
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


async def test_replica_that_is_going_away_takes_no_new_session() -> None:
    stage = open_stage()
    await stage.drain(0)
    ((late, task),) = await opened(stage, hello())
    assert "going away" in late.refusal
    (error,) = await ended([task])
    assert isinstance(error, grpc.aio.AbortError)


async def test_stream_that_says_nothing_is_refused() -> None:
    stage = open_stage()
    peer = Peer()
    peer.close()
    await ended([serve(stage, peer)])
    assert "first message" in peer.refusal


@pytest.mark.parametrize("count", [1, 5], ids=str)
async def test_items_above_the_limit_come_back_at_once_as_full(count: int) -> None:
    answer = asyncio.Event()

    async def hold(request: Request) -> Reply:
        await answer.wait()
        return Reply()

    stage = open_stage(hold, Limits(max_items=2))
    ((data, _),) = await opened(stage, hello())
    data.send(items(*range(1, 3 + count)))
    await eventually(lambda: len(data.item_ids()) == count)
    statuses = [item.status.kind for envelope in data.received for item in envelope.items]
    assert statuses == ["ReplicaFull"] * count
    answer.set()
    await eventually(lambda: stage.depth == 0)
