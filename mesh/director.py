"""A parent of worker processes of one stage, at the address where their service is expected."""

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

import mesh
from mesh.crew import Child, Crew
from mesh.errors import SettingsError
from mesh.host import MAX_PORT, Host
from mesh.item import Reply, Request
from mesh.layers import errors
from mesh.port import UNIX
from mesh.process import wait_for_signal
from mesh.settings import ServiceSettings
from mesh.unary import unary_method
from protos.mesh.v1.stage_pb2 import DescribeResponse

STEP = 100
"""Ports between one worker and the next, so that stages at 8011 and 8013 do not meet."""
HEALTH_EVERY_S = 0.25

log = logging.getLogger(__name__)


class Director:
    """Keeps the workers of a stage running and tells gateways where they are.

    A worker is a replica of its own to every gateway, at its own port: `STEP`, 2 · `STEP`, …
    above the port of this process, which does no work.

    Args:
        name: full name of the service, as `mesh.v1.Preprocess`.
        module: of the workers.
        settings: of the service, as this process got them.
        count: of the workers.

    Raises:
        SettingsError: there are no such ports above the one in the settings.
    """

    def __init__(self, name: str, module: str, settings: ServiceSettings, count: int) -> None:
        self._name = name
        self._settings = settings
        self._binds = worker_binds(settings.bind, count)
        self._crew = Crew(
            [self._child(module, index, bind) for index, bind in enumerate(self._binds)],
            log.warning,
        )
        self._host = Host(settings.bind)
        self._host.add(name, {"Describe": unary_method(errors(self._describe), "Describe")})

    async def run(self) -> None:
        """Run the workers until a signal comes, then let them finish what they have.

        Raises:
            SettingsError: the address cannot be bound, or a worker cannot start as configured.
        """
        await self._host.start()
        self._crew.start()
        watch = asyncio.create_task(self._watch())
        signalled = asyncio.create_task(wait_for_signal())
        ends: set[asyncio.Future[Any]] = {watch, signalled, self._crew.failed}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in (watch, signalled):
            task.cancel()
        await self._host.stop(lambda: self._crew.stop(self._settings.drain_s + 5), 1.0)
        if self._crew.failed.done():
            raise SettingsError(self._crew.failed.result())

    def _child(self, module: str, index: int, bind: str) -> Child:
        prefix = self._settings.model_config.get("env_prefix", "")
        metrics = self._settings.metrics_port
        own = {
            f"{prefix}BIND": bind,
            f"{prefix}WORKERS": "1",
            f"{prefix}METRICS_PORT": str(metrics and metrics + STEP * (index + 1)),
        }
        environment = {**os.environ, **own}  # noqa: TID251 passed on
        return Child(f"{prefix.lower().rstrip('_')}-{index}", module, environment)

    async def _describe(self, _: Request) -> Reply:
        response = DescribeResponse(
            wire_version=mesh.WIRE_VERSION,
            service=self._name,
            version=mesh.__version__,
            worker_ports=[int(bind.rpartition(":")[2]) for bind in self._binds],
        )
        return Reply(response.SerializeToString())

    async def _watch(self) -> None:
        """Turn SERVING once every worker is; later on while any is, as gateways see each."""
        enough = len(self._binds)
        while True:
            serving = sum(await asyncio.gather(*map(_is_serving, self._local())))
            if serving >= enough:
                enough = 1
            for service in ("", self._name):
                self._host.set_health(service, serving >= enough)
            await asyncio.sleep(HEALTH_EVERY_S)

    def _local(self) -> Sequence[str]:
        """Return the workers' addresses as this machine reaches them."""
        wild = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
        parts = [bind.rpartition(":") for bind in self._binds]
        return [f"{wild.get(host, host)}:{port}" for host, _, port in parts]


def worker_binds(bind: str, count: int) -> list[str]:
    """Return where the workers of a parent at an address listen.

    Raises:
        SettingsError: it is a socket file, or there are not so many ports above.
    """
    host, _, port = bind.rpartition(":")
    if bind.startswith(UNIX):
        raise SettingsError(
            f"{count} workers cannot share {bind}; give each a socket, and WORKERS=1"
        )
    if not port.isdigit() or int(port) + STEP * count > MAX_PORT:
        raise SettingsError(
            f"cannot have {count} workers at {bind}: wanted host:port with room up to port "
            f"{MAX_PORT} for one worker every {STEP} ports"
        )
    return [f"{host}:{int(port) + STEP * (index + 1)}" for index in range(count)]


async def _is_serving(address: str) -> bool:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
