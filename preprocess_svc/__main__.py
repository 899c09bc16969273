"""`python -m preprocess_svc`: one replica of the preprocess stage."""

import os

import cv2

from mesh import log, telemetry
from mesh.host import run_process
from mesh.op_host import OpHost
from mesh.server import Limits
from mesh.settings import TelemetrySettings, load
from mesh.stage import Stage
from preprocess_svc.ops import OPS
from preprocess_svc.ops.image import silence_opencv
from preprocess_svc.settings import PreprocessSettings

LIBRARIES = {
    # Processes are the replicas; a pool of threads in each would only fight over the cores.
    "RAYON_NUM_THREADS": "1",
    # Tokenizers need no PyTorch, so nobody has to be told that it is not there.
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
"""Variables that libraries read when they are first used; what is set already stays."""


async def main() -> None:
    """Wire settings, ops and server together, and serve."""
    log.configure("preprocess", "INFO")
    settings = load(PreprocessSettings)
    log.configure("preprocess", settings.log_level)
    for name, value in LIBRARIES.items():
        os.environ.setdefault(name, value)  # noqa: TID251 for libraries
    cv2.setNumThreads(1)
    silence_opencv()
    tracing = telemetry.configure("preprocess", load(TelemetrySettings))
    limits = Limits(max_items=settings.max_items, max_age_s=settings.max_age_s)
    with OpHost(OPS, settings.models, settings.threads) as ops:
        stage = Stage("mesh.v1.Preprocess", settings, ops, ops.describe, tracing, limits)
        await stage.serve()
    tracing.shutdown()


if __name__ == "__main__":
    run_process(main)
