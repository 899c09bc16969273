"""HTTP in the event loop of a data worker, at a port that its siblings share."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from mesh.errors import SettingsError
from mesh.host import MAX_PORT

logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its start and end are told by others

KEEP_ALIVE_S = 75
"""Longer than load balancers keep idle connections: who closes first should be they."""
BACKLOG = 2048


class HttpServer:
    """An application at an address.

    Args:
        app: an ASGI application.
        bind: `host:port`.
    """

    def __init__(self, app: Any, bind: str) -> None:
        self._bind = bind
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, lifespan="off",
            timeout_keep_alive=KEEP_ALIVE_S, http="httptools", ws="none",
        )  # fmt: skip
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            SettingsError: the address cannot be bound.
        """
        listening = _listen(self._bind)
        self._serving = asyncio.create_task(self._server.serve([listening]))

    async def stop(self, grace_s: float) -> None:
        """Answer what is under way, and stop.

        Args:
            grace_s: longest time for that.
        """
        if self._serving is None:
            return
        self._server.should_exit = True
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_s))
        await asyncio.gather(self._serving, return_exceptions=True)


class _Server(uvicorn.Server):
    """Leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(bind: str) -> socket.socket:
    host, _, port = bind.rpartition(":")
    if not (port.isdecimal() and int(port) <= MAX_PORT):  # a larger one would wrap around
        raise _refusal(bind, ValueError(f"wanted host:port, with a port up to {MAX_PORT}"))
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
    except OSError as err:
        raise _refusal(bind, err) from err
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # among siblings
        made.bind(address)
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError as err:
        made.close()
        raise _refusal(bind, err) from err
    return made


def _refusal(bind: str, error: Exception) -> SettingsError:
    return SettingsError(
        f"cannot listen at {bind}: {error}; choose another address with GATEWAY_HTTP, or none with "
        "an empty one"
    )
