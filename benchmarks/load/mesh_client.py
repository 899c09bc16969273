"""Clients of the mesh: unary calls, and the coalescing stream of heavy clients."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc

from benchmarks.load.loops import Ask, AskError
from mesh.client import StageClient
from mesh.errors import MeshError
from mesh.item import Request
from mesh.tensor import bytes_tensor, pack, unpack
from protos.mesh.v1 import mesh_pb2

PIPELINES = {"jpeg": "bench", "text": "language"}
Answer = mesh_pb2.ClassifyResponse | mesh_pb2.ClassifyTextResponse
INPUTS = {"jpeg": "image", "text": "text"}


@asynccontextmanager
async def unary(address: str, work: str, timeout_s: float) -> AsyncIterator[Ask]:
    """Call `Classify` or `ClassifyText`, as any gRPC client does."""
    async with grpc.aio.insecure_channel(address) as channel:
        pictures = channel.unary_unary(
            "/mesh.v1.Mesh/Classify",
            mesh_pb2.ClassifyRequest.SerializeToString,
            mesh_pb2.ClassifyResponse.FromString,
        )
        texts = channel.unary_unary(
            "/mesh.v1.Mesh/ClassifyText",
            mesh_pb2.ClassifyTextRequest.SerializeToString,
            mesh_pb2.ClassifyTextResponse.FromString,
        )

        async def picture(payload: bytes) -> mesh_pb2.ClassifyResponse:
            request = mesh_pb2.ClassifyRequest(pipeline=PIPELINES[work], images=[payload])
            return await pictures(request, timeout=timeout_s)

        async def text(payload: bytes) -> mesh_pb2.ClassifyTextResponse:
            request = mesh_pb2.ClassifyTextRequest(
                pipeline=PIPELINES[work], texts=[payload.decode()]
            )
            return await texts(request, timeout=timeout_s)

        sends: dict[str, Callable[[bytes], Awaitable[Answer]]] = {"jpeg": picture, "text": text}
        send = sends[work]

        async def ask(payload: bytes) -> list[int]:
            try:
                response = await send(payload)
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
            if (error := reply.error()) is not None:
                raise AskError(type(error).__name__)
            found: list[int] = unpack(reply.payload)["classes"].ravel().tolist()
            return found

        yield ask
