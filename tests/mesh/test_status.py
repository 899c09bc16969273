"""Every error is the same type with the same text on the other side of a call."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from mesh import status
from mesh.errors import (
    DeadlineExceeded,
    EngineError,
    InternalError,
    InvalidInput,
    MeshError,
    NotFound,
    Overloaded,
    Refused,
    StageUnavailable,
)
from mesh.item import Handler, Reply, Request
from mesh.layers import errors
from mesh.link import Link
from mesh.status import code_of, from_rpc_error, from_status, public, to_status
from mesh.sync_client import RETRIES, SERVICE
from mesh.unary import unary_method
from protos.mesh.v1.stage_pb2 import Status
from tests.conftest import STAGE, eventually, running_replica


def all_errors(root: type[MeshError] = MeshError) -> list[type[MeshError]]:
    """Walk the subclasses; those that tests define are left out."""
    found = []
    for kind in root.__subclasses__():
        found += ([kind] if kind.__module__ == MeshError.__module__ else []) + all_errors(kind)
    return found


each_error = pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)


def raising(error: Exception) -> Handler:
    async def handler(request: Request) -> Reply:
        raise error

    return handler


@asynccontextmanager
async def unary_channel(handler: Handler) -> AsyncIterator[grpc.aio.Channel]:
    """Serve a handler as the unary method `/s/M` of a real server."""
    server = grpc.aio.server()
    methods = {"M": unary_method(errors(handler), "M")}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)


async def unary_error(handler: Handler, method: str = "/s/M") -> grpc.aio.AioRpcError:
    async with unary_channel(handler) as channel:
        return await failure_of(channel, method)


async def failure_of(channel: grpc.aio.Channel, method: str) -> grpc.aio.AioRpcError:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", timeout=5)
    return caught.value


async def stream_error(handler: Handler) -> MeshError:
    """Return what a stream's reply says, without the retries of a client."""
    async with running_replica(handler) as replica:
        link = Link(replica.address, f"/{STAGE}/Run", lambda: None)
        running = asyncio.create_task(link.run())
        await eventually(lambda: link.ready)
        error = (await link.send(Request("t", b""), b"")).error()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert error is not None
        return error


def test_table_has_exactly_the_errors_that_there_are() -> None:
    assert set(status._CODES) == set(all_errors())
    assert len(all_errors()) >= 11


@each_error
def test_docstring_begins_with_whose_fault_it_is(kind: type[MeshError]) -> None:
    assert (kind.__doc__ or "").startswith(("Expected: ", "Bug: "))


@each_error
def test_error_comes_back_from_its_status(kind: type[MeshError]) -> None:
    back = from_status(Status.FromString(to_status(kind("tensor 'x' …")).SerializeToString()))
    assert type(back) is kind
    assert str(back) == "tensor 'x' …"


@each_error
async def test_error_comes_back_from_a_unary_call(kind: type[MeshError]) -> None:
    failure = await unary_error(raising(kind("tensor 'x' …")))
    back = from_rpc_error(failure)
    assert (type(back), str(back)) == (kind, "tensor 'x' …")
    assert failure.code() is code_of(kind())


@each_error
async def test_error_comes_back_from_a_stream(kind: type[MeshError]) -> None:
    back = await stream_error(raising(kind("tensor 'x' …")))
    assert (type(back), str(back)) == (kind, "tensor 'x' …")


async def test_unexpected_error_gives_no_text_but_a_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failure = await unary_error(raising(ValueError("secret")))
    streamed = await stream_error(raising(ValueError("secret")))
    for error in (from_rpc_error(failure), streamed):
        assert type(error) is InternalError
        assert "secret" not in str(error)
    assert failure.code() is grpc.StatusCode.INTERNAL
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert "secret" in caplog.text


def test_subclass_that_is_not_in_the_table_has_the_code_of_its_parent() -> None:
    class Blurred(InvalidInput):
        """Expected: too blurred."""

    assert code_of(Blurred()) is grpc.StatusCode.INVALID_ARGUMENT
    assert type(from_status(to_status(Blurred("b")))) is InvalidInput


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        pytest.param(grpc.StatusCode.INVALID_ARGUMENT, InvalidInput, id="invalid"),
        pytest.param(grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded, id="overloaded"),
        pytest.param(grpc.StatusCode.FAILED_PRECONDITION, Refused, id="refused"),
        pytest.param(grpc.StatusCode.UNAVAILABLE, StageUnavailable, id="unavailable"),
        pytest.param(grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded, id="deadline"),
        pytest.param(grpc.StatusCode.INTERNAL, InternalError, id="internal"),
        pytest.param(grpc.StatusCode.DATA_LOSS, InternalError, id="not_in_the_table"),
    ],
)
def test_status_of_a_foreign_server_is_our_nearest_error(
    code: grpc.StatusCode, kind: type[MeshError]
) -> None:
    assert type(from_status(Status(code=code.value[0], message="m"))) is kind
    assert type(from_status(Status(code=code.value[0], message="m", kind="Alien"))) is kind


def test_code_that_grpc_does_not_have_is_an_internal_error() -> None:
    assert type(from_status(Status(code=99, message="m"))) is InternalError


async def test_method_that_does_not_exist_is_an_internal_error() -> None:
    failure = await unary_error(raising(InvalidInput("not reached")), "/s/Other")
    assert type(from_rpc_error(failure)) is InternalError


async def test_server_that_is_not_there_is_unavailable() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        failure = await failure_of(channel, "/s/M")
    assert type(from_rpc_error(failure)) is StageUnavailable


def test_public_error_is_ours_unchanged_or_one_that_tells_nothing() -> None:
    ours = EngineError("cudaErrorLaunchFailure in batch 3")
    assert public(ours) is ours
    assert type(public(KeyError("secret"))) is InternalError


@pytest.mark.parametrize("letter", ["x", "ß", "語", "😀"], ids=["1", "2", "3", "4_bytes"])
async def test_long_text_is_cut_and_does_not_cost_the_error(letter: str) -> None:
    """The text of `InvalidInput` may quote what a caller sent, and gRPC's headers are short."""
    long = InvalidInput("begin " + letter * 3_000_000)
    for error in (
        from_rpc_error(await unary_error(raising(long))),
        await stream_error(raising(long)),
    ):
        assert type(error) is InvalidInput
        assert str(error).startswith(f"begin {letter}")
        assert len(str(error)) < 10_000


def test_text_that_is_no_unicode_does_not_cost_the_error() -> None:
    assert type(from_status(to_status(InvalidInput("\ud800")))) is InvalidInput


async def test_hint_when_to_come_back_crosses_the_wire() -> None:
    status = to_status(Overloaded("full", retry_s=0.25))
    assert status.retry_ms == 250
    back = from_status(status)
    assert isinstance(back, Overloaded)
    assert back.retry_s == 0.25
    assert to_status(Overloaded("full")).retry_ms == 0
    assert to_status(NotFound("no")).retry_ms == 0


async def test_clients_own_policy_does_not_repeat_what_was_answered() -> None:
    """The mesh has repeated what may be: a request that ends replicas must not go on to more."""
    calls = 0

    async def handler(request: Request) -> Reply:
        nonlocal calls
        calls += 1
        raise StageUnavailable("three replicas went away")

    server = grpc.aio.server()
    methods = {"M": unary_method(errors(handler), "M")}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    options = [("grpc.service_config", json.dumps(RETRIES))]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/M")
        with pytest.raises(grpc.aio.AioRpcError, match="three replicas went away"):
            await call(b"")
    await server.stop(None)
    assert calls == 1
