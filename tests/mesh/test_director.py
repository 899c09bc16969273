"""A parent of stage workers: each is a replica of its own, kept running, ended with the parent."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.client import ClientLimits, StageClient
from mesh.director import STEP, worker_binds
from mesh.errors import SettingsError
from mesh.item import Request
from tests.conftest import eventually
from tests.e2e.conftest import free_port

ROOT = Path(__file__).parents[2]
STAGE = "mesh.v1.Postprocess"


def test_workers_listen_above_the_parent_where_no_other_stage_does() -> None:
    assert worker_binds("0.0.0.0:8011", 2) == ["0.0.0.0:8111", "0.0.0.0:8211"]
    assert worker_binds("[::]:8013", 1) == ["[::]:8113"]


@pytest.mark.parametrize(
    ("bind", "text"),
    [
        ("unix:/run/x.sock", "2 workers cannot share unix:/run/x.sock"),
        ("127.0.0.1:65400", "cannot have 2 workers at 127.0.0.1:65400"),
        ("127.0.0.1", "wanted host:port"),
    ],
)
def test_address_without_room_for_workers_is_refused(bind: str, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        worker_binds(bind, 2)


@dataclass
class Parent:
    """A running `python -m postprocess_svc` with two workers."""

    address: str
    process: subprocess.Popen[bytes]

    @property
    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    async def status(self) -> int:
        """Return the health of the whole; 0: nobody answers."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.aio.AioRpcError:
                return 0
        return int(answer.status)

    async def until_serving(self) -> None:
        async with asyncio.timeout(30):
            while await self.status() != health_pb2.HealthCheckResponse.SERVING:
                assert self.process.poll() is None
                await asyncio.sleep(0.02)


@asynccontextmanager
async def parent(workers: str = "2") -> AsyncIterator[Parent]:
    address = f"127.0.0.1:{free_port_below(65000)}"
    environment = {
        **os.environ,
        "POSTPROCESS_BIND": address,
        "POSTPROCESS_WORKERS": workers,
        "POSTPROCESS_MODELS": str(ROOT / "models"),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "postprocess_svc"], env=environment, cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield Parent(address, process)
    finally:
        process.kill()
        process.wait()


def free_port_below(limit: int) -> int:
    while (port := free_port()) >= limit:
        pass
    return port


async def test_each_worker_is_a_replica_and_one_that_is_killed_comes_back() -> None:
    async with parent() as found:
        await found.until_serving()
        limits = ClientLimits(backoff_s=0.02)
        async with StageClient(STAGE, found.address, limits=limits) as client:
            await eventually(lambda: len(client.replicas) == 2, 10)
            assert found.address not in client.addresses
            victim, survivor = found.workers
            victim.kill()
            await eventually(lambda: len(client.replicas) == 1, 10)
            reply = await client.call(Request("no_such_op", b""))  # the other one answers
            assert reply.status is not None
            assert await found.status() == health_pb2.HealthCheckResponse.SERVING
            await eventually(lambda: len(client.replicas) == 2, 20)
            assert survivor in found.workers
            assert len(found.workers) == 2


async def test_sigterm_ends_workers_and_parent_in_good_order() -> None:
    async with parent() as found:
        await found.until_serving()
        workers = found.workers
        found.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(found.process.wait, 20) == 0
        assert not any(worker.is_running() for worker in workers)


async def test_workers_die_with_a_parent_that_is_killed() -> None:
    async with parent() as found:
        await found.until_serving()
        workers = found.workers
        found.process.kill()
        found.process.wait()
        await eventually(lambda: not any(alive(worker) for worker in workers), 5)


async def test_worker_that_cannot_start_as_configured_ends_the_parent() -> None:
    with socket.socket() as other:
        port = free_port_below(65000)
        while other.connect_ex(("127.0.0.1", port + STEP)) == 0:
            port = free_port_below(65000)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # for what just ended
        other.bind(("127.0.0.1", port + STEP))  # where the first worker wants to listen
        other.listen()
        environment = {
            **os.environ,
            "POSTPROCESS_BIND": f"127.0.0.1:{port}",
            "POSTPROCESS_WORKERS": "2",
        }
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-m", "postprocess_svc"],
            env=environment, cwd=ROOT, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
    assert done.returncode == 2
    assert f"cannot listen at 127.0.0.1:{port + STEP}" in done.stderr
    assert "postprocess-0 cannot start" in done.stderr


async def test_one_worker_needs_no_parent() -> None:
    async with parent("1") as found:
        await found.until_serving()
        assert found.workers == []


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
