"""One replica of the postprocess stage."""

from mesh import log, telemetry
from mesh.op_host import OpHost
from mesh.server import Limits
from mesh.settings import TelemetrySettings, load
from mesh.stage import Stage
from postprocess_svc.ops import OPS
from postprocess_svc.settings import PostprocessSettings


async def main() -> None:
    """Wire settings, ops and server together, and serve."""
    log.configure("postprocess", "INFO")
    settings = load(PostprocessSettings)
    log.configure("postprocess", settings.log_level)
    tracing = telemetry.configure("postprocess", load(TelemetrySettings))
    limits = Limits(max_items=settings.max_items, max_age_s=settings.max_age_s)
    with OpHost(OPS, settings.models, settings.threads) as ops:
        stage = Stage("mesh.v1.Postprocess", settings, ops, ops.describe, tracing, limits)
        await stage.serve()
    tracing.shutdown()
