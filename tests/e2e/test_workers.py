"""Data workers share the gateway's port, and any process may die under load."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import psutil
import pytest

from mesh.client import StageClient
from mesh.errors import NotFound
from mesh.item import Request
from mesh.sync_client import RETRIES, MeshClient
from mesh.tensor import bytes_tensor, pack
from protos.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from tests.conftest import eventually
from tests.e2e.conftest import ROOT, Mesh, free_port, start_mesh, stop_mesh
from tests.e2e.test_answers import DIGIT
from tests.e2e.test_chaos import left_behind
from tests.e2e.test_metrics import scrape
from tests.mesh.test_director import alive

CHANNELS = 8
CALLS = 1200
AT_ONCE = 32

THREADS = {"preprocess_svc": 10, "postprocess_svc": 9, "gateway.worker": 4, "gateway.control": 4}
"""The main one, gRPC's poller, the exporter of spans, what answers scrapes, the one that runs ops,
and in the stages those that described the ops of five pipelines. gRPC's other threads have names
of their own."""


def threads(process: psutil.Process) -> int:
    """Return the threads of a process that no library has named."""
    names = [path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/comm")]
    return sum(name.startswith("python") for name in names)


def test_processes_have_the_threads_that_they_are_meant_to_have(
    mesh: Mesh, channel: grpc.Channel
) -> None:
    stub: Any = mesh_pb2_grpc.MeshStub(channel)
    # So large that OpenCV would share its rows out among threads.
    _, large = cv2.imencode(".png", np.zeros((2000, 3000, 3), np.uint8))
    page, digit = large.tobytes(), DIGIT.read_bytes()
    for _ in range(5):
        stub.Detect(mesh_pb2.DetectRequest(images=[page] * 2), timeout=20)
        stub.Classify(mesh_pb2.ClassifyRequest(images=[digit] * 4), timeout=20)
        stub.ClassifyText(mesh_pb2.ClassifyTextRequest(texts=["Guten Tag"] * 8), timeout=20)
        scrape(mesh)
    for module, count in THREADS.items():
        (process,) = mesh.services(module)
        assert 0 < threads(process) <= count, module


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh with two data workers."""
    log = tmp_path_factory.mktemp("wide") / "log"
    running = start_mesh(log, "--workers", "gateway=2", "preprocess=2", "postprocess=2")
    yield running
    assert stop_mesh(running) == 0


async def test_stream_stays_with_the_data_worker_that_it_meets(
    wide: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    request = Request("digits-classify", pack({"image": bytes_tensor(DIGIT.read_bytes())}))
    with caplog.at_level("INFO", "mesh.client"):
        async with AsyncExitStack() as stack:
            for _ in range(CHANNELS):
                client = StageClient("mesh.v1.Mesh", wide.gateway, "Stream")
                await stack.enter_async_context(client)
                assert (await client.call(request)).error() is None
            assert not caplog.messages  # as "link ended"


class Load:
    """Clients with connections of their own, that ask until they are told to stop."""

    def __init__(self, channels: list[grpc.aio.Channel]) -> None:
        self._calls = [
            channel.unary_unary(
                "/mesh.v1.Mesh/Classify",
                request_serializer=mesh_pb2.ClassifyRequest.SerializeToString,
                response_deserializer=mesh_pb2.ClassifyResponse.FromString,
            )
            for channel in channels
        ]
        self._request = mesh_pb2.ClassifyRequest(images=[DIGIT.read_bytes()])
        self.answers = 0
        self.failures: Counter[grpc.StatusCode] = Counter()

    async def ask(self, count: int) -> None:
        """Send so many calls, some of them at once."""
        left = iter(range(count))

        async def client(call: Any) -> None:
            for _ in left:
                try:
                    response = await call(self._request, timeout=60)
                except grpc.aio.AioRpcError as err:
                    self.failures[err.code()] += 1
                    continue
                assert response.results[0].categories[0].label == "7"
                self.answers += 1

        await asyncio.gather(*(client(self._calls[i % len(self._calls)]) for i in range(AT_ONCE)))


@asynccontextmanager
async def load(mesh: Mesh, *, retries: bool) -> AsyncIterator[Load]:
    options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
    if retries:
        options.append(("grpc.service_config", json.dumps(RETRIES)))
    async with AsyncExitStack() as stack:
        yield Load([
            await stack.enter_async_context(grpc.aio.insecure_channel(mesh.gateway, options))
            for _ in range(CHANNELS)
        ])  # fmt: skip


def listening(mesh: Mesh) -> int:
    """Return how many data workers take connections."""
    port = int(mesh.gateway.rpartition(":")[2])
    return sum(
        any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in found)
        for found in (worker.net_connections("tcp") for worker in mesh.services("gateway.worker"))
    )


