"""Every request has the same layers in the same order, and its span tells what its caller got."""

import asyncio
import logging
import time

import pytest
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import NoOpTracer, SpanKind, StatusCode

from mesh.errors import InternalError, InvalidInput, MeshError
from mesh.item import Handler, Layer, Reply, Request, Timings
from mesh.layers import errors, logging_failures, stack, standard_layers, tracing
from mesh.status import code_of, from_status
from mesh.telemetry import BATCH_ROWS, TARGET, is_sampled, start_span
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
from tests.mesh.test_status import all_errors

METHOD = "mesh.v1.Infer/Run"
FAULTS = {"DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE"}


def raising(error: Exception) -> Handler:
    async def handler(request: Request) -> Reply:
        raise error

    return handler


def answering(timings: Timings | None = None) -> Handler:
    async def handler(request: Request) -> Reply:
        return Reply(b"answer", timings=timings)

    return handler


async def served(spans: Spans, handler: Handler, trace: bytes = SAMPLED) -> Reply:
    """Run one request through the standard layers."""
    return await stack(handler, standard_layers(spans.tracer, METHOD))(
        Request("t", b"", trace=trace)
    )


async def test_first_layer_of_the_list_is_the_outermost() -> None:
    seen = []

    def noting(name: str) -> Layer:
        def layer(handler: Handler) -> Handler:
            async def noted(request: Request) -> Reply:
                seen.append(f"{name} in")
                reply = await handler(request)
                seen.append(f"{name} out")
                return reply

            return noted

        return layer

    await stack(answering(), [noting("a"), noting("b")])(Request("t", b""))
    assert seen == ["a in", "b in", "b out", "a out"]


async def test_span_and_log_line_have_the_status_that_the_caller_gets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    spans = Spans()
    reply = await served(spans, raising(InvalidInput("no tensor 'x'")))
    assert isinstance(reply.error(), InvalidInput)
    assert attributes(spans.one(METHOD))[STATUS] == "INVALID_ARGUMENT"
    (record,) = caplog.records
    assert vars(record)["code"] == "INVALID_ARGUMENT"
    assert vars(record)["error"] == "no tensor 'x'"
    assert vars(record)["trace_id"] == TRACE_ID.hex()


async def test_other_order_of_the_layers_loses_the_span() -> None:
    """What the test above guards: with errors outside, an error passes tracing by."""
    spans = Spans()
    wrong = [errors, tracing(spans.tracer, METHOD), logging_failures(METHOD)]
    await stack(raising(InvalidInput("no")), wrong)(Request("t", b"", trace=SAMPLED))
    assert not spans.all


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
async def test_server_span_is_an_error_only_for_a_fault_of_the_server(
    kind: type[MeshError], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    spans = Spans()
    await served(spans, raising(kind("why")))
    span = spans.one(METHOD)
    code = code_of(kind()).name
    fault = code in FAULTS
    assert attributes(span)[STATUS] == code
    assert attributes(span).get("error.type") == (code if fault else None)
    assert span.status.status_code is (StatusCode.ERROR if fault else StatusCode.UNSET)
    assert span.status.description == ("why" if fault else None)
    assert [record.levelno for record in caplog.records] == [
        logging.WARNING if fault else logging.INFO
    ]


async def test_unexpected_error_is_a_fault_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    spans = Spans()
    reply = await served(spans, raising(ZeroDivisionError("secret")))
    assert reply.status is not None
    assert type(from_status(reply.status)) is InternalError
    span = spans.one(METHOD)
    assert span.status.status_code is StatusCode.ERROR
    assert "secret" not in str(span.to_json())
    assert "secret" in caplog.text  # the traceback


async def test_success_is_a_span_and_no_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    spans = Spans()
    assert (await served(spans, answering())).payload == b"answer"
    span = spans.one(METHOD)
    assert span.kind is SpanKind.SERVER
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span) == {
        "rpc.system.name": "grpc", "rpc.method": METHOD, TARGET: "t", STATUS: "OK"
    }  # fmt: skip
    assert parent_id(span) == int.from_bytes(SAMPLED[16:24], "big")
    assert not caplog.records


async def test_span_begins_when_the_request_came() -> None:
    spans = Spans()
    request = Request("t", b"", trace=SAMPLED, received=time.monotonic() - 2)
    await stack(answering(), standard_layers(spans.tracer, METHOD))(request)
    span = spans.one(METHOD)
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time - span.start_time == pytest.approx(2e9, rel=0.2)


async def test_unsampled_item_makes_no_span_and_keeps_its_context() -> None:
    seen = []

    async def note(request: Request) -> Reply:
        seen.append(request.trace)
        return Reply(timings=Timings(1, 1, 1))

    spans = Spans()
    await served(spans, note, UNSAMPLED)
    await served(spans, raising(ZeroDivisionError()), UNSAMPLED)
    assert seen == [UNSAMPLED]
    assert not spans.all


@pytest.mark.parametrize("sampled", [True, False], ids=["sampled", "not_sampled"])
async def test_request_without_context_begins_a_trace_as_the_sampler_decides(sampled: bool) -> None:
    seen = []

    async def note(request: Request) -> Reply:
        seen.append(request.trace)
        return Reply(timings=Timings(1, 1, 1))

    spans = Spans(ALWAYS_ON if sampled else ALWAYS_OFF)
    await served(spans, note, b"")
    (trace,) = seen
    assert len(trace) == 25
    assert any(trace[:16])
    assert is_sampled(trace) is sampled
    assert len(spans.all) == (4 if sampled else 0)
    if sampled:
        span = spans.one(METHOD)
        assert span.parent is None
        assert span_id(span) == int.from_bytes(trace[16:24], "big")


