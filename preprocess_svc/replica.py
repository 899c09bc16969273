"""One replica of the preprocess stage."""

import cv2

from mesh import log, telemetry
from mesh.op_host import OpHost
from mesh.process import hide
from mesh.server import Limits
from mesh.settings import TelemetrySettings, load
from mesh.stage import Stage
from preprocess_svc.ops import OPS
from preprocess_svc.ops.image import silence_opencv
from preprocess_svc.settings import PreprocessSettings


async def main() -> None:
    """Wire settings, ops and server together, and serve."""
    log.configure("preprocess", "INFO")
    settings = load(PreprocessSettings)
    log.configure("preprocess", settings.log_level)
    hide("torch")
    cv2.setNumThreads(1)
    silence_opencv()
    tracing = telemetry.configure("preprocess", load(TelemetrySettings))
    limits = Limits(max_items=settings.max_items, max_age_s=settings.max_age_s)
    with OpHost(OPS, settings.models, settings.threads) as ops:
        stage = Stage("mesh.v1.Preprocess", settings, ops, ops.describe, tracing, limits)
        await stage.serve()
    tracing.shutdown()
