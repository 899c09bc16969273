"""One gRPC server process: bind, health, reflection, signals, drain."""

import asyncio
import faulthandler
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import REGISTRY, start_http_server
from prometheus_client.registry import Collector

from mesh.errors import MeshError, SettingsError
from mesh.grpc_types import Methods
from mesh.health import NAME, Health
from mesh.link import CHANNEL_OPTIONS
from mesh.process import is_orphan, remove_orphaned, tune

log = logging.getLogger(__name__)

SERVER_OPTIONS = (
    *CHANNEL_OPTIONS,
    ("grpc.http2.ping_timeout_ms", 20_000),  # clients may be far away
    ("grpc.so_reuseport", 0),  # two servers on one port must be an error
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.keepalive_permit_without_calls", 1),
)


MAX_PORT = 65535
ORPHAN_S = 1.0
"""Longest time for what is under way in a process whose parent was killed."""


class Host:
    """A gRPC server with health and reflection.

    Args:
        bind: `host:port` or `unix:/path`.
        options: more options for gRPC, later ones win.
    """

    def __init__(self, bind: str, options: Iterable[tuple[str, int]] = ()) -> None:
        self.server = grpc.aio.server(
            options=tuple({**dict(SERVER_OPTIONS), **dict(options)}.items())
        )
        self._bind = bind
        self._health = Health()
        self._names = [NAME]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)

    def add(self, name: str, methods: Methods) -> None:
        """Add a service by its full name."""
        self._names.append(name)
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))

    def set_health(self, service: str, serving: bool) -> None:
        """Tell the health of a service; the empty name stands for the whole process."""
        self._health.set(service, serving)

    async def start(self) -> None:
        """Bind and serve; health is NOT_SERVING until told otherwise.

        Raises:
            SettingsError: the address cannot be bound.
        """
        self.set_health("", False)
        try:
            self._listen()
        except SettingsError:
            await self.server.start()  # without an address; else it cannot be stopped
            await self.abandon()
            raise
        await self.server.start()

    async def abandon(self) -> None:
        """Stop before anything was SERVING; a server that is not stopped complains at the end."""
        await self.server.stop(None)

    async def _finish(self, drain: Callable[[], Awaitable[None]], grace_s: float) -> None:
        await drain()
        await self.server.stop(grace_s)

    def _listen(self) -> None:
        reflection.enable_server_reflection([*self._names, reflection.SERVICE_NAME], self.server)
        _demand_address(self._bind)
        _remove_stale_socket(self._bind)
        try:
            self.server.add_insecure_port(self._bind)
        except RuntimeError as err:
            raise SettingsError(
                f"cannot listen at {self._bind}: is the port in use, or the address not of this "
                "machine? Stop the other program or choose another address"
            ) from err

    def leave(self) -> None:
        """Turn NOT_SERVING, for good."""
        self._health.leave()

    async def stop(self, drain: Callable[[], Awaitable[None]], grace_s: float) -> None:
        """Turn NOT_SERVING, finish what is under way, and stop.

        Args:
            drain: finishes the streams.
            grace_s: seconds for unary calls after that.
        """
        self.leave()
        log.info("draining")
        finishing = asyncio.create_task(self._finish(drain, grace_s))
        await asyncio.wait({finishing}, timeout=ORPHAN_S)
        while not finishing.done() and not is_orphan():
            await asyncio.wait({finishing}, timeout=ORPHAN_S)
        if finishing.done():
            finishing.result()
        else:  # the others of this mesh end in this moment, too
            finishing.cancel()
            await asyncio.gather(finishing, return_exceptions=True)
            await self.server.stop(None)
        if self._bind.startswith("unix:"):
            _unlink(self._bind.removeprefix("unix:"))
            remove_orphaned(Path(self._bind.removeprefix("unix:")).parent)
        log.info("stopped")


async def no_streams() -> None:
    """Drain a server that has no streams, for `Host.stop`."""


def run_process(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a service's main coroutine on uvloop; a known error ends with one line and status 2.

    A crash of native code writes the stack of every Python thread to stderr.
    """
    faulthandler.enable()
    tune()
    try:
        uvloop.run(main())
    except MeshError as err:
        log.error("cannot start", extra={"error": str(err)})
        raise SystemExit(2) from None


def serve_metrics(port: int, registry: Collector = REGISTRY) -> None:
    """Serve Prometheus metrics over HTTP; port 0: do not.

    Args:
        port: at every address of the machine.
        registry: collected in a thread of the scrape's own.

    Raises:
        SettingsError: the port is in use.
    """
    if not port:
        return
    try:
        start_http_server(port, registry=registry)
    except OSError as err:
        raise SettingsError(
            f"cannot serve metrics at port {port}: {err.strerror}; choose another with "
            "GATEWAY_METRICS_PORT (a stage's variable has its own name), or 0 for none"
        ) from err


def _demand_address(bind: str) -> None:
    """Refuse what gRPC would read as another port: it takes 65537 for 1."""
    port = bind.rpartition(":")[2]
    if bind.startswith("unix:") or (port.isascii() and port.isdigit() and int(port) <= MAX_PORT):
        return
    raise SettingsError(
        f"cannot listen at {bind}: wanted host:port, with a port up to {MAX_PORT}, or unix:/path"
    )


def _remove_stale_socket(bind: str) -> None:
    """Remove the socket file that a killed process left, and nothing else."""
    if not bind.startswith("unix:"):
        return
    path = bind.removeprefix("unix:")
    if not os.path.exists(path):
        return
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise SettingsError(f"cannot listen at {bind}: a file that is no socket is there")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            _unlink(path)
            return
        except OSError as err:
            raise SettingsError(f"cannot listen at {bind}: {err.strerror}") from err
    raise SettingsError(f"cannot listen at {bind}: another process does")


def _unlink(path: str) -> None:
    if os.path.exists(path):
        os.unlink(path)
