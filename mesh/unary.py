"""gRPC methods of one request on the same handlers and layers as the streams, and calls of such."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc

from mesh.grpc_types import Call, Context, Method
from mesh.item import Handler, Reply, Request
from mesh.link import CHANNEL_OPTIONS
from mesh.status import abort, from_rpc_error
from mesh.telemetry import from_traceparent


def unary_method(handler: Handler, target: str) -> Method:
    """Return a gRPC method: the request's payload is the serialized message, as is the reply's.

    Args:
        handler: with its layers, so that it raises nothing.
        target: of the request.
    """

    async def method(message: bytes, context: Context) -> bytes:
        reply = await handler(request_of(target, message, context))
        error = reply.error()
        if error is not None:
            await abort(context, error)
        return reply.payload

    return grpc.unary_unary_rpc_method_handler(method)


def streaming_method(handler: Handler, target: str) -> Method:
    """Return a gRPC method that answers with a stream: each reply's payload is a message.

    Args:
        handler: as for `unary_method`; it emits all replies but the last.
        target: of the request.
    """

    async def method(message: bytes, context: Context) -> None:
        request = request_of(target, message, context)
        async with aclosing(replies(handler, request)) as made:
            async for reply in made:
                if (error := reply.error()) is not None:
                    await abort(context, error)
                await context.write(reply.payload)

    return grpc.unary_stream_rpc_method_handler(method)


async def replies(handler: Handler, request: Request) -> AsyncGenerator[Reply, None]:
    """Yield all replies to a request; to close the generator ends the work.

    Args:
        handler: as for `unary_method`; it emits all replies but the last.
        request: whose `emit` is set.
    """
    emitted: asyncio.Queue[Reply | None] = asyncio.Queue()
    request.emit = emitted.put_nowait
    handled = asyncio.ensure_future(handler(request))
    handled.add_done_callback(lambda _: emitted.put_nowait(None))
    try:
        while (reply := await emitted.get()) is not None:
            yield reply
        yield await handled
    finally:
        handled.cancel()


async def ask(address: str, method: str, message: bytes, timeout_s: float) -> bytes:
    """Call a method once, over a channel of its own, and return the serialized answer.

    Args:
        address: target for gRPC: `host:port` or `unix:/path`.
        method: full name, as `mesh.v1.Infer/Describe`.
        message: serialized.
        timeout_s: for the connection and the answer together.

    Raises:
        MeshError: as the server answered, or that it did not.
    """
    async with grpc.aio.insecure_channel(address, CHANNEL_OPTIONS) as channel:
        call: Call = channel.unary_unary(f"/{method}")
        try:
            return await call(message, timeout=timeout_s)
        except grpc.aio.AioRpcError as err:
            raise from_rpc_error(err) from err


def request_of(target: str, message: bytes, context: Context) -> Request:
    """Return the request that a call is, with its deadline, its trace context and its peer."""
    now = time.monotonic()
    left = context.time_remaining()
    return Request(
        target, message, deadline=math.inf if left is None else now + left,
        trace=_trace(context), client=str(context.peer()), received=now,
        metadata=tuple(context.invocation_metadata() or ()),
    )  # fmt: skip


def _trace(context: Context) -> bytes:
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent":
            return from_traceparent(value if isinstance(value, str) else value.decode("latin-1"))
    return b""
