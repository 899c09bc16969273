"""The store keeps the newest traces, bounded, and finds the batches that a trace links to."""

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, TracesData

from gateway import trace_store
from gateway.trace_store import (
    MAX_SPANS,
    MAX_TRACES,
    TraceStore,
    trace_handler,
    trace_service,
)
from mesh.errors import InvalidInput, NotFound
from mesh.item import Request
from protos.mesh.v1 import mesh_pb2
from tests.mesh.cli.test_trace_view import attribute


def key_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def group(service: str, *spans: Span) -> ResourceSpans:
    found = ResourceSpans(scope_spans=[ScopeSpans(spans=spans)])
    found.resource.attributes.append(attribute("service.name", service))
    return found


def request_span(trace: int, name: str = "request", *links: int) -> Span:
    span = Span(trace_id=key_of(trace), span_id=b"12345678", parent_span_id=b"parent_8", name=name)
    for link in links:
        span.links.add(trace_id=key_of(link), span_id=b"12345678")
    return span


def batch_span(trace: int, *links: int) -> Span:
    span = request_span(trace, "batch", *links)
    span.parent_span_id = b""
    return span


def rows(data: TracesData) -> list[tuple[str, str]]:
    """Return service and name of each span."""
    return [
        (found.resource.attributes[0].value.string_value, span.name)
        for found in data.resource_spans
        for scope in found.scope_spans
        for span in scope.spans
    ]


def kept(store: TraceStore) -> list[int]:
    return [int.from_bytes(key, "big") for key in store._traces]


def test_spans_of_several_exports_are_one_trace() -> None:
    store = TraceStore()
    store.add([group("gateway", request_span(1, "a"), request_span(2, "other"))])
    store.add([group("infer", request_span(1, "b"), request_span(1, "c"))])
    trace_id, data = store.get(key_of(1).hex())
    assert trace_id == key_of(1).hex()
    assert rows(data) == [("gateway", "a"), ("infer", "b"), ("infer", "c")]


def test_without_an_id_the_newest_trace_of_a_request_is_meant() -> None:
    store = TraceStore()
    store.add([group("gateway", request_span(1)), group("gateway", request_span(2))])
    store.add([group("infer", batch_span(3))])
    assert store.get("")[0] == key_of(2).hex()


def test_batch_that_a_trace_links_to_comes_with_it() -> None:
    store = TraceStore()
    store.add([group("infer", request_span(1, "run", 7), batch_span(7, 1, 2))])
    store.add([group("infer", request_span(2, "run", 7))])
    _, data = store.get(key_of(1).hex())
    assert rows(data) == [("infer", "run"), ("infer", "batch")]
    _, data = store.get(key_of(7).hex())
    assert sorted(rows(data)) == [("infer", "batch"), ("infer", "run"), ("infer", "run")]


def test_link_to_a_trace_that_is_gone_is_passed_over() -> None:
    store = TraceStore()
    store.add([group("infer", request_span(1, "run", 7, 1))])
    assert rows(store.get(key_of(1).hex())[1]) == [("infer", "run")]


def test_oldest_traces_go_when_there_are_too_many() -> None:
    store = TraceStore()
    for number in range(1, MAX_TRACES + 11):
        store.add([group("gateway", request_span(number))])
    assert kept(store) == list(range(11, MAX_TRACES + 11))
    assert store._spans == MAX_TRACES
    with pytest.raises(NotFound, match=f"newest {MAX_TRACES}"):
        store.get(key_of(1).hex())


def test_oldest_traces_go_when_there_are_too_many_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_SPANS == 50_000
    monkeypatch.setattr(trace_store, "MAX_SPANS", 100)
    store = TraceStore()
    for number in range(1, 6):
        store.add([group("gateway", *[request_span(number)] * 30)])
    assert kept(store) == [3, 4, 5]
    assert store._spans == 90


def test_trace_that_is_too_large_alone_leaves_an_empty_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trace_store, "MAX_SPANS", 100)
    store = TraceStore()
    store.add([group("gateway", *[request_span(1)] * 101)])
    assert (kept(store), store._spans) == ([], 0)
    store.add([group("gateway", request_span(2))])
    assert kept(store) == [2]


@pytest.mark.parametrize(
    "trace_id", ["zz", "0", "ab", key_of(1).hex()[:-2], key_of(1).hex() + "00", " " * 32], ids=repr
)
def test_what_is_no_id_is_refused(trace_id: str) -> None:
    store = TraceStore()
    store.add([group("gateway", request_span(1))])
    with pytest.raises(InvalidInput, match="32 hexadecimal digits"):
        store.get(trace_id)


@pytest.mark.parametrize("trace_id", [key_of(2).hex(), ""], ids=["id", "newest"])
def test_trace_that_is_not_kept_is_told(trace_id: str) -> None:
    with pytest.raises(NotFound, match="is not kept here"):
        TraceStore().get(trace_id)


def test_id_may_be_in_capitals() -> None:
    store = TraceStore()
    span = request_span(0xABC)
    store.add([group("gateway", span)])
    assert store.get(span.trace_id.hex().upper())[0] == span.trace_id.hex()


async def test_other_processes_export_over_otlp() -> None:
    store = TraceStore()
    server = grpc.aio.server()
    name, methods = trace_service(store)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        export: grpc.aio.UnaryUnaryMultiCallable[
            ExportTraceServiceRequest, ExportTraceServiceResponse
        ] = channel.unary_unary(
            f"/{name}/Export",
            ExportTraceServiceRequest.SerializeToString,
            ExportTraceServiceResponse.FromString,
        )
        sent = ExportTraceServiceRequest(resource_spans=[group("infer", request_span(1))])
        await export(sent)
    await server.stop(None)
    assert rows(store.get("")[1]) == [("infer", "request")]


@pytest.mark.parametrize("stored", [True, False])
async def test_get_trace_answers_from_the_store_or_says_where_traces_went(stored: bool) -> None:
    store = TraceStore()
    store.add([group("gateway", request_span(1))])
    handler = trace_handler(store if stored else None)
    request = Request("GetTrace", mesh_pb2.GetTraceRequest().SerializeToString())
    if not stored:
        with pytest.raises(NotFound, match="sent to OTEL_EXPORTER_OTLP_ENDPOINT"):
            await handler(request)
        return
    answer = mesh_pb2.GetTraceResponse.FromString((await handler(request)).payload)
    assert answer.trace_id == key_of(1).hex()
    assert rows(TracesData.FromString(answer.traces)) == [("gateway", "request")]
