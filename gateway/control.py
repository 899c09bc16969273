"""`python -m gateway.control`: what is single in a gateway: its metrics and its traces."""

import asyncio

from prometheus_client import REGISTRY

from gateway.idempotency import Calls
from gateway.routing.controller import RouteController, route_handlers
from gateway.routing.store import RouteStore
from gateway.scrape import Scrape
from gateway.settings import GatewaySettings
from gateway.trace_store import TraceStore, trace_handler, trace_service
from mesh import log
from mesh.cores import workers
from mesh.directory import Directory
from mesh.errors import SettingsError
from mesh.host import Host, no_streams, run_process, serve_metrics
from mesh.layers import errors, logging_failures, stack
from mesh.oip.service import NAME as OIP
from mesh.oip.settings import Settings, SettingsOwner, apply
from mesh.process import wait_for_signal
from mesh.settings import TelemetrySettings, load
from mesh.unary import unary_method

NAME = "mesh.v1.Mesh"
KEPT = "settings.json"
"""File beside the sockets."""


async def main() -> None:
    """Keep traces and serve metrics until a signal comes.

    Data workers go on without it: it may die and start anew, and the traces it had are lost.
    """
    log.configure("gateway-control", "INFO")
    settings = load(GatewaySettings)
    log.configure("gateway-control", settings.log_level)
    stored = settings.trace_store and not load(TelemetrySettings).exports
    store = TraceStore() if stored else None
    host = Host(settings.control, (("grpc.max_receive_message_length", -1),))
    if store is not None:
        host.add(*trace_service(store))
    data_workers = range(workers("gateway", settings.workers))
    insides = {str(index): settings.inside(index) for index in data_workers}
    kept = RouteStore(settings.state)
    routes = RouteController(kept, list(insides.values()), settings.routes)
    shared = _shared(settings, routes)
    stages = [Directory(targets, name) for name, targets in settings.targets()]
    loop = asyncio.get_running_loop()
    calls = {"GetTrace": trace_handler(store), **route_handlers(routes), **Calls().handlers()}
    host.add(NAME, {
        name: unary_method(stack(handler, [logging_failures(f"{NAME}/{name}"), errors]), name)
        for name, handler in calls.items()
    })  # fmt: skip
    host.add(OIP, {
        name: unary_method(stack(handler, [logging_failures(f"{OIP}/{name}"), errors]), name)
        for name, handler in shared.handlers().items()
    })  # fmt: skip
    await host.start()
    try:
        serve_metrics(settings.metrics_port, Scrape(REGISTRY, stages, loop, workers=insides))
    except SettingsError:
        await host.abandon()
        raise
    host.set_health("", True)
    watches = [asyncio.create_task(stage.watch()) for stage in stages]
    watches.append(asyncio.create_task(routes.run()))
    await wait_for_signal()
    for watch in watches:
        watch.cancel()
    await host.stop(no_streams, 1.0)
    kept.close()


def _shared(settings: GatewaySettings, routes: RouteController) -> SettingsOwner:
    """Return what owns settings of the protocol: they outlive this process, not the gateway."""
    path = settings.sockets / KEPT
    routes.settings = Settings.from_json(path.read_text() if path.exists() else "")

    async def changed(now: Settings) -> None:
        routes.settings = now
        apply(now, settings.log_level)
        path.write_text(now.to_json())
        await routes.push()

    apply(routes.settings, settings.log_level)
    return SettingsOwner(
        routes.settings, changed, settings.log_level, load(TelemetrySettings).ratio,
        system_memory=settings.client_memory,
    )  # fmt: skip


if __name__ == "__main__":
    run_process(main)
