"""Addresses come from a list or from DNS; what is no address is refused by name."""

import asyncio
import socket
from typing import Any

import pytest

from mesh.client import ClientLimits, StageClient
from mesh.errors import SettingsError, StageUnavailable
from mesh.item import Request
from mesh.resolver import resolve
from tests.conftest import STAGE, echo, eventually, running_replica


class Dns:
    """Answers look-ups of the running loop: addresses by name, or the error of one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: dict[str, list[str] | OSError] = {}
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self._look_up)

    async def _look_up(self, host: str, port: str, **_: Any) -> list[tuple[Any, ...]]:
        found = self.names.get(host, socket.gaierror(socket.EAI_NONAME, "unknown"))
        if isinstance(found, OSError):
            raise found
        kind = socket.SOCK_STREAM
        return [(socket.AF_INET, kind, 6, "", (address, int(port))) for address in found]


@pytest.fixture
async def dns(monkeypatch: pytest.MonkeyPatch) -> Dns:
    return Dns(monkeypatch)


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        pytest.param("a:1", {"a:1"}, id="one"),
        pytest.param(" a:1, b:2 ,,a:1", {"a:1", "b:2"}, id="list"),
        pytest.param("[::1]:80", {"[::1]:80"}, id="ipv6"),
        pytest.param("unix:/run/x.sock,a:1", {"unix:/run/x.sock", "a:1"}, id="unix"),
    ],
)
async def test_addresses_of_a_list(targets: str, found: set[str]) -> None:
    assert await resolve(targets) == found


@pytest.mark.parametrize(
    ("targets", "match"),
    [
        pytest.param("", "no address in ''", id="empty"),
        pytest.param(" , ", "no address in", id="only_commas"),
        pytest.param("a", "address 'a' came, wanted host:port", id="no_port"),
        pytest.param("8011", "address '8011' came", id="only_a_port"),
        pytest.param(":8011", "address ':8011' came", id="no_host"),
        pytest.param("a:http", "address 'a:http' came", id="port_no_number"),
        pytest.param("a:1,b", "address 'b' came", id="second"),
        pytest.param("dns:///a", "wanted dns:///name:port", id="dns_no_port"),
        pytest.param("dns:///:80", "wanted dns:///name:port", id="dns_no_name"),
        pytest.param(f"dns:///{'a' * 70}:80", "wanted dns:///name:port", id="dns_label_too_long"),
        pytest.param("dns:///a..b:80", "wanted dns:///name:port", id="dns_empty_label"),
    ],
)
async def test_what_is_no_address_is_refused_by_name(targets: str, match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        await resolve(targets)


async def test_real_name_is_looked_up() -> None:
    found = await resolve("dns:///localhost:8012")
    assert found <= {"127.0.0.1:8012", "[::1]:8012"}
    assert found


async def test_name_stands_for_every_address_it_has(dns: Dns) -> None:
    dns.names["infer"] = ["10.0.0.1", "10.0.0.2", "10.0.0.1", "fd00::1"]
    assert await resolve("dns:///infer:80,b:2") == {
        "10.0.0.1:80", "10.0.0.2:80", "[fd00::1]:80", "b:2"
    }  # fmt: skip


async def test_unknown_name_has_no_replicas_and_is_no_error(dns: Dns) -> None:
    assert await resolve("dns:///infer:80") == set()


async def test_name_server_that_does_not_answer_is_unavailable(dns: Dns) -> None:
    dns.names["infer"] = socket.gaierror(socket.EAI_AGAIN, "try again")
    with pytest.raises(StageUnavailable, match="'infer'"):
        await resolve("dns:///infer:80")


async def test_replica_that_dns_tells_later_gets_items(dns: Dns) -> None:
    limits = ClientLimits(resolve_every_s=0.02)
    async with running_replica(echo) as replica:
        port = replica.address.rpartition(":")[2]
        async with StageClient(STAGE, f"dns:///infer:{port}", limits=limits) as client:
            assert not client.replicas
            dns.names["infer"] = ["127.0.0.1"]
            await eventually(lambda: len(client.replicas) == 1)
            assert (await client.call(Request("t", b"x"))).payload == b"x"


async def test_replica_that_dns_tells_no_more_finishes_its_items_and_gets_no_new_ones(
    dns: Dns,
) -> None:
    answer = asyncio.Event()

    async def hold(request: Request) -> Any:
        await answer.wait()
        return await echo(request)

    limits = ClientLimits(resolve_every_s=0.02)
    dns.names["infer"] = ["127.0.0.1"]
    async with running_replica(hold) as replica:
        port = replica.address.rpartition(":")[2]
        async with StageClient(STAGE, f"dns:///infer:{port}", limits=limits) as client:
            await client.wait_ready(2)
            link = client.replicas[0]
            call = asyncio.create_task(client.call(Request("t", b"x")))
            await eventually(lambda: replica.stage.depth == 1)
            dns.names.clear()
            await eventually(lambda: not client.replicas)
            answer.set()
            assert (await call).payload == b"x"
            await eventually(lambda: link.dead)
            assert client.retries == 0


async def test_outage_of_the_name_server_takes_no_replica_away(dns: Dns) -> None:
    limits = ClientLimits(resolve_every_s=0.01)
    dns.names["infer"] = ["127.0.0.1"]
    async with running_replica(echo) as replica:
        port = replica.address.rpartition(":")[2]
        async with StageClient(STAGE, f"dns:///infer:{port}", limits=limits) as client:
            await client.wait_ready(2)
            link = client.replicas[0]
            looked_up = 0

            async def fail(*_: Any, **__: Any) -> Any:
                nonlocal looked_up
                looked_up += 1
                raise socket.gaierror(socket.EAI_AGAIN, "try again")

            asyncio.get_running_loop().getaddrinfo = fail  # type: ignore[method-assign]
            await eventually(lambda: looked_up >= 3)
            assert client.replicas == [link]
            assert (await client.call(Request("t", b"x"))).payload == b"x"
