"""HTTP at a port that siblings share."""

import asyncio
import socket
from typing import Any

import aiohttp
import pytest

from gateway.rest.server import HttpServer
from mesh.errors import SettingsError
from mesh.port import free_ports


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer after a moment, with the path."""
    await asyncio.sleep(0.1)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


async def test_what_is_under_way_is_answered_before_it_stops(address: str) -> None:
    server = HttpServer(app, address)
    await server.start()
    async with aiohttp.ClientSession() as session:

        async def ask() -> str:
            async with session.get(f"http://{address}/x") as answer:
                return str(await answer.text())

        asking = asyncio.create_task(ask())
        await asyncio.sleep(0.05)
        await server.stop(5)
        assert await asking == "/x"
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", int(address[10:]))):
        pass


async def test_siblings_share_a_port(address: str) -> None:
    servers = [HttpServer(app, address) for _ in range(2)]
    for server in servers:
        await server.start()
    for server in servers:
        await server.stop(1)


@pytest.mark.parametrize("bind", ["nonsense", "127.0.0.1:99999", "203.0.113.7:80", "no such:80"])
async def test_address_that_cannot_be_bound_is_told(bind: str) -> None:
    with pytest.raises(SettingsError, match=f"cannot listen at {bind}.*GATEWAY_HTTP"):
        await HttpServer(app, bind).start()


async def test_server_that_never_started_stops() -> None:
    await HttpServer(app, "127.0.0.1:0").stop(1)
