"""An address is asked for the workers behind it, and each of them is a replica."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mesh import directory
from mesh.client import ClientLimits, StageClient
from mesh.directory import Directory
from mesh.errors import SettingsError
from mesh.host import Host
from mesh.item import Handler, Reply, Request
from mesh.layers import errors
from mesh.unary import unary_method
from protos.mesh.v1.stage_pb2 import DescribeResponse
from tests.conftest import STAGE, eventually, running_replica
from tests.e2e.conftest import free_port


@asynccontextmanager
async def described(
    handler: Handler, address: str | None = None, method: str = "Describe"
) -> AsyncIterator[str]:
    """Serve `Describe` of a stage, and return where."""
    address = address or f"127.0.0.1:{free_port()}"
    host = Host(address)
    host.add(STAGE, {method: unary_method(errors(handler), method)})
    await host.start()
    try:
        yield address
    finally:
        await host.server.stop(None)


def telling(*ports: int) -> Handler:
    async def handler(_: Request) -> Reply:
        return Reply(DescribeResponse(worker_ports=ports).SerializeToString())

    return handler


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "ASK_S", 0.3)


async def test_parent_stands_for_its_workers_and_a_plain_replica_for_itself() -> None:
    async with described(telling(7001, 7002)) as parent, described(telling()) as plain:
        found = Directory(f"{parent},{plain},unix:/x.sock", STAGE)
        wanted = {"127.0.0.1:7001", "127.0.0.1:7002", plain, "unix:/x.sock"}
        assert await found.find() == wanted
        assert found.addresses == sorted(wanted)


async def test_server_that_does_not_describe_itself_stands_for_itself() -> None:
    async with described(telling(7001), method="Other") as address:
        assert await Directory(address, STAGE).find() == {address}


async def test_address_that_nobody_answers_stands_for_itself_until_somebody_does() -> None:
    address = f"127.0.0.1:{free_port()}"
    found = Directory(address, STAGE)
    assert await found.find() == {address}
    async with described(telling(7001), address):
        assert await found.find() == {"127.0.0.1:7001"}


async def test_what_a_parent_said_is_kept_while_it_is_away_and_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with described(telling(7001)) as address:
        found = Directory(address, STAGE)
        assert await found.find() == {"127.0.0.1:7001"}
        monkeypatch.setattr(directory, "ASK_AGAIN_S", 0.0)
    assert await found.find() == {"127.0.0.1:7001"}
    async with described(telling(7002, 7003), address):
        assert await found.find() == {"127.0.0.1:7002", "127.0.0.1:7003"}
    async with described(telling(), address):
        assert await found.find() == {address}


async def test_parent_is_not_asked_each_time() -> None:
    asked = 0

    async def handler(_: Request) -> Reply:
        nonlocal asked
        asked += 1
        return Reply(b"")

    async with described(handler) as address:
        found = Directory(address, STAGE)
        for _ in range(3):
            await found.find()
    assert asked == 1


async def test_address_that_hangs_holds_up_nobody_for_long() -> None:
    async def handler(_: Request) -> Reply:
        await asyncio.Event().wait()
        return Reply(b"")

    async with described(handler) as hanging, described(telling(7001)) as parent:
        async with asyncio.timeout(3):
            found = await Directory(f"{hanging},{parent}", STAGE).find()
        assert found == {hanging, "127.0.0.1:7001"}


async def test_wrong_targets_are_told() -> None:
    with pytest.raises(SettingsError, match="no address"):
        await Directory("", STAGE).find()


async def test_client_balances_over_the_workers_of_a_parent() -> None:
    async with running_replica() as one, running_replica() as two:
        ports = [int(replica.address.rpartition(":")[2]) for replica in (one, two)]
        async with described(telling(*ports)) as parent:
            async with StageClient(STAGE, parent, limits=ClientLimits(backoff_s=0.02)) as client:
                await eventually(lambda: len(client.replicas) == 2)
                assert client.addresses == sorted([one.address, two.address])