@pytest.mark.parametrize(
    "sampler", [ALWAYS_OFF, DEFAULT_OFF, TraceIdRatioBased(0)], ids=["off", "parent", "ratio"]
)
@pytest.mark.parametrize("trace", [b"", UNSAMPLED], ids=["no_context", "unsampled"])
async def test_request_that_is_not_sampled_costs_no_span_object(
    trace: bytes, sampler: Sampler
) -> None:
    spans = Spans(sampler)
    for _ in range(20):
        await served(spans, answering(Timings(1, 1, 1)), trace)
    assert spans.ids.spans == 0


def test_span_object_that_records_nothing_is_counted() -> None:
    """What the test above guards: the SDK makes one to tell that there is none."""
    spans = Spans(ALWAYS_OFF)
    assert not start_span(spans.tracer, METHOD).is_recording()
    assert spans.ids.spans == 1


@pytest.mark.parametrize("trace", [b"", SAMPLED], ids=["root", "child"])
async def test_request_that_is_sampled_needs_no_span_object_of_the_sdk_s_either(
    trace: bytes,
) -> None:
    spans = Spans()
    await served(spans, answering(Timings(1, 1, 1)), trace)
    assert (spans.ids.spans, len(spans.all)) == (0, 4)


async def test_disabled_sdk_passes_requests_on_so_that_nobody_behind_begins_a_trace() -> None:
    seen = []

    async def note(request: Request) -> Reply:
        seen.append(request.trace)
        return Reply()

    handler = stack(note, standard_layers(NoOpTracer(), METHOD))
    for trace in (b"", UNSAMPLED, SAMPLED):
        await handler(Request("t", b"", trace=trace))
    assert seen == [bytes(25), UNSAMPLED, SAMPLED]
    behind = Spans()
    await served(behind, answering(), seen[0])
    assert not behind.all


async def test_handler_sees_the_span_as_the_parent_of_its_own() -> None:
    seen = []

    async def note(request: Request) -> Reply:
        seen.append(request.trace)
        return Reply()

    spans = Spans()
    await served(spans, note)
    assert seen[0][:16] == TRACE_ID
    assert int.from_bytes(seen[0][16:24], "big") == span_id(spans.one(METHOD))


async def test_timings_are_children_one_after_the_other() -> None:
    spans = Spans()
    received = time.monotonic()
    request = Request("t", b"", trace=SAMPLED, received=received)
    handler = answering(Timings(queue=0.1, batch=0.02, run=0.3, batch_rows=4))
    await stack(handler, standard_layers(spans.tracer, METHOD))(request)
    parent = spans.one(METHOD)
    children = [spans.one(name) for name in ("queue", "batch", "run")]
    assert {parent_id(child) for child in children} == {span_id(parent)}
    took = [(child.end_time or 0) - (child.start_time or 0) for child in children]
    assert took == pytest.approx([0.1e9, 0.02e9, 0.3e9], abs=2e6)
    starts = [(child.start_time or 0) - (parent.start_time or 0) for child in children]
    assert starts == pytest.approx([0, 0.1e9, 0.12e9], abs=2e6)
    assert [attributes(child) for child in children] == [{}, {}, {BATCH_ROWS: 4}]
    assert {child.kind for child in children} == {SpanKind.INTERNAL}


async def test_run_links_to_its_batch() -> None:
    spans = Spans()
    batch = bytes(range(101, 126))
    await served(spans, answering(Timings(0.1, 0.1, 0.1, batch_rows=2, batch_trace=batch)))
    assert [len(spans.one(name).links) for name in ("queue", "batch", "run")] == [0, 0, 1]
    (link,) = spans.one("run").links
    assert link.context.trace_id == int.from_bytes(batch[:16], "big")
    assert link.context.span_id == int.from_bytes(batch[16:24], "big")


async def test_time_that_was_not_spent_makes_no_child() -> None:
    spans = Spans()
    await served(spans, answering(Timings(run=0.1)))
    assert [span.name for span in spans.all] == ["run", METHOD]
    assert attributes(spans.one("run")) == {}


async def test_timings_that_have_spans_already_make_none() -> None:
    spans = Spans()
    await served(spans, answering(Timings(0.1, 0.1, 0.1, traced=True)))
    assert [span.name for span in spans.all] == [METHOD]


async def test_caller_that_gives_up_ends_the_span() -> None:
    spans = Spans()
    began = asyncio.Event()

    async def hang(request: Request) -> Reply:
        began.set()
        await asyncio.Event().wait()
        return Reply()

    task = asyncio.create_task(served(spans, hang))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    span = spans.one(METHOD)
    assert attributes(span)[STATUS] == "CANCELLED"
    assert span.status.status_code is StatusCode.UNSET


async def test_context_of_a_wrong_length_makes_no_span_and_no_error() -> None:
    spans = Spans()
    for trace in (b"x", SAMPLED + b"\1", SAMPLED[:24]):
        assert (await served(spans, answering(), trace)).payload == b"answer"
    assert not spans.all
