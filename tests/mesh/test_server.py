import asyncio
import time

import grpc
import pytest

from mesh.item import Reply, Request
from mesh.outbox import MAX_ITEM_BYTES
from mesh.server import Limits
from protos.mesh.v1.stage_pb2 import Envelope, Fragment, Hello, Item
from tests.conftest import STAGE, echo, eventually, running_client, running_replica


async def test_drained_replica_finishes_its_items_and_gets_no_new_ones() -> None:
    async def slow(request: Request) -> Reply:
        await asyncio.sleep(0.2)
        return Reply(request.payload)

    async with running_replica(slow) as old, running_replica(echo) as new:
        async with running_client(old, new) as client:
            calls = [asyncio.create_task(client.call(Request("t", b"x"))) for _ in range(50)]
            await asyncio.sleep(0.05)
            assert old.stage.depth > 0
            await old.stage.drain(5)
            assert old.stage.depth == 0
            assert all(reply.payload == b"x" for reply in await asyncio.gather(*calls))
            assert [link.address for link in client.replicas] == [new.address]
            assert client.retries == 0


async def test_old_stream_is_replaced_without_losing_an_item() -> None:
    async def slow(request: Request) -> Reply:
        await asyncio.sleep(0.01)
        return Reply(request.payload)

    async with running_replica(slow, Limits(max_age_s=0.1)) as replica:
        async with running_client(replica) as client:
            first = client.replicas[0]
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                reply = await client.call(Request("t", b"x"))
                assert reply.payload == b"x"
            assert first not in client.replicas
            assert client.retries == 0
            await eventually(lambda: first.dead)


async def test_stream_that_waits_for_the_replica_to_load_gets_its_grant_then() -> None:
    async with running_replica() as replica:
        replica.stage._open.clear()
        from mesh.client import StageClient

        async with StageClient(STAGE, replica.address) as client:
            await asyncio.sleep(0.1)
            assert not client.replicas
            replica.stage.open()
            await client.wait_ready(2)


async def test_client_that_vanishes_cancels_its_items() -> None:
    ended = asyncio.Event()

    async def hang(request: Request) -> Reply:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return Reply()

    async with running_replica(hang) as replica:
        async with running_client(replica) as client:
            call = asyncio.create_task(client.call(Request("t", b"")))
            await eventually(lambda: replica.stage.depth == 1)
        await asyncio.wait_for(ended.wait(), 2)
        await eventually(lambda: replica.stage.depth == 0)
        await asyncio.gather(call, return_exceptions=True)


async def test_stage_knows_those_of_a_client_apart() -> None:
    async def tell(request: Request) -> Reply:
        return Reply(f"{request.client} {request.caller}".encode())

    async with running_replica(tell) as replica, running_client(replica) as client:
        callers = ["", "ann", "bob", "ann"]
        asked = [client.call(Request("t", b"", caller=caller)) for caller in callers]
        told = [reply.payload.decode().split(" ") for reply in await asyncio.gather(*asked)]
        assert len({key for key, _ in told}) == 1
        nobody, ann, bob, again = (caller for _, caller in told)
        assert nobody == ""
        assert ann == again != bob
        assert ann.startswith(f"{told[0][0]}/")


@pytest.mark.parametrize(
    ("first", "match"),
    [
        pytest.param(Envelope(items=[Item(id=1)]), "hello", id="no_hello"),
        pytest.param(
            Envelope(hello=Hello(session="s", wire_version=99)), "wire version", id="version"
        ),
        pytest.param(
            Envelope(hello=Hello(session="s", wire_version=1, control=True)),
            "no data stream",
            id="control_alone",
        ),
    ],
)
async def test_stream_that_begins_wrong_is_refused_with_the_reason(
    first: Envelope, match: str
) -> None:
    async with running_replica() as replica:
        assert match in await _refusal(replica.address, [first])


@pytest.mark.parametrize(
    "fragments",
    [
        pytest.param([Fragment(id=1, data=b"x", total_bytes=MAX_ITEM_BYTES + 1)], id="too_large"),
        pytest.param([Fragment(id=1, data=b"x", total_bytes=0)], id="no_size"),
        pytest.param([Fragment(id=1, data=b"xyz", total_bytes=2, last=True)], id="longer"),
        pytest.param([Fragment(id=1, data=b"x", total_bytes=2, last=True)], id="shorter"),
        pytest.param([Fragment(id=1, data=b"xy", total_bytes=2)], id="never_last"),
    ],
)
async def test_fragments_that_do_not_add_up_end_the_stream_not_the_server(
    fragments: list[Fragment],
) -> None:
    hello = Envelope(hello=Hello(session="s", wire_version=1))
    async with running_replica() as replica, running_client(replica) as client:
        sent = [hello, *(Envelope(fragment=fragment) for fragment in fragments)]
        assert "item" in await _refusal(replica.address, sent)
        assert (await client.call(Request("t", b"x"))).payload == b"x"


async def _refusal(address: str, envelopes: list[Envelope]) -> str:
    """Return the text with which a server ends a stream of these envelopes."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(
            f"/{STAGE}/Run", Envelope.SerializeToString, Envelope.FromString
        )()
        for envelope in envelopes:
            await call.write(envelope)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        return caught.value.details() or ""
