"""Each attempt of a sampled request is a CLIENT span, the parent of the replica's SERVER span."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from mesh.client import ClientLimits, StageClient
from mesh.errors import InvalidInput, StageUnavailable
from mesh.item import Handler, Reply, Request
from mesh.layers import stack, standard_layers
from mesh.telemetry import ATTEMPT, TARGET
from tests.conftest import STAGE, echo, eventually, running_replica
from tests.mesh.spans import (
    SAMPLED,
    STATUS,
    TRACE_ID,
    UNSAMPLED,
    Spans,
    attributes,
    parent_id,
    span_id,
)

METHOD = f"{STAGE}/Run"


@asynccontextmanager
async def traced_client(spans: Spans, *handlers: Handler) -> AsyncIterator[StageClient]:
    """Connect a client with a tracer to a replica for each handler."""
    async with AsyncExitStack() as context:
        replicas = [
            await context.enter_async_context(running_replica(handler)) for handler in handlers
        ]
        targets = ",".join(replica.address for replica in replicas)
        limits = ClientLimits(backoff_s=0.02)
        client = StageClient(STAGE, targets, limits=limits, tracer=spans.tracer)
        await context.enter_async_context(client)
        await eventually(lambda: len(client.replicas) == len(replicas))
        yield client


async def test_call_is_one_client_span_under_the_caller_s() -> None:
    spans = Spans()
    async with traced_client(spans, echo) as client:
        await client.call(Request("digits", b"x", trace=SAMPLED))
        span = spans.one(METHOD)
        assert span.kind is SpanKind.CLIENT
        assert parent_id(span) == int.from_bytes(SAMPLED[16:24], "big")
        found = attributes(span)
        assert (found[TARGET], found[ATTEMPT], found[STATUS]) == ("digits", 0, "OK")
        assert found["server.address"] == client.replicas[0].address


async def test_server_span_is_the_child_of_the_attempt_it_answers() -> None:
    spans, server = Spans(), Spans()
    handler = stack(echo, standard_layers(server.tracer, METHOD))
    async with traced_client(spans, handler) as client:
        await client.call(Request("t", b"", trace=SAMPLED))
    assert parent_id(server.one(METHOD)) == span_id(spans.one(METHOD))
    context = server.one(METHOD).get_span_context()
    assert context is not None
    assert context.trace_id.to_bytes(16, "big") == TRACE_ID


@pytest.mark.parametrize("trace", [UNSAMPLED, b""], ids=["unsampled", "none"])
async def test_call_that_is_not_sampled_makes_no_span(trace: bytes) -> None:
    spans = Spans()
    async with traced_client(spans, echo) as client:
        await client.call(Request("t", b"", trace=trace))
    assert not spans.all


async def test_error_that_is_answered_is_an_error_of_the_client_span() -> None:
    async def refuse(request: Request) -> Reply:
        raise InvalidInput("no such tensor")

    spans = Spans()
    async with traced_client(spans, refuse) as client:
        await client.call(Request("t", b"", trace=SAMPLED))
    span = spans.one(METHOD)
    assert attributes(span)[STATUS] == "INVALID_ARGUMENT"
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "no such tensor"


async def test_every_attempt_is_counted() -> None:
    failures = 2

    async def sick_at_first(request: Request) -> Reply:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise StageUnavailable("sick")
        return Reply()

    spans = Spans()
    async with traced_client(spans, sick_at_first) as client:
        reply = await client.call(Request("t", b"", trace=SAMPLED))
        assert reply.error() is None
    found = [attributes(span) for span in spans.named(METHOD)]
    assert [(row[ATTEMPT], row[STATUS]) for row in found] == [
        (0, "UNAVAILABLE"), (1, "UNAVAILABLE"), (2, "OK")
    ]  # fmt: skip


async def test_attempt_that_is_cancelled_ends_its_span() -> None:
    began = asyncio.Event()

    async def hang(request: Request) -> Reply:
        began.set()
        await asyncio.Event().wait()
        return Reply()

    spans = Spans()
    async with traced_client(spans, hang) as client:
        call = asyncio.create_task(client.call(Request("t", b"", trace=SAMPLED)))
        await began.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert attributes(spans.one(METHOD))[STATUS] == "CANCELLED"
