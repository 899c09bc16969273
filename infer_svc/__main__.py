"""`python -m infer_svc`: one replica of the infer stage."""

from prometheus_client import REGISTRY

from infer_svc.families import InferMetrics
from infer_svc.service import InferHandler
from infer_svc.settings import InferSettings
from mesh import log, telemetry
from mesh.arena import Lender
from mesh.host import run_process
from mesh.server import Limits
from mesh.settings import TelemetrySettings, load
from mesh.stage import Stage


async def main() -> None:
    """Wire settings, models and server together, and serve."""
    log.configure("infer", "INFO")
    settings = load(InferSettings)
    log.configure("infer", settings.log_level)
    tracing = telemetry.configure("infer", load(TelemetrySettings))
    lender = Lender(settings.arena_mbytes)
    metrics = InferMetrics(REGISTRY)
    handler = InferHandler(settings.models, settings.cpu_threads, tracing.sampled, lender, metrics)
    limits = Limits(settings.max_items, settings.max_mbytes * 1024**2, settings.max_age_s)
    stage = Stage("mesh.v1.Infer", settings, handler, handler.describe, tracing, limits, lender)
    await stage.serve(handler.load)
    handler.close()
    lender.close()
    tracing.shutdown()


if __name__ == "__main__":
    run_process(main)
