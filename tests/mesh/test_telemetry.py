"""Trace contexts pass unchanged, garbage begins a new trace, `OTEL_*` says where spans go."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import Link, NoOpTracer, SpanKind, StatusCode

from gateway.trace_store import TraceStore, trace_service
from mesh.settings import TelemetrySettings, load
from mesh.telemetry import (
    MAX_LINKS,
    FixedResource,
    Tracing,
    child_of,
    configure,
    context_of,
    end_rpc_span,
    epoch_ns,
    from_traceparent,
    is_sampled,
    start_span,
    to_traceparent,
    trace_of,
    write_rpc_span,
    write_span,
)
from tests.mesh.spans import SAMPLED, STATUS, TRACE_ID, UNSAMPLED, Spans, attributes

HEX = "0af7651916cd43dd8448eb211c80319c"
HEADER = f"00-{HEX}-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def otel_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the variables of whoever runs the tests; everything is sampled."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_on")


def test_traceparent_is_read_and_written() -> None:
    trace = from_traceparent(HEADER)
    assert trace == bytes.fromhex(f"{HEX}b7ad6b716920333101")
    assert to_traceparent(trace) == HEADER


@given(st.binary(min_size=25, max_size=25))
def test_any_context_comes_back(trace: bytes) -> None:
    wanted = trace if any(trace[:16]) and any(trace[16:24]) else b""
    assert from_traceparent(to_traceparent(trace)) == wanted


@pytest.mark.parametrize(
    "header",
    [
        pytest.param("", id="empty"),
        pytest.param("garbage", id="word"),
        pytest.param(HEADER.replace("-", "_"), id="other_dashes"),
        pytest.param(HEADER[:-1], id="cut"),
        pytest.param(HEADER[:-3], id="no_flags"),
        pytest.param(f"{HEADER}0", id="one_more"),
        pytest.param(f"{HEADER}-more", id="more_in_version_00"),
        pytest.param(f"ff{HEADER[2:]}", id="version_ff"),
        pytest.param(f"zz{HEADER[2:]}", id="version_no_number"),
        pytest.param(HEADER.replace("b7ad", "B7AD"), id="upper_case"),
        pytest.param(HEADER.replace("b7ad", "  ad"), id="spaces"),
        pytest.param(HEADER.replace("b7ad", "g7ad"), id="no_hex"),
        pytest.param(HEADER.replace(HEX, "0" * 32), id="trace_id_0"),
        pytest.param(HEADER.replace("b7ad6b7169203331", "0" * 16), id="span_id_0"),
        pytest.param(HEADER.replace("b7ad", "٣٣٣٣"), id="other_digits"),
        pytest.param("\0" * 55, id="zero_bytes"),
    ],
)
def test_garbage_is_no_context(header: str) -> None:
    assert from_traceparent(header) == b""


@given(st.text(max_size=60) | st.from_regex(r"[0-9a-f-]{0,60}"))
def test_any_text_is_a_context_of_25_bytes_or_none(header: str) -> None:
    assert len(from_traceparent(header)) in (0, 25)


def test_later_version_is_read_as_far_as_it_is_known() -> None:
    assert from_traceparent(f"01{HEADER[2:]}-what-ever") == from_traceparent(HEADER)


@pytest.mark.parametrize(
    ("trace", "sampled"),
    [(SAMPLED, True), (UNSAMPLED, False), (b"", False), (SAMPLED[:24], False)],
    ids=["sampled", "unsampled", "none", "cut"],
)
def test_is_sampled(trace: bytes, sampled: bool) -> None:
    assert is_sampled(trace) is sampled


def test_span_begins_under_the_context_of_another_process() -> None:
    spans = Spans()
    span = start_span(spans.tracer, "s", SAMPLED)
    assert trace_of(span)[:16] == TRACE_ID
    assert trace_of(span)[24:] == b"\1"
    assert context_of(trace_of(span)).span_id == span.get_span_context().span_id
    span.end()
    parent = spans.one("s").parent
    assert parent is not None
    assert parent.is_remote
    assert parent.span_id == context_of(SAMPLED).span_id


def test_moment_of_the_monotonic_clock_is_a_time_since_1970() -> None:
    assert epoch_ns(time.monotonic()) == pytest.approx(time.time_ns(), abs=10**8)
    assert epoch_ns(time.monotonic() - 5) == pytest.approx(time.time_ns() - 5 * 10**9, abs=10**8)


@pytest.mark.parametrize(
    ("kind", "code", "name", "error"),
    [
        pytest.param(SpanKind.SERVER, 0, "OK", False, id="server_ok"),
        pytest.param(SpanKind.SERVER, 3, "INVALID_ARGUMENT", False, id="server_invalid_argument"),
        pytest.param(
            SpanKind.SERVER, 8, "RESOURCE_EXHAUSTED", False, id="server_resource_exhausted"
        ),
        pytest.param(SpanKind.SERVER, 13, "INTERNAL", True, id="server_internal"),
        pytest.param(SpanKind.SERVER, 99, "UNKNOWN", True, id="server_unknown_number"),
        pytest.param(SpanKind.CLIENT, 0, "OK", False, id="client_ok"),
        pytest.param(SpanKind.CLIENT, 3, "INVALID_ARGUMENT", True, id="client_invalid_argument"),
    ],
)
def test_span_of_a_call_tells_its_status(kind: SpanKind, code: int, name: str, error: bool) -> None:
    spans = Spans()
    end_rpc_span(start_span(spans.tracer, "s", kind=kind), code, "why")
    span = spans.one("s")
    assert span.status.status_code is (StatusCode.ERROR if error else StatusCode.UNSET)
    assert ("error.type" in attributes(span)) is error
    assert span.status.description == ("why" if error else None)
    assert attributes(span)[STATUS] == name


@pytest.mark.parametrize("kind", [SpanKind.SERVER, SpanKind.CLIENT], ids=lambda kind: kind.name)
@pytest.mark.parametrize("code", [0, 3, 13, 99], ids=str)
def test_written_span_is_as_one_of_the_sdk_s(kind: SpanKind, code: int) -> None:
    spans = Spans()
    end_rpc_span(start_span(spans.tracer, "s", SAMPLED, kind, attributes={"a": 1}), code, "why")
    write_rpc_span(
        spans.tracer, "s", child_of(SAMPLED), SAMPLED, kind, (code, "why"),
        started=0, ended=1, attributes={"a": 1},
    )  # fmt: skip
    made, written = (json.loads(span.to_json()) for span in spans.all)
    for found in (made, written):
        assert found["context"].pop("span_id") != SAMPLED[16:24].hex()
        found.pop("start_time"), found.pop("end_time")
    assert made == written


def test_written_span_has_its_ids_its_times_and_the_way_out_of_the_tracer() -> None:
    spans = Spans(ALWAYS_OFF)  # whoever writes has decided already
    now, link = time.monotonic(), Link(context_of(UNSAMPLED))
    write_span(spans.tracer, "root", SAMPLED, started=now - 2, ended=now - 1, links=[link])
    span = spans.one("root")
    context = span.get_span_context()
    assert context is not None
    assert (context.trace_id, context.span_id) == context_of(SAMPLED)[:2]
    assert span.parent is None
    assert span.start_time == pytest.approx(time.time_ns() - 2e9, abs=10**8)
    assert (span.end_time or 0) - (span.start_time or 0) == pytest.approx(1e9, abs=2)
    assert list(span.links) == [link]


def test_tracer_that_is_not_the_sdk_s_writes_nothing() -> None:
    write_span(NoOpTracer(), "s", SAMPLED, started=0, ended=1)


@given(st.binary(min_size=25, max_size=25))
def test_child_has_the_trace_and_flags_of_its_parent(trace: bytes) -> None:
    child = child_of(trace)
    assert (child[:16], child[24:], len(child)) == (trace[:16], trace[24:], 25)
    assert child[16:24] != trace[16:24]


@dataclass
class Collector:
    """An OTLP receiver at an address."""

    address: str
    received: list[ResourceSpans] = field(default_factory=list)

    def names(self) -> list[str]:
        return [s.name for g in self.received for scope in g.scope_spans for s in scope.spans]


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    server = grpc.aio.server()
    found = Collector(f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")

    class Receiving(TraceStore):
        def add(self, groups: object) -> None:
            found.received.extend(groups)  # type: ignore[arg-type]

    name, methods = trace_service(Receiving())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))
    await server.start()
    yield found
    await server.stop(None)


async def traced(exporter: InMemorySpanExporter | None) -> Tracing:
    """Make one span of each tracer, as the variables say, and export what there is."""
    tracing = configure("infer", load(TelemetrySettings), exporter)
    start_span(tracing.tracer, "one").end()
    start_span(tracing.sampled, "batch").end()
    await asyncio.to_thread(tracing.shutdown)
    return tracing


def names(memory: InMemorySpanExporter) -> list[str]:
    return [span.name for span in memory.get_finished_spans()]


def resource(memory: InMemorySpanExporter) -> dict[str, object]:
    span: ReadableSpan = memory.get_finished_spans()[0]
    return dict(span.resource.attributes)


async def test_without_variables_spans_go_to_the_given_exporter() -> None:
    memory = InMemorySpanExporter()
    await traced(memory)
    assert names(memory) == ["one", "batch"]
    assert resource(memory)["service.name"] == "infer"
    assert resource(memory)["service.namespace"] == "trtmesh"


async def test_without_variables_and_exporter_nothing_goes_anywhere() -> None:
    await traced(None)


@pytest.mark.parametrize(
    "variable", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]
)
async def test_endpoint_gets_the_spans_and_the_given_exporter_none(
    variable: str, monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    monkeypatch.setenv(variable, collector.address)
    memory = InMemorySpanExporter()
    await traced(memory)
    assert collector.names() == ["one", "batch"]
    assert names(memory) == []


async def test_exporter_none_sends_nothing_to_the_endpoint(
    monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    await traced(None)
    assert collector.names() == []


async def test_disabled_sdk_makes_no_span_at_all(
    monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    memory = InMemorySpanExporter()
    await traced(memory)
    assert collector.names() == names(memory) == []


async def test_sampler_decides_on_requests_and_not_on_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch span exists because a member was sampled."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    memory = InMemorySpanExporter()
    await traced(memory)
    assert names(memory) == ["batch"]


async def test_without_a_sampler_few_requests_begin_a_trace_and_every_sampled_one_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OTEL_TRACES_SAMPLER")
    memory = InMemorySpanExporter()
    tracing = configure("gateway", load(TelemetrySettings), memory)
    for _ in range(2000):
        start_span(tracing.tracer, "root").end()
    for _ in range(10):
        start_span(tracing.tracer, "child", SAMPLED).end()
    await asyncio.to_thread(tracing.shutdown)
    assert 1 <= names(memory).count("root") < 80  # 20 is expected
    assert names(memory).count("child") == 10


async def test_service_name_of_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    memory = InMemorySpanExporter()
    await traced(memory)
    assert resource(memory)["service.name"] == "ours"


@pytest.mark.parametrize(
    ("variable", "links"),
    [(None, 200), ("300", 200), ("5", 5)],
    ids=["ours", "env_300", "env_5"],
)
async def test_batch_span_keeps_more_links_than_the_sdk_would(
    variable: str | None, links: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", variable)
    memory = InMemorySpanExporter()
    tracing = configure("infer", load(TelemetrySettings), memory)
    members = [Link(context_of(bytes([n + 1]) * 24 + b"\1")) for n in range(200)]
    for tracer in (tracing.tracer, tracing.sampled):
        start_span(tracer, "batch", links=members).end()
    await asyncio.to_thread(tracing.shutdown)
    assert [len(span.links) for span in memory.get_finished_spans()] == [links, links]
    assert MAX_LINKS == 1024


def test_sdk_without_our_limit_would_keep_fewer() -> None:
    """What the test above guards."""
    spans = Spans()
    members = [Link(context_of(bytes([n + 1]) * 24 + b"\1")) for n in range(200)]
    start_span(spans.tracer, "batch", links=members).end()
    assert len(spans.one("batch").links) == 128


def test_resource_that_is_hashed_once_is_the_same_key() -> None:
    resource = Resource({"service.name": "infer"}, "schema")
    fixed, other = FixedResource(resource), FixedResource(Resource({"service.name": "other"}))
    assert (hash(fixed), fixed) == (hash(resource), resource)
    assert {resource: 1, other: 2}[fixed] == 1


async def test_collector_that_is_away_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("mesh.telemetry.SHUTDOWN_S", 0.2)
    started = time.monotonic()
    await traced(None)
    assert time.monotonic() - started < 5