async def kill_midway(mesh: Mesh, module: str, running: Load) -> None:
    """Kill a process of a service under load, and wait until all is answered and it is back."""
    before = len(mesh.services(module))
    asking = asyncio.create_task(running.ask(CALLS))
    await eventually(lambda: running.answers > CALLS // 5, 60)
    victim = mesh.services(module)[0]
    victim.send_signal(signal.SIGKILL)
    assert running.answers < CALLS, "all were answered before the process died"
    await asking
    await eventually(lambda: not victim.is_running(), 10)
    await eventually(lambda: len(mesh.services(module)) == before and listening(mesh) == 2, 20)


def answered(mesh: Mesh) -> dict[str, float]:
    """Return the requests that each data worker has answered since it began."""
    found = {"0": 0.0, "1": 0.0}
    for family in scrape(mesh):
        for sample in family.samples:
            if sample.name == "mesh_gateway_requests_total":
                found[sample.labels["worker"]] += sample.value
    return found


@pytest.mark.slow
async def test_connections_are_spread_over_data_workers_and_one_scrape_counts_them_all(
    wide: Mesh,
) -> None:
    before = answered(wide)
    for _ in range(3):  # which worker gets a connection is the kernel's hash of its ports
        async with load(wide, retries=False) as running:
            await running.ask(100)
            assert running.failures == {}
    after = answered(wide)
    grown = [after[worker] - before[worker] for worker in ("0", "1")]
    assert sum(grown) == 300
    assert min(grown) > 0


@pytest.mark.slow
async def test_no_call_fails_when_a_data_worker_is_killed_and_the_client_may_repeat(
    wide: Mesh,
) -> None:
    async with load(wide, retries=True) as running:
        await kill_midway(wide, "gateway.worker", running)
        assert running.failures == {}
        assert running.answers == CALLS


@pytest.mark.slow
async def test_calls_under_way_in_a_data_worker_that_is_killed_are_unavailable_and_no_others(
    wide: Mesh,
) -> None:
    async with load(wide, retries=False) as running:
        await kill_midway(wide, "gateway.worker", running)
        assert set(running.failures) <= {grpc.StatusCode.UNAVAILABLE}
        # Beside those, a call may meet the moment in which its connection is made anew.
        assert running.failures.total() <= 2 * AT_ONCE
        assert running.answers + running.failures.total() == CALLS


@pytest.mark.slow
@pytest.mark.parametrize("module", ["gateway.control", "preprocess_svc", "postprocess_svc"])
async def test_no_call_of_any_client_fails_when_another_process_is_killed(
    wide: Mesh, module: str
) -> None:
    async with load(wide, retries=False) as running:
        await kill_midway(wide, module, running)
        assert running.failures == {}
        assert running.answers == CALLS


@pytest.mark.slow
def test_traces_are_kept_again_after_the_control_process_was_killed(wide: Mesh) -> None:
    (control,) = wide.services("gateway.control")
    control.kill()
    asked = wide.cli("classify", str(DIGIT))
    assert asked.returncode == 0, asked.stderr
    end = time.monotonic() + 30
    while True:  # spans of the first requests may go where nobody keeps them
        with MeshClient(wide.gateway, traced=True) as client:
            request = mesh_pb2.ClassifyRequest(images=[DIGIT.read_bytes()])
            client.call("Classify", request, mesh_pb2.ClassifyResponse)
        with MeshClient(wide.gateway) as plain:
            try:
                wanted = mesh_pb2.GetTraceRequest(trace_id=client.trace_id)
                plain.call("GetTrace", wanted, mesh_pb2.GetTraceResponse)
                break
            except NotFound:
                assert time.monotonic() < end
    families = {family.name for family in scrape(wide)}
    assert {"mesh_gateway_requests", "mesh_replica_up", "mesh_gateway_worker_up"} <= families


def sockets(process: psutil.Process) -> Path:
    """Return the folder where the processes of a process's mesh find each other."""
    return Path(process.environ()["GATEWAY_SOCKETS"])


@pytest.mark.slow
async def test_nothing_is_left_of_a_mesh_whose_parent_is_killed_under_load(tmp_path: Path) -> None:
    mesh = start_mesh(tmp_path / "log", "--workers", "gateway=2", "preprocess=2")
    folder = sockets(mesh.services("gateway.control")[0])
    assert len(list(folder.glob("*.sock"))) == 7
    processes = psutil.Process(mesh.process.pid).children(recursive=True)
    assert len(processes) == 7
    async with load(mesh, retries=False) as running:
        asking = asyncio.create_task(running.ask(400))
        await eventually(lambda: running.answers > 50, 60)
        mesh.process.kill()
        mesh.process.wait()
        await eventually(lambda: not any(map(alive, processes)), 10)
        await asking
    await eventually(lambda: not folder.exists(), 5)
    assert left_behind() == []


@pytest.mark.slow
async def test_python_m_gateway_alone_serves_and_leaves_nothing_when_it_is_killed(
    wide: Mesh,
) -> None:
    """As a container runs it: a parent with the control process and the data workers."""
    (worker, *_) = wide.services("gateway.worker")
    address = f"127.0.0.1:{free_port()}"
    own = {
        "GATEWAY_BIND": address,
        "GATEWAY_WORKERS": "2",
        "GATEWAY_METRICS_PORT": "0",
        "GATEWAY_HTTP": "",
    }
    inherited = {
        name: value
        for name, value in worker.environ().items()
        if name not in ("GATEWAY_SOCKETS", "GATEWAY_WORKER")
    }
    command = [sys.executable, "-m", "gateway"]
    process = subprocess.Popen(command, env={**os.environ, **inherited, **own}, cwd=ROOT)
    try:
        alone = Mesh(address, "", process, wide.log, "")
        async with asyncio.timeout(30):
            while alone.cli("health").returncode:
                assert process.poll() is None
        children = psutil.Process(process.pid).children()
        assert len(children) == 3
        folder = sockets(children[0])
        assert folder.is_dir()
        async with load(alone, retries=True) as running:
            await running.ask(50)
            assert running.answers == 50
    finally:
        process.kill()
        process.wait()
    await eventually(lambda: not any(map(alive, children)), 10)
    await eventually(lambda: not folder.exists(), 5)
