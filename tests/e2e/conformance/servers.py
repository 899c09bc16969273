"""Starts both servers with the same models."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tritonclient.grpc as grpc_client

from benchmarks.peers import triton
from benchmarks.peers.server import running
from benchmarks.peers.venvs import TRITON
from mesh.port import free_ports
from tests.e2e.conformance.models import write_mesh, write_triton
from tests.e2e.conftest import start_mesh, stop_mesh

MEMORY = Path("/dev/shm")
"""Where a Python backend that ends leaves its shared memory."""


@dataclass(frozen=True)
class Server:
    """Where a server answers."""

    grpc: str
    http: str
    repository: Path

    def is_live(self) -> bool:
        """Tell whether it answers."""
        with grpc_client.InferenceServerClient(self.grpc) as client:
            try:
                return bool(client.is_server_live(client_timeout=5))
            except grpc_client.InferenceServerException:
                return False


@contextmanager
def start_triton(folder: Path) -> Iterator[Server]:
    """Run Triton's server with all models loaded."""
    TRITON.make()
    repository = folder / "triton"
    write_triton(repository, TRITON.site_packages)
    grpc_port, http_port = free_ports(2)
    command = [
        word
        for word in triton.server_command(TRITON.site_packages, repository, grpc_port)
        if word != "--allow-http=false"
    ]
    command += [
        "--http-address=127.0.0.1", f"--http-port={http_port}", "--model-control-mode=explicit",
        "--load-model=*",
    ]  # fmt: skip
    prefix = f"conformance-{grpc_port}-"
    command.append(f"--backend-config=python,shm-region-prefix-name={prefix}")
    server = Server(f"127.0.0.1:{grpc_port}", f"127.0.0.1:{http_port}", repository)
    libraries = str(TRITON.site_packages / "nvidia_pytriton.libs")

    def is_ready() -> bool:
        with grpc_client.InferenceServerClient(server.grpc) as client:
            try:
                return bool(client.is_server_ready(client_timeout=2))
            except grpc_client.InferenceServerException:
                return False

    environment = {"LD_LIBRARY_PATH": libraries}
    try:
        with running(command, environment, folder / "triton.log", is_ready):
            yield server
    finally:
        for left in MEMORY.glob(f"{prefix}*"):
            left.unlink()


@contextmanager
def start_ours(folder: Path) -> Iterator[Server]:
    """Run a mesh."""
    repository = folder / "mesh"
    write_mesh(repository)
    mesh = start_mesh(
        folder / "mesh.log", models=repository, INFER_CPU_THREADS="1", GATEWAY_CLIENT_MEMORY="true"
    )
    try:
        yield Server(mesh.gateway, mesh.http, repository)
    finally:
        stop_mesh(mesh)


@contextmanager
def both(folder: Path) -> Iterator[tuple[Server, Server]]:
    """Run Triton's server and a mesh, in this order."""
    with start_triton(folder) as theirs, start_ours(folder) as ours:
        yield theirs, ours
