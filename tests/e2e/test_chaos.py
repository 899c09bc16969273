"""Services die under load, and no call fails."""

import asyncio
import signal
from collections.abc import Iterator

import grpc
import pytest

from protos.mesh.v1 import mesh_pb2
from tests.conftest import eventually
from tests.e2e.conftest import Mesh, start_mesh, stop_mesh
from tests.e2e.test_answers import DIGIT

CALLS = 1000


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh with two replicas of each stage."""
    replicas = [f"{stage}=2" for stage in ("preprocess", "infer", "postprocess")]
    running = start_mesh(tmp_path_factory.mktemp("chaos") / "log", "--replicas", *replicas)
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
        call = channel.unary_unary(
            "/mesh.v1.Mesh/Classify",
            request_serializer=mesh_pb2.ClassifyRequest.SerializeToString,
            response_deserializer=mesh_pb2.ClassifyResponse.FromString,
        )

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
        call = channel.unary_unary(
            "/mesh.v1.Mesh/Classify",
            request_serializer=mesh_pb2.ClassifyRequest.SerializeToString,
            response_deserializer=mesh_pb2.ClassifyResponse.FromString,
        )
        request = mesh_pb2.ClassifyRequest(images=[image])
        for victim in doubled.services("postprocess_svc"):
            victim.kill()
        responses = await asyncio.gather(*(call(request, timeout=30) for _ in range(20)))
        assert {r.results[0].categories[0].label for r in responses} == {"7"}
