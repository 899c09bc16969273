"""What the processes of the three stages have in common: their methods and their life cycle."""

import asyncio
import faulthandler
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import NoReturn

import grpc
from prometheus_client import REGISTRY, CollectorRegistry

import mesh
from mesh.arena import Lender
from mesh.families import metrics_method
from mesh.grpc_types import Method
from mesh.host import Host, serve_metrics
from mesh.item import Handler, Reply, Request
from mesh.layers import errors, logging_failures, stack, standard_layers
from mesh.process import wait_for_signal
from mesh.server import Limits, StageServer
from mesh.settings import ServiceSettings
from mesh.telemetry import Tracing
from mesh.unary import unary_method
from protos.mesh.v1.stage_pb2 import (
    DescribeRequest,
    DescribeResponse,
    Envelope,
    Target,
    TargetSpec,
)

FLUSH_S = 0.1
"""For answers that there are, and for the word to go elsewhere, to reach the wire."""

Describe = Callable[[Iterable[Target]], Iterable[TargetSpec]]


class Stage:
    """One replica of a stage as a gRPC service.

    Args:
        name: full name of the service, as `mesh.v1.Infer`.
        settings: where it listens and how long it drains.
        handler: does the work of one item.
        describe: tells what targets take and make; in a thread, as it may load files for seconds.
        tracing: of the process.
        limits: bounds of the replica.
        lender: of shared memory for the clients' items.
        registry: metrics of the process, for `Metrics` and the settings' `metrics_port`.
    """

    def __init__(
        self,
        name: str,
        settings: ServiceSettings,
        handler: Handler,
        describe: Describe,
        tracing: Tracing,
        limits: Limits,
        lender: Lender | None = None,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._name = name
        self._registry = registry
        self._settings = settings
        self._describe = describe
        layers = standard_layers(tracing.tracer, f"{name}/Run")
        self._server = StageServer(stack(handler, layers), limits, lender)
        self.host = Host(settings.bind)
        self.host.add(name, {
            "Run": grpc.stream_stream_rpc_method_handler(
                self._server.run, Envelope.FromString, Envelope.SerializeToString
            ),
            "Describe": self._unary("Describe", self._on_describe),
            "Metrics": metrics_method(name, registry),
        })  # fmt: skip

    def announce(self) -> None:
        """Tell all clients that there is something new to describe."""
        self._server.announce()

    async def serve(self, prepare: Callable[[], Awaitable[None]] | None = None) -> None:
        """Listen, prepare, turn SERVING, and work until a signal comes.

        Args:
            prepare: load and warm up; nothing is SERVING before it returns.
        """
        await self.host.start()
        try:
            serve_metrics(self._settings.metrics_port, self._registry)
            if prepare is not None:
                await prepare()
        except BaseException:
            await self.host.abandon()
            raise
        self._server.open()
        for service in ("", self._name):
            self.host.set_health(service, True)
        await wait_for_signal()
        await self.host.stop(lambda: self._server.drain(self._settings.drain_s), 1.0)

    async def abandon(self, status: int) -> NoReturn:
        """Turn NOT_SERVING, send clients elsewhere, and end without any cleanup.

        Items that are not answered yet are lost with their streams, and done elsewhere.

        Args:
            status: of the process.
        """
        self.host.leave()
        await self._server.drain(FLUSH_S)
        faulthandler.dump_traceback()
        os._exit(status)  # destructors of a lost GPU's objects hang, or end in a signal

    def _unary(self, name: str, handler: Handler) -> Method:
        layers = [logging_failures(f"{self._name}/{name}"), errors]
        return unary_method(stack(handler, layers), name)

    async def _on_describe(self, request: Request) -> Reply:
        targets = DescribeRequest.FromString(request.payload).targets
        response = DescribeResponse(
            wire_version=mesh.WIRE_VERSION,
            service=self._name,
            version=mesh.__version__,
            targets=await asyncio.to_thread(self._describe, targets),
        )
        return Reply(response.SerializeToString())
