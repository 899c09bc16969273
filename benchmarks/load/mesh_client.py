"""Clients of the mesh: unary calls, and the coalescing stream of heavy clients."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from benchmarks.load.loops import Ask, AskError
from mesh.client import StageClient
from mesh.errors import MeshError
from mesh.item import Request
from mesh.tensor import bytes_tensor, pack, unpack
from protos.mesh.v1 import mesh_pb2

PIPELINES = {"jpeg": "bench", "text": "language"}
INPUTS = {"jpeg": "image", "text": "text"}


@asynccontextmanager
async def unary(address: str, work: str, timeout_s: float) -> AsyncIterator[Ask]:
    """Call `Classify` or `ClassifyText`, as any gRPC client does."""
    method, kind, answer = {
        "jpeg": ("Classify", mesh_pb2.ClassifyRequest, mesh_pb2.ClassifyResponse),
        "text": ("ClassifyText", mesh_pb2.ClassifyTextRequest, mesh_pb2.ClassifyTextResponse),
    }[work]
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(
            f"/mesh.v1.Mesh/{method}", kind.SerializeToString, answer.FromString
        )

        async def ask(payload: bytes) -> list[int]:
            if work == "jpeg":
                request = mesh_pb2.ClassifyRequest(pipeline="bench", images=[payload])
            else:
                text = payload.decode()
                request = mesh_pb2.ClassifyTextRequest(pipeline="language", texts=[text])
            try:
                response = await call(request, timeout=timeout_s)
            except grpc.aio.AioRpcError as err:
                raise AskError(err.code().name) from err
            return [category.class_id for category in response.results[0].categories]

        yield ask


@asynccontextmanager
async def stream(address: str, work: str, timeout_s: float) -> AsyncIterator[Ask]:
    """Call `Stream`, as heavy clients do."""
    async with StageClient("mesh.v1.Mesh", address, "Stream") as mesh:
        await mesh.wait_ready(10)

        async def ask(payload: bytes) -> list[int]:
            packed = pack({INPUTS[work]: bytes_tensor(payload)})
            request = Request(PIPELINES[work], packed, deadline=time.monotonic() + timeout_s)
            try:
                reply = await mesh.call(request)
            except MeshError as err:
                raise AskError(type(err).__name__) from err
            found: list[int] = unpack(reply.payload)["classes"].ravel().tolist()
            return found

        yield ask
