"""`python -m infer_svc`: one replica of the infer stage."""

import asyncio

from prometheus_client import REGISTRY

from infer_svc.agent import Agent
from infer_svc.backends.cuda import device
from infer_svc.backends.machine import Machine
from infer_svc.budget import MEBIBYTE, Budget
from infer_svc.build.builds import Builds
from infer_svc.catalog import ModelCatalog
from infer_svc.cuda_memory import open_cuda
from infer_svc.families import InferMetrics
from infer_svc.faults import parse_faults
from infer_svc.service import InferHandler
from infer_svc.settings import InferSettings
from infer_svc.watch import watch
from mesh import log, telemetry
from mesh.arena import Lender
from mesh.host import run_process
from mesh.item import Handler
from mesh.oip.regions import Regions
from mesh.oip.service import NAME as OIP
from mesh.oip.service import oip_methods
from mesh.oip.settings import Settings, SettingsOwner, apply
from mesh.server import Limits
from mesh.settings import TelemetrySettings, load
from mesh.stage import Stage

LOST = 70
"""Exit status of a process whose GPU is lost: its supervisor starts it anew. EX_SOFTWARE of
sysexits.h."""


async def main() -> None:
    """Wire settings, models and server together, and serve."""
    log.configure("infer", "INFO")
    settings = load(InferSettings)
    log.configure("infer", settings.log_level)
    tracing = telemetry.configure("infer", load(TelemetrySettings))
    lender = Lender(settings.arena_mbytes)
    builds = Builds(
        settings.engine_cache,
        limit_s=settings.build_limit_s,
        on_serving_gpu=settings.build_on_serving_gpu,
    )
    machine = Machine(
        settings.cpu_threads, parse_faults(settings.faults), builds, settings.cuda_graphs,
        settings.kernels,
    )  # fmt: skip
    metrics = InferMetrics(REGISTRY)
    handler = InferHandler(
        settings.models, machine, tracing.sampled, lender, metrics, settings.preloaded
    )
    metrics.watch_gpus(handler.gpus)
    handler.models.budget = Budget(settings.gpu_mbytes * MEBIBYTE, _used)
    agent = Agent(handler.models, settings.models, settings.model_control)
    handler.choose = lambda folders: agent.chosen(folders, settings.loaded)
    limits = Limits(settings.max_items, settings.max_mbytes * 1024**2, settings.max_age_s)
    stage = Stage("mesh.v1.Infer", settings, handler, handler.describe, tracing, limits, lender)
    catalog = ModelCatalog(handler.models, agent, metrics)
    regions = Regions(open_cuda)
    stage.host.add(
        OIP, oip_methods(catalog, handler, tracing.tracer, _set_here(settings, regions), regions)
    )
    lost = asyncio.Event()
    handler.on_lost = lambda _: lost.set()
    handler.on_health = stage.host.set_health
    handler.on_change = stage.announce
    tasks = (
        asyncio.create_task(
            watch(
                handler.pools, handler.generators, handler.lose, settings.hang_s, settings.probe_s
            )
        ),
        asyncio.create_task(_end_when(lost, stage, lender)),
    )

    async def prepare() -> None:
        await handler.load()
        following.append(asyncio.create_task(agent.run()))

    following: list[asyncio.Task[None]] = []
    await stage.serve(prepare)
    for task in following:
        task.cancel()
    await handler.stop_loading()
    await asyncio.to_thread(handler.close)  # a lane that hangs is still seen, and ends the process
    agent.close()
    for task in tasks:
        task.cancel()
    lender.close()
    tracing.shutdown()


def _used(gpu: int) -> int:
    """Return the bytes in use on a GPU."""
    free, whole = device(gpu).memory()
    return whole - free


def _set_here(settings: InferSettings, regions: Regions) -> dict[str, Handler]:
    """Return the handlers of settings and shared memory; they end with the process."""

    async def changed(now: Settings) -> None:
        regions.take(now.regions, now.cuda)
        apply(now, settings.log_level)

    owner = SettingsOwner(
        Settings(), changed, settings.log_level, load(TelemetrySettings).ratio,
        system_memory=settings.client_memory, cuda_memory=settings.client_memory,
    )  # fmt: skip
    return owner.handlers()


async def _end_when(lost: asyncio.Event, stage: Stage, lender: Lender) -> None:
    await lost.wait()
    lender.remove()  # not closed: what is done still reads there for a moment
    await stage.abandon(LOST)


if __name__ == "__main__":
    run_process(main)
