"""Services die under load, and no call fails."""

import asyncio
import fcntl
import signal
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from tests.conftest import eventually
from tests.e2e.conftest import Mesh, start_mesh, stop_mesh
from tests.e2e.test_answers import DIGIT

CALLS = 1000


def classify(channel: grpc.aio.Channel) -> Any:
    """Return the method `Classify` of the mesh at the other end."""
    stub: Any = mesh_pb2_grpc.MeshStub(channel)
    return stub.Classify


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh with two replicas of each stage."""
    replicas = [f"{stage}=2" for stage in ("preprocess", "infer", "postprocess")]
    running = start_mesh(tmp_path_factory.mktemp("chaos") / "log", "--workers", *replicas)
    yield running
    assert stop_mesh(running) == 0


@pytest.mark.slow
@pytest.mark.parametrize("module", ["preprocess_svc", "infer_svc", "postprocess_svc"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
async def test_no_call_fails_when_a_replica_dies_midway_and_comes_back(
    doubled: Mesh, module: str, number: signal.Signals
) -> None:
    image = DIGIT.read_bytes()
    answers = 0

    async with grpc.aio.insecure_channel(doubled.gateway) as channel:
        call = classify(channel)

        async def ask() -> str:
            nonlocal answers
            response = await call(mesh_pb2.ClassifyRequest(images=[image]), timeout=60)
            answers += 1
            return str(response.results[0].categories[0].label)

        calls = [asyncio.create_task(ask()) for _ in range(CALLS)]
        await eventually(lambda: answers > CALLS // 5, 60)
        victim = doubled.services(module)[0]
        victim.send_signal(number)
        assert answers < CALLS, "all were answered before the replica died"
        labels = await asyncio.gather(*calls)
        assert labels == ["7"] * CALLS
        assert answers == CALLS
        await eventually(lambda: not victim.is_running(), 30)
        await eventually(lambda: len(doubled.services(module)) == 2, 20)
        labels = await asyncio.gather(*(ask() for _ in range(50)))
        assert labels == ["7"] * 50


@pytest.mark.slow
async def test_calls_wait_for_a_stage_that_has_no_replica_left(doubled: Mesh) -> None:
    """Both replicas of a stage die at once: calls wait for the restart, within their deadline."""
    image = DIGIT.read_bytes()
    async with grpc.aio.insecure_channel(doubled.gateway) as channel:
        call = classify(channel)
        request = mesh_pb2.ClassifyRequest(images=[image])
        for victim in doubled.services("postprocess_svc"):
            victim.kill()
        responses = await asyncio.gather(*(call(request, timeout=30) for _ in range(20)))
        assert {r.results[0].categories[0].label for r in responses} == {"7"}


def left_behind() -> list[str]:
    """Return files of shared memory whose owner is gone: nobody holds their lock."""
    found = []
    made = [path for path in Path("/dev/shm").glob("trtmesh-*") if path.suffix != ".new"]
    for path in made:
        with suppress(FileNotFoundError), path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            found.append(path.name)
    return found


async def ask_until(mesh: Mesh, enough: Callable[[], bool]) -> int:
    """Keep 32 clients asking until it is enough; return how many answers came, all right."""
    image = DIGIT.read_bytes()
    answers = 0
    end = asyncio.get_running_loop().time() + 90
    async with grpc.aio.insecure_channel(mesh.gateway) as channel:
        call = classify(channel)

        async def client() -> None:
            nonlocal answers
            while not enough():
                assert asyncio.get_running_loop().time() < end, mesh.log.read_text()[-4000:]
                response = await call(mesh_pb2.ClassifyRequest(images=[image]), timeout=60)
                assert response.results[0].categories[0].label == "7"
                answers += 1

        await asyncio.gather(*(client() for _ in range(32)))
    return answers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ("device=0.0007", "an injected fault at 'device'"),
        ("stall=0.0007:3600", "has worked on one batch for more than 1 s"),
    ],
    ids=["lost", "hangs"],
)
async def test_no_call_fails_when_gpus_are_lost_and_their_processes_start_anew(
    tmp_path: Path, faults: str, reason: str
) -> None:
    mesh = start_mesh(
        tmp_path / "log", "--workers", "infer=2", INFER_FAULTS=faults, INFER_HANG_S="1"
    )
    try:
        ended = "ended with status 70; starts again"
        answers = await ask_until(mesh, lambda: mesh.log.read_text().count(ended) >= 2)
        assert answers > 100
        assert reason in mesh.log.read_text()
    finally:
        assert stop_mesh(mesh) == 0
    assert left_behind() == []


@pytest.mark.slow
async def test_no_call_fails_when_one_batch_in_fifty_does(tmp_path: Path) -> None:
    mesh = start_mesh(
        tmp_path / "log", INFER_FAULTS="h2d=0.005,enqueue=0.01,sync=0.005,context=0.1"
    )
    try:
        asked = 0

        def enough() -> bool:
            nonlocal asked
            asked += 1
            return asked > 5000

        assert await ask_until(mesh, enough) >= 4900
        with urllib.request.urlopen(mesh.metrics, timeout=5) as response:
            scrape = response.read().decode()
        wanted = 'model="digits-classify"'
        rungs = [line for line in scrape.splitlines() if "mesh_infer_recovery_steps" in line]
        assert any('step="retry"' in line and wanted in line for line in rungs), rungs
        assert not any('step="blamed"' in line or 'step="lost"' in line for line in rungs), rungs
        failures = [
            line for line in scrape.splitlines()
            if line.startswith("nv_inference_request_failure") and not line.endswith(" 0.0")
        ]  # fmt: skip
        assert failures == []
    finally:
        assert stop_mesh(mesh) == 0


@pytest.mark.slow
async def test_thousands_of_calls_at_once_are_all_answered(mesh: Mesh) -> None:
    """More than gRPC lets wait for a busy server by itself."""
    image = DIGIT.read_bytes()
    async with grpc.aio.insecure_channel(mesh.gateway) as channel:
        call = classify(channel)
        request = mesh_pb2.ClassifyRequest(images=[image])
        ended = await asyncio.gather(
            *(call(request, timeout=60) for _ in range(4000)), return_exceptions=True
        )
    errors = Counter(
        error.code().name if isinstance(error, grpc.RpcError) else repr(error)
        for error in ended
        if isinstance(error, BaseException)
    )
    assert errors == {}
