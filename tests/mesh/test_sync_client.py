"""The blocking client raises our errors, and each traced call is one sampled trace."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from gateway.trace_store import TraceStore, trace_service
from mesh.errors import DeadlineExceeded, InvalidInput, MeshError, StageUnavailable
from mesh.item import Reply, Request
from mesh.layers import errors
from mesh.sync_client import SERVICE, MeshClient
from mesh.telemetry import is_sampled
from mesh.unary import streaming_method, unary_method
from protos.mesh.v1.mesh_pb2 import (
    GenerateRequest,
    GenerateResponse,
    ListPipelinesRequest,
    ListPipelinesResponse,
    RunRequest,
)

ANSWER = ListPipelinesResponse(pipelines=[{"name": "digits"}])


@dataclass
class Gateway:
    """A gateway that notes its requests and keeps traces."""

    address: str = ""
    store: TraceStore = field(default_factory=TraceStore)
    requests: list[Request] = field(default_factory=list)

    async def handle(self, request: Request) -> Reply:
        self.requests.append(request)
        pipeline = RunRequest.FromString(request.payload).pipeline
        if pipeline == "bad":
            raise InvalidInput("no such tensor")
        if pipeline == "hang":
            await asyncio.Event().wait()
        return Reply(ANSWER.SerializeToString())

    async def tell(self, request: Request) -> Reply:
        self.requests.append(request)
        text = GenerateRequest.FromString(request.payload).text
        assert request.emit is not None
        for letter in text:
            request.emit(Reply(GenerateResponse(text=letter).SerializeToString(), more=True))
        if text == "bad":
            raise InvalidInput("text: 'bad' came")
        return Reply(GenerateResponse(finish_reason="stop").SerializeToString())


@pytest.fixture(autouse=True)
def no_otel_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    found = Gateway()
    server = grpc.aio.server()
    methods = {
        "ListPipelines": unary_method(errors(found.handle), "t"),
        "Generate": streaming_method(errors(found.tell), "t"),
    }
    for name, table in ((SERVICE, methods), trace_service(found.store)):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, table),))
    found.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield found
    await server.stop(None)


def ask(client: MeshClient, pipeline: str = "") -> ListPipelinesResponse:
    request = RunRequest(pipeline=pipeline)
    return client.call("ListPipelines", request, ListPipelinesResponse)


async def in_thread(
    gateway: Gateway, work: Callable[[MeshClient], object], *, traced: bool = False
) -> None:
    """Use a client as a program without a loop does."""

    def run() -> None:
        with MeshClient(gateway.address, timeout_s=5, traced=traced) as client:
            work(client)

    await asyncio.to_thread(run)


def stored(gateway: Gateway, trace_id: str) -> Span:
    """Return the only span of a trace at the gateway."""
    _, data = gateway.store.get(trace_id)
    (span,) = [s for g in data.resource_spans for scope in g.scope_spans for s in scope.spans]
    return span


async def test_answer_is_the_message(gateway: Gateway) -> None:
    answers = []
    await in_thread(gateway, lambda client: answers.append(ask(client)))
    assert answers == [ANSWER]


@pytest.mark.parametrize("traced", [False, True], ids=["untraced", "traced"])
async def test_error_is_the_one_that_the_gateway_raised(traced: bool, gateway: Gateway) -> None:
    def work(client: MeshClient) -> None:
        with pytest.raises(InvalidInput, match="no such tensor"):
            ask(client, "bad")
        assert ask(client) == ANSWER

    await in_thread(gateway, work, traced=traced)


def raised_by(address: str, timeout_s: float, pipeline: str) -> type[MeshError]:
    with MeshClient(address, timeout_s) as client, pytest.raises(MeshError) as caught:
        client.call("ListPipelines", RunRequest(pipeline=pipeline), ListPipelinesResponse)
    return caught.type


async def test_gateway_that_does_not_answer_in_time(gateway: Gateway) -> None:
    kind = await asyncio.to_thread(raised_by, gateway.address, 0.1, "hang")
    assert kind is DeadlineExceeded


async def test_gateway_that_is_away_is_unavailable() -> None:
    assert await asyncio.to_thread(raised_by, "127.0.0.1:1", 5, "") is StageUnavailable


async def test_call_that_is_not_traced_brings_no_context(gateway: Gateway) -> None:
    def work(client: MeshClient) -> None:
        ask(client)
        assert client.trace_id == ""

    await in_thread(gateway, work)
    assert [request.trace for request in gateway.requests] == [b""]


async def test_every_traced_call_is_a_sampled_trace_of_its_own(gateway: Gateway) -> None:
    ids: list[str] = []

    def work(client: MeshClient) -> None:
        for _ in range(3):
            ask(client)
            ids.append(client.trace_id)

    await in_thread(gateway, work, traced=True)
    assert len(set(ids)) == 3
    assert [request.trace[:16].hex() for request in gateway.requests] == ids
    assert all(is_sampled(request.trace) for request in gateway.requests)
    for trace_id, request in zip(ids, gateway.requests, strict=True):
        span = stored(gateway, trace_id)
        assert span.span_id == request.trace[16:24]  # the gateway's span will be its child
        assert (span.name, span.kind) == (f"{SERVICE}/ListPipelines", Span.SPAN_KIND_CLIENT)
        assert span.parent_span_id == b""


async def test_sampler_of_the_environment_does_not_hide_a_call_of_a_person(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    await in_thread(gateway, ask, traced=True)
    assert is_sampled(gateway.requests[0].trace)


async def test_span_of_a_call_that_failed_is_an_error(gateway: Gateway) -> None:
    ids: list[str] = []

    def work(client: MeshClient) -> None:
        with pytest.raises(InvalidInput):
            ask(client, "bad")
        ids.append(client.trace_id)

    await in_thread(gateway, work, traced=True)
    span = stored(gateway, ids[0])
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert span.status.message == "no such tensor"


async def test_request_of_the_wrong_method_is_told(gateway: Gateway) -> None:
    def work(client: MeshClient) -> None:
        with pytest.raises(MeshError, match=r"(?i)method not found"):
            client.call("Nope", ListPipelinesRequest(), ListPipelinesResponse)

    await in_thread(gateway, work)


@pytest.mark.parametrize("traced", [False, True])
async def test_stream_is_told_message_by_message(gateway: Gateway, traced: bool) -> None:
    def listen(text: str) -> tuple[list[str], str]:
        with MeshClient(gateway.address, traced=traced) as client:
            request = GenerateRequest(text=text)
            responses = list(client.stream("Generate", request, GenerateResponse))
            return [response.text for response in responses[:-1]], responses[-1].finish_reason

    assert await asyncio.to_thread(listen, "abc") == (["a", "b", "c"], "stop")
    assert bool(gateway.requests[0].trace) == traced


async def test_stream_that_fails_raises_after_what_was_told(gateway: Gateway) -> None:
    told = []

    def listen() -> None:
        with MeshClient(gateway.address) as client:
            for response in client.stream(
                "Generate", GenerateRequest(text="bad"), GenerateResponse
            ):
                told.append(response.text)

    with pytest.raises(InvalidInput, match="'bad' came"):
        await asyncio.to_thread(listen)
    assert told == ["b", "a", "d"]
