"""`python -m gateway.control`: what is single in a gateway: its metrics and its traces."""

import asyncio

from prometheus_client import REGISTRY

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
from mesh.process import wait_for_signal
from mesh.settings import TelemetrySettings, load
from mesh.unary import unary_method

NAME = "mesh.v1.Mesh"


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
    stages = [Directory(targets, name) for name, targets in settings.targets()]
    loop = asyncio.get_running_loop()
    calls = {"GetTrace": trace_handler(store), **route_handlers(routes)}
    host.add(NAME, {
        name: unary_method(stack(handler, [logging_failures(f"{NAME}/{name}"), errors]), name)
        for name, handler in calls.items()
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


if __name__ == "__main__":
    run_process(main)
