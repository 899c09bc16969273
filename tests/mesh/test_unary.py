"""A unary call is the same request as an item of a stream, and fails with the same error."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from mesh.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidInput,
    ReplicaFull,
    StageUnavailable,
)
from mesh.host import Host
from mesh.item import Handler, Reply, Request
from mesh.layers import errors
from mesh.status import KIND_KEY, from_rpc_error
from mesh.unary import ask, streaming_method, unary_method
from tests.conftest import eventually
from tests.mesh.test_status import raising, unary_channel

HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Recorder:
    """A handler that keeps the requests it got."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    async def __call__(self, request: Request) -> Reply:
        self.requests.append(request)
        return Reply(request.payload + b"!")


async def call(
    channel: grpc.aio.Channel,
    payload: bytes = b"",
    timeout: float | None = 5,
    metadata: tuple[tuple[str, str | bytes], ...] = (),
) -> bytes:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/s/M")
    return await method(payload, timeout=timeout, metadata=metadata)


async def seen(
    timeout: float | None = 5, metadata: tuple[tuple[str, str | bytes], ...] = ()
) -> Request:
    """Return the request that a call becomes."""
    recorder = Recorder()
    async with unary_channel(recorder) as channel:
        await call(channel, b"x", timeout, metadata)
    (request,) = recorder.requests
    return request


async def test_payload_and_answer_pass_as_they_are() -> None:
    async with unary_channel(Recorder()) as channel:
        assert await call(channel, b"\0\xff") == b"\0\xff!"


async def test_request_says_what_was_called_and_by_whom() -> None:
    request = await seen()
    assert (request.target, request.payload, request.trace) == ("M", b"x", b"")
    assert request.client.startswith("ipv4:127.0.0.1:")


async def test_deadline_of_the_call_is_the_request_s() -> None:
    # gRPC rounds a timeout up on the wire: measured, by 9 ms of 3 s.
    request = await seen(timeout=2.9)
    assert 2 < request.deadline - time.monotonic() <= 3


async def test_call_without_a_deadline_has_none() -> None:
    assert (await seen(timeout=None)).deadline == math.inf


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param((("traceparent", HEADER),), id="alone"),
        pytest.param((("a", "b"), ("traceparent", HEADER), ("c", "d")), id="among_others"),
        pytest.param((("traceparent-bin", b"\1"), ("traceparent", HEADER)), id="after_binary"),
    ],
)
async def test_traceparent_is_the_request_s(
    metadata: tuple[tuple[str, str | bytes], ...],
) -> None:
    assert (await seen(metadata=metadata)).trace.hex() == HEADER.replace("-", "")[2:]


@pytest.mark.parametrize("header", ["", "garbage", HEADER[:-1]], ids=["empty", "garbage", "cut"])
async def test_traceparent_that_is_none_is_passed_over(header: str) -> None:
    assert (await seen(metadata=(("traceparent", header),))).trace == b""


async def test_kind_of_the_error_is_in_the_trailing_metadata() -> None:
    """The code alone would not tell `ReplicaFull` from `Overloaded`."""
    async with unary_channel(raising(ReplicaFull("no room"))) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == "no room"
    assert (KIND_KEY, "ReplicaFull") in tuple(caught.value.trailing_metadata())
    assert type(from_rpc_error(caught.value)) is ReplicaFull


async def test_error_of_one_call_leaves_the_next_one() -> None:
    async def picky(request: Request) -> Reply:
        if request.payload == b"bad":
            raise InvalidInput("no")
        if request.payload == b"bug":
            raise ZeroDivisionError
        return Reply(b"fine")

    async with unary_channel(picky) as channel:
        for payload, kind in ((b"bad", InvalidInput), (b"bug", InternalError)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel, payload)
            assert type(from_rpc_error(caught.value)) is kind
            assert await call(channel) == b"fine"


async def test_call_whose_time_is_over_is_told_so_and_cancelled() -> None:
    ended = asyncio.Event()

    async def hang(request: Request) -> Reply:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return Reply()

    async with unary_channel(hang) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, timeout=0.1)
        assert type(from_rpc_error(caught.value)) is DeadlineExceeded
        await eventually(ended.is_set)


@pytest.fixture
async def asked(bind: str) -> AsyncIterator[str]:
    """A server whose method `/s/M` answers, fails or hangs as it is told."""

    async def handler(request: Request) -> Reply:
        if request.payload == b"fail":
            raise InvalidInput("no")
        while request.payload == b"hang":
            await asyncio.Event().wait()
        return Reply(request.payload + b"!")

    host = Host(bind)
    host.add("s", {"M": unary_method(errors(handler), "M")})
    await host.start()
    yield bind
    await host.server.stop(None)


async def test_ask_returns_the_answer(asked: str) -> None:
    assert await ask(asked, "s/M", b"x", 5) == b"x!"


async def test_ask_raises_what_the_server_raised(asked: str) -> None:
    with pytest.raises(InvalidInput, match="no"):
        await ask(asked, "s/M", b"fail", 5)


async def test_ask_ends_in_time(asked: str) -> None:
    with pytest.raises(DeadlineExceeded):
        await ask(asked, "s/M", b"hang", 0.05)


async def test_ask_where_nobody_listens_is_unavailable(bind: str) -> None:
    with pytest.raises(StageUnavailable):
        await ask(bind, "s/M", b"x", 5)


@asynccontextmanager
async def streaming_channel(handler: Handler) -> AsyncIterator[grpc.aio.Channel]:
    """Serve a handler as the method `/s/M` whose answer is a stream."""
    server = grpc.aio.server()
    methods = {"M": streaming_method(errors(handler), "M")}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


def stream(channel: grpc.aio.Channel, payload: bytes) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
    method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/s/M")
    return method(payload, timeout=5)


async def spell(request: Request) -> Reply:
    """Answer with each byte, and fail at a question mark."""
    assert request.emit is not None
    for byte in request.payload:
        if byte == ord("?"):
            raise InvalidInput("'?' came")
        request.emit(Reply(bytes([byte]), more=True))
    return Reply(b"end")


async def test_every_reply_is_a_message_of_the_stream_in_order() -> None:
    async with streaming_channel(spell) as channel:
        messages = [message async for message in stream(channel, b"abc")]
        assert messages == [b"a", b"b", b"c", b"end"]


async def test_failure_comes_after_what_was_told_before() -> None:
    async with streaming_channel(spell) as channel:
        came = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for message in stream(channel, b"ab?c"):
                came.append(message)
        assert came == [b"a", b"b"]
        assert isinstance(from_rpc_error(caught.value), InvalidInput)


async def test_who_leaves_a_stream_ends_its_handler() -> None:
    ended = asyncio.Event()

    async def talk(request: Request) -> Reply:
        assert request.emit is not None
        try:
            while True:
                request.emit(Reply(b"x", more=True))
                await asyncio.sleep(0.005)
        finally:
            ended.set()

    async with streaming_channel(talk) as channel:
        call = stream(channel, b"")
        async for _ in call:
            break
        call.cancel()
        await asyncio.wait_for(ended.wait(), 5)
