"""Models come and go under load, as people bring them: copied into the repository."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.e2e.conftest import Mesh, start_mesh, stop_mesh
from tests.infer_svc.graphs import write_model
from tests.infer_svc.test_models import DYNAMIC, put, times


@pytest.fixture
def models(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    root.mkdir()
    write_model(root, "m", times(1), DYNAMIC)
    (root / "m/pipeline.yaml").write_text("model: m\n")
    return root


@pytest.fixture
def mesh(models: Path, tmp_path: Path) -> Iterator[Mesh]:
    running = start_mesh(
        tmp_path / "log", "--workers", "gateway=2", "infer=2", models=models, INFER_CPU_THREADS="1"
    )
    yield running
    assert stop_mesh(running) == 0
    assert "Traceback" not in running.log.read_text()


@dataclass
class Load:
    """Clients that ask all the time."""

    answers: list[tuple[str, float]] = field(default_factory=list)
    """Versions as they were told, and by how much they multiplied."""
    errors: list[str] = field(default_factory=list)

    async def until(self, version: str, limit_s: float = 20) -> None:
        """Wait until all replicas answer with a version."""
        end = time.monotonic() + limit_s
        while {told for told, _ in self.answers[-100:]} != {version}:
            assert time.monotonic() < end, (version, self.answers[-1:], self.errors[-1:])
            await asyncio.sleep(0.02)


@asynccontextmanager
async def loading(mesh: Mesh, clients: int = 8) -> AsyncIterator[Load]:
    load = Load()
    done = asyncio.Event()
    rows = InferInput("x", [1, 4], "FP32")
    rows.set_data_from_numpy(np.ones((1, 4), np.float32))

    async def ask() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]  # a connection has one data worker
        async with InferenceServerClient(mesh.gateway, channel_args=options) as client:
            while not done.is_set():
                try:
                    result = await client.infer("m", [rows], client_timeout=10)
                except InferenceServerException as err:
                    load.errors.append(str(err))
                    continue
                version = result.get_response().model_version
                load.answers.append((version, float(result.as_numpy("y")[0, 0])))

    asking = [asyncio.create_task(ask()) for _ in range(clients)]
    yield load
    done.set()
    await asyncio.gather(*asking)
    assert load.errors == []
    assert all(float(version) == factor for version, factor in load.answers)


@pytest.mark.slow
async def test_no_call_fails_while_versions_are_copied_in_and_removed(
    mesh: Mesh, models: Path
) -> None:
    async with loading(mesh) as load:
        await load.until("1")
        for version in range(2, 12):
            await asyncio.to_thread(put, models, version)
            await load.until(str(version))
            await asyncio.to_thread(shutil.rmtree, models / f"m/{version - 1}")
        await asyncio.to_thread(put, models, 12, b"garbage")
        await asyncio.sleep(3)
        assert load.answers[-1][0] == "11"
    status = mesh.cli("model", "status", "m").stdout
    assert "cannot load" in status


async def test_model_is_loaded_and_unloaded_by_command_on_all_replicas(
    mesh: Mesh, models: Path
) -> None:
    put(models, 2)
    assert "2  READY" in mesh.cli("model", "load", "m").stdout
    async with loading(mesh, 4) as load:
        await load.until("2")
        await asyncio.sleep(0.3)
    assert {version for version, _ in load.answers} == {"2"}
    assert mesh.cli("model", "unload", "m").returncode == 0
    for _ in range(8):  # whichever data worker is asked
        async with InferenceServerClient(
            mesh.gateway, channel_args=[("grpc.use_local_subchannel_pool", 1)]
        ) as client:
            assert not await client.is_model_ready("m")
    assert "READY" in mesh.cli("model", "load", "m").stdout
    assert mesh.cli("models").stdout.startswith("m ")


async def test_pipeline_that_is_copied_in_is_served(mesh: Mesh, models: Path) -> None:
    write_model(models, "other", times(5), DYNAMIC)
    (models / "other/pipeline.yaml").write_text("model: other\n")
    end = time.monotonic() + 20
    while "other " not in (shown := mesh.cli("models").stdout) or "refused" in shown:
        assert time.monotonic() < end, shown
        await asyncio.sleep(0.2)
    shutil.rmtree(models / "other")
    while "other" in (shown := mesh.cli("models").stdout):
        assert time.monotonic() < end + 20, shown
        await asyncio.sleep(0.2)
