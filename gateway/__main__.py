"""`python -m gateway`: the public service."""

import asyncio
from contextlib import AsyncExitStack

from prometheus_client import REGISTRY

from gateway.late_trace import LateTraces
from gateway.metrics import watch_stages
from gateway.pipeline import Stages
from gateway.runner import PipelineRunner
from gateway.scrape import Scrape
from gateway.service import NAME, MeshService
from gateway.settings import GatewaySettings
from gateway.trace_store import StoreExporter, TraceStore, trace_service
from mesh import log, telemetry
from mesh.client import ClientLimits, StageClient
from mesh.errors import SettingsError
from mesh.host import Host, run_process, serve_metrics
from mesh.server import Limits
from mesh.settings import TelemetrySettings, load


async def main() -> None:
    """Wire settings, stage clients, pipelines and server together, and serve."""
    log.configure("gateway", "INFO")
    settings = load(GatewaySettings)
    log.configure("gateway", settings.log_level)
    otel = load(TelemetrySettings)
    store = TraceStore() if settings.trace_store and not otel.exports else None
    tracing = telemetry.configure("gateway", otel, StoreExporter(store) if store else None)
    waiting = ClientLimits(max_waiting=settings.max_waiting)
    async with AsyncExitStack() as stack:
        stages = Stages(*[
            await stack.enter_async_context(
                StageClient(name, targets, limits=waiting, tracer=tracing.tracer)
            )
            for name, targets in (
                ("mesh.v1.Preprocess", settings.preprocess),
                ("mesh.v1.Infer", settings.infer),
                ("mesh.v1.Postprocess", settings.postprocess),
            )
        ])  # fmt: skip
        runner = PipelineRunner(settings.models, stages)
        kept = otel.exports or store is not None
        slow_s = settings.slow_ms / 1e3
        late = LateTraces(tracing, slow_s) if slow_s and kept and not otel.off else None
        limits = Limits(settings.max_stream_items)
        target_s = settings.target_ms / 1e3
        service = MeshService(runner, tracing.tracer, limits, store, target_s, late)
        size = settings.max_request_mbytes * 1024**2
        host = Host(settings.bind, (
            ("grpc.max_receive_message_length", size), ("grpc.max_send_message_length", size),
        ))  # fmt: skip
        host.add(NAME, service.methods())
        if store is not None:
            host.add(*trace_service(store))
        watch_stages(stages)
        scrape = Scrape(REGISTRY, stages.all(), asyncio.get_running_loop())
        await host.start()
        try:
            serve_metrics(settings.metrics_port, scrape)
        except SettingsError:
            await host.abandon()
            raise
        watch = asyncio.create_task(runner.watch(host))
        signalled = asyncio.create_task(host.wait_for_signal())
        # The watch never ends by itself: its error must end the process, not leave a stale health.
        await asyncio.wait({watch, signalled}, return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            watch.result()
        watch.cancel()
        await host.stop(lambda: service.streams.drain(settings.drain_s), settings.drain_s)
    tracing.shutdown()


if __name__ == "__main__":
    run_process(main)
