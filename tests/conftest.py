"""Real servers for tests: no mocks, nothing leaves the machine."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from hypothesis import settings

from mesh.arena import Lender
from mesh.client import ClientLimits, StageClient
from mesh.host import SERVER_OPTIONS
from mesh.item import Handler, Reply, Request
from mesh.layers import errors
from mesh.server import Limits, StageServer
from protos.mesh.v1.stage_pb2 import Envelope

# On a GPU; else TensorRT-RTX multiplies FP32 matrices in TF32, whatever its builder was told.
os.environ["NVIDIA_TF32_OVERRIDE"] = "0"

# Who starts the tests in the background of a shell hands them a SIGINT that is ignored, for their
# children too.
signal.signal(signal.SIGINT, signal.default_int_handler)

STAGE = "mesh.v1.Infer"

# An example's time says nothing on a machine that does other work meanwhile.
settings.register_profile("mesh", deadline=None)
settings.load_profile("mesh")


async def eventually(check: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait until something is true; fail when it is not in time."""
    end = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < end, f"not true within {within_s} s"
        await asyncio.sleep(0.005)


async def echo(request: Request) -> Reply:
    """Answer with the request's own payload and context."""
    return Reply(request.payload, request.context)


@dataclass
class Replica:
    """A replica that runs in the test's process."""

    address: str
    stage: StageServer
    server: grpc.aio.Server

    async def kill(self) -> None:
        """End it without a word, as a crash would."""
        await self.server.stop(None)


@asynccontextmanager
async def running_replica(
    handler: Handler = echo,
    limits: Limits = Limits(),
    address: str = "127.0.0.1:0",
    lender: Lender | None = None,
) -> AsyncIterator[Replica]:
    """Serve a handler at a free port."""
    stage = StageServer(errors(handler), limits, lender)
    stage.open()
    server = grpc.aio.server(options=SERVER_OPTIONS)
    method = grpc.stream_stream_rpc_method_handler(
        stage.run, Envelope.FromString, Envelope.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(STAGE, {"Run": method}),))
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield Replica(f"127.0.0.1:{port}", stage, server)
    finally:
        await server.stop(None)


@asynccontextmanager
async def running_client(
    *replicas: Replica, limits: ClientLimits = ClientLimits(backoff_s=0.02)
) -> AsyncIterator[StageClient]:
    """Connect to replicas and wait until all of them take items."""
    client = StageClient(STAGE, ",".join(replica.address for replica in replicas), limits=limits)
    async with client:
        await eventually(lambda: len(client.replicas) == len(replicas))
        yield client


@pytest.fixture
async def one_client() -> AsyncIterator[StageClient]:
    """A client of one echoing replica."""
    async with running_replica() as replica, running_client(replica) as client:
        yield client


@pytest.fixture(scope="session")
def models() -> Path:
    """The demo model repository."""
    return Path(__file__).parent.parent / "models"
