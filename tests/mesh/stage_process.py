"""`python -m tests.mesh.stage_process`: a stage in a process of its own, for tests to signal."""

import asyncio
from pathlib import Path

from pydantic_settings import SettingsConfigDict

from mesh import log, telemetry
from mesh.host import run_process
from mesh.item import Reply, Request
from mesh.server import Limits
from mesh.settings import ServiceSettings, TelemetrySettings, load
from mesh.stage import Stage
from protos.mesh.v1.stage_pb2 import TargetSpec


class FakeSettings(ServiceSettings):
    """Settings from variables that begin with `FAKE_`."""

    model_config = SettingsConfigDict(env_prefix="FAKE_", frozen=True)


async def hold(request: Request) -> Reply:
    """Answer once the file that the payload names exists; an empty payload at once."""
    while request.payload and not Path(request.payload.decode()).exists():
        await asyncio.sleep(0.005)
    return Reply(b"done")


async def _main() -> None:
    log.configure("fake", "INFO")
    settings = load(FakeSettings)
    tracing = telemetry.configure("fake", load(TelemetrySettings))
    describe = lambda targets: [TargetSpec(name=target.name) for target in targets]  # noqa: E731
    await Stage("mesh.v1.Infer", settings, hold, describe, tracing, Limits()).serve()


if __name__ == "__main__":
    run_process(_main)
