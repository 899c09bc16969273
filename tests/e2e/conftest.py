"""A whole mesh of real processes, started once for all tests of this folder."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.port import free_ports

ROOT = Path(__file__).parent.parent.parent


ONE_EACH = {f"{name}_WORKERS": "1" for name in ("GATEWAY", "PREPROCESS", "POSTPROCESS")}
"""However many cores there are."""


def free_port() -> int:
    return free_ports(1)[0]


@dataclass
class Mesh:
    """A running `trtmesh up`."""

    gateway: str
    http: str
    process: subprocess.Popen[bytes]
    log: Path
    metrics: str
    """Where the gateway answers scrapes."""

    def services(self, module: str) -> list[psutil.Process]:
        """Return the running processes of a service."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if module in child.cmdline()]

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command against the gateway."""
        command = [sys.executable, "-m", "mesh.cli", *words, "--gateway", self.gateway]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)


def start_mesh(
    log: Path,
    *options: str,
    models: Path = ROOT / "models",
    limit_s: float = 60,
    **env: str,
) -> Mesh:
    """Start a mesh and wait until it is SERVING."""
    gateway, http, metrics_port = (*(f"127.0.0.1:{free_port()}" for _ in range(2)), free_port())
    command = [sys.executable, "-m", "mesh.cli", "up", "--bind", gateway, "--http", http]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--models", str(models), *options],
            env={**os.environ, **ONE_EACH, "GATEWAY_METRICS_PORT": str(metrics_port), **env},
            stderr=file, cwd=ROOT,
        )  # fmt: skip
    end = time.monotonic() + limit_s
    while True:
        try:
            with grpc.insecure_channel(gateway) as channel:
                request = health_pb2.HealthCheckRequest()
                stub: Any = health_pb2_grpc.HealthStub(channel)
                answer = stub.Check(request, timeout=2)
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return Mesh(gateway, http, process, log, f"http://127.0.0.1:{metrics_port}/metrics")
        except grpc.RpcError:
            pass
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            process.wait()
            pytest.fail(f"trtmesh up is not ready: {log.read_text()}")
        time.sleep(0.1)


def stop_mesh(mesh: Mesh) -> int:
    """Stop it as Ctrl-C does, and return its exit status."""
    mesh.process.send_signal(signal.SIGINT)
    return mesh.process.wait(30)


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    running = start_mesh(tmp_path_factory.mktemp("mesh") / "log", OTEL_TRACES_SAMPLER="always_on")
    yield running
    assert stop_mesh(running) == 0
    assert "Traceback" not in running.log.read_text()


@pytest.fixture
def channel(mesh: Mesh) -> Iterator[grpc.Channel]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(mesh.gateway, options) as opened:
        yield opened
