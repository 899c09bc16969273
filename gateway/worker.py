"""`python -m gateway.worker`: a data worker, that runs pipelines and keeps nothing."""

import asyncio
import time
from contextlib import AsyncExitStack
from functools import partial

import grpc
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from prometheus_client import REGISTRY

from gateway.forward import forward, forwarded_traces
from gateway.late_trace import LateTraces
from gateway.metrics import watch_stages
from gateway.pipeline import Stages
from gateway.rest.app import make_app
from gateway.rest.server import HttpServer
from gateway.routing.figures import pack_figures
from gateway.routing.routes import from_proto
from gateway.runner import PipelineRunner
from gateway.scrape import WORKER
from gateway.service import CONTROL, INSIDE, NAME, MeshService
from gateway.settings import GatewaySettings
from mesh import log, telemetry
from mesh.client import ClientLimits, StageClient
from mesh.cores import workers
from mesh.errors import MeshError, StageUnavailable
from mesh.families import metrics_method
from mesh.grpc_types import Method
from mesh.host import Host, no_streams, run_process
from mesh.item import Reply, Request
from mesh.layers import errors, logging_failures
from mesh.layers import stack as layered
from mesh.oip.regions import Regions
from mesh.oip.service import NAME as OIP
from mesh.oip.service import SETTINGS
from mesh.oip.settings import Settings, apply
from mesh.process import wait_for_signal
from mesh.server import Limits
from mesh.settings import TelemetrySettings, load
from mesh.unary import ask, unary_method
from protos.mesh.v1.routes_pb2 import Snapshot

WARM_S = 2.0
"""How long a data worker waits for its stages before it takes connections. Its siblings take them
meanwhile; where no stage is there, callers are told so after this."""
REFRESH_S = 10.0
MEBIBYTE = 1024**2
PENDING = (
    ("grpc.server.max_pending_requests", 5_000),
    ("grpc.server.max_pending_requests_hard_limit", 10_000),
)
"""Calls that a worker which is busy has not looked at. Beyond the first, gRPC ends calls by chance,
beyond the second all, with CANCELLED: nobody would know why. Its own bounds are 1,000 and 3,000."""


async def main() -> None:
    """Wire settings, stage clients, pipelines and server together, and serve."""
    log.configure("gateway", "INFO")
    settings = load(GatewaySettings)
    log.configure("gateway", settings.log_level)
    otel = load(TelemetrySettings)
    stored = settings.trace_store and not otel.exports
    exporter = OTLPSpanExporter(settings.control, insecure=True, timeout=2) if stored else None
    tracing = telemetry.configure("gateway", otel, exporter)
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(grpc.aio.insecure_channel(settings.control))
        stages = await _stages(stack, settings, tracing)
        runner = PipelineRunner(settings.models, stages, tracing.tracer)
        slow_s = settings.slow_ms / 1e3
        kept = otel.exports or stored
        late = LateTraces(tracing, slow_s) if slow_s and kept and not otel.off else None
        limits = Limits(settings.max_stream_items)
        target_s = settings.target_ms / 1e3
        controlled = {name: forward(control, f"{NAME}/{name}") for name in (*CONTROL, *INSIDE)}
        service = MeshService(runner, tracing.tracer, limits, controlled, target_s, late)
        host = _public(settings)
        host.add(NAME, service.methods())
        regions = Regions()
        set_by_control = {name: forward(control, f"{OIP}/{name}") for name in SETTINGS}
        protocol = service.oip(partial(_refresh_all, settings), set_by_control, regions)
        host.add(OIP, protocol.methods())
        size = settings.max_request_mbytes * MEBIBYTE
        http = HttpServer(make_app(service, protocol, size), settings.http)
        if stored:
            host.add(*forwarded_traces(control))
        watch_stages(stages)
        inside = Host(settings.inside(settings.worker))
        inside.add(WORKER, {
            "Metrics": metrics_method(WORKER, REGISTRY), "Refresh": _refresh(runner),
            "Take": _take(runner, regions, settings),
        })  # fmt: skip
        await inside.start()
        await _warm_up(runner)
        await host.start()
        if settings.http:
            await http.start()
        await _serve(runner, host)
        await http.stop(settings.drain_s)
        await host.stop(lambda: service.streams.drain(settings.drain_s), settings.drain_s)
        await inside.stop(no_streams, 0.0)
    tracing.shutdown()


async def _stages(
    stack: AsyncExitStack, settings: GatewaySettings, tracing: telemetry.Tracing
) -> Stages:
    waiting = ClientLimits(max_waiting=settings.max_waiting)
    return Stages(*[
        await stack.enter_async_context(
            StageClient(name, targets, limits=waiting, tracer=tracing.tracer)
        )
        for name, targets in settings.targets()
    ])  # fmt: skip


def _public(settings: GatewaySettings) -> Host:
    size = settings.max_request_mbytes * MEBIBYTE
    return Host(settings.bind, (
        ("grpc.max_receive_message_length", size), ("grpc.max_send_message_length", size),
        ("grpc.so_reuseport", 1),  # among siblings: who starts them holds the port
        *PENDING,
    ))  # fmt: skip


async def _warm_up(runner: PipelineRunner) -> None:
    """Wait until each pipeline is served or refused: whoever connects then is answered."""
    end = time.monotonic() + WARM_S
    while time.monotonic() < end:
        await runner.check()
        if all(_is_settled(runner, name) for name in runner.names()):
            return
        await asyncio.sleep(0.02)


def _is_settled(runner: PipelineRunner, name: str) -> bool:
    try:
        runner.find(name)
    except StageUnavailable:
        return False
    except MeshError:
        return True
    return True


def _refresh(runner: PipelineRunner) -> Method:
    """Return a method that returns once this process knows what the stages serve now."""

    async def answer(_: Request) -> Reply:
        await runner.refresh()
        return Reply()

    return unary_method(layered(answer, [logging_failures("Refresh"), errors]), "Refresh")


def _take(runner: PipelineRunner, regions: Regions, own: GatewaySettings) -> Method:
    """Return a method that takes routes and settings, and answers with what was counted."""

    async def answer(request: Request) -> Reply:
        snapshot = Snapshot.FromString(request.payload)
        runner.router.take([from_proto(route) for route in snapshot.routes])
        settings = Settings.from_json(snapshot.settings)
        regions.take(settings.regions, settings.cuda)
        apply(settings, own.log_level)
        return Reply(pack_figures(runner.router.drain()).SerializeToString())

    return unary_method(layered(answer, [logging_failures("Take"), errors]), "Take")


async def _refresh_all(settings: GatewaySettings) -> None:
    """Let every data worker look at what the stages serve; one that is away does when it starts."""
    insides = map(settings.inside, range(workers("gateway", settings.workers)))
    await asyncio.gather(
        *(ask(inside, f"{WORKER}/Refresh", b"", REFRESH_S) for inside in insides),
        return_exceptions=True,
    )


async def _serve(runner: PipelineRunner, host: Host) -> None:
    """Watch pipelines until a signal comes."""
    watch = asyncio.create_task(runner.watch(host))
    signalled = asyncio.create_task(wait_for_signal())
    # The watch never ends by itself: its error must end the process, not leave a stale health.
    await asyncio.wait({watch, signalled}, return_when=asyncio.FIRST_COMPLETED)
    if watch.done():
        watch.result()
    watch.cancel()


if __name__ == "__main__":
    run_process(main)
