"""A trace is a tree of lines for people and a file for Jaeger's page."""

import json
from typing import Any

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import (
    ResourceSpans,
    ScopeSpans,
    Span,
    Status,
    TracesData,
)

from mesh.cli.trace_view import jaeger_json, tree

TRACE = bytes(range(16))
BATCH = bytes(range(16, 32))
START = 1_700_000_000_000_000_000


def attribute(key: str, value: str | int | bool | float) -> KeyValue:
    fields: dict[type, str] = {
        str: "string_value", int: "int_value", bool: "bool_value", float: "double_value"
    }  # fmt: skip
    return KeyValue(key=key, value=AnyValue(**{fields[type(value)]: value}))  # type: ignore[arg-type]


def span(
    key: int,
    parent: int,
    name: str,
    begin_ms: float,
    took_ms: float,
    kind: "Span.SpanKind.ValueType" = Span.SPAN_KIND_INTERNAL,
    trace: bytes = TRACE,
    **attributes: str | int,
) -> Span:
    start = START + int(begin_ms * 1e6)
    return Span(
        trace_id=trace,
        span_id=bytes([key] * 8),
        parent_span_id=bytes([parent] * 8) if parent else b"",
        name=name,
        kind=kind,
        start_time_unix_nano=start,
        end_time_unix_nano=start + int(took_ms * 1e6),
        attributes=[attribute(k.replace("_", "."), v) for k, v in attributes.items()],
    )


def group(service: str, *spans: Span, **more: str) -> ResourceSpans:
    found = ResourceSpans(scope_spans=[ScopeSpans(spans=spans)])
    found.resource.attributes.append(attribute("service.name", service))
    found.resource.attributes.extend(attribute(key, value) for key, value in more.items())
    return found


def example() -> TracesData:
    """A request through gateway and infer, whose run was in a batch of its own trace."""
    run = span(4, 3, "run", 4, 5)
    run.links.add(trace_id=BATCH, span_id=bytes([9] * 8))
    failed = span(5, 1, "mesh.v1.Postprocess/Run", 12, 1, Span.SPAN_KIND_CLIENT)
    failed.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message="no replica"))
    batch = span(9, 0, "batch digits", 4, 5, trace=BATCH, mesh_batch_items=2)
    return TracesData(resource_spans=[
        group("infer", run, span(3, 2, "mesh.v1.Infer/Run", 3, 8, Span.SPAN_KIND_SERVER), batch),
        group(
            "gateway",
            failed,
            span(2, 1, "mesh.v1.Infer/Run", 2, 10, Span.SPAN_KIND_CLIENT, mesh_attempt=0),
            span(1, 7, "mesh.v1.Mesh/Detect", 0, 20, Span.SPAN_KIND_SERVER, mesh_target="detect"),
        ),
    ])  # fmt: skip


def test_tree_is_sorted_by_time_and_indented_by_parent() -> None:
    lines = list(tree(example(), TRACE.hex()))
    assert [line[:64].rstrip() for line in lines] == [
        "gateway: mesh.v1.Mesh/Detect server",
        "  gateway: mesh.v1.Infer/Run client",
        "    infer: mesh.v1.Infer/Run server",
        "      infer: run",
        "  gateway: mesh.v1.Postprocess/Run client",
        "infer: batch digits",
    ]


def test_lines_tell_begin_and_duration_from_the_start_of_the_trace() -> None:
    lines = list(tree(example(), TRACE.hex()))
    times = [line[64:].split("ms")[0].split("+") for line in lines]
    assert [(float(begin), float(took)) for begin, took in times] == [
        (0, 20), (2, 10), (3, 8), (4, 5), (12, 1), (4, 5)
    ]  # fmt: skip


def test_lines_tell_attributes_links_and_errors() -> None:
    lines = list(tree(example(), TRACE.hex()))
    notes = [line.partition(" ms  ")[2].strip() for line in lines]
    assert notes == ["target=detect", "attempt=0", "", f"link={BATCH.hex()[:8]}",
                     "ERROR no replica", "items=2"]  # fmt: skip


def test_span_whose_parent_is_not_there_is_a_root() -> None:
    data = TracesData(resource_spans=[group("a", span(2, 1, "orphan", 0, 1))])
    (line,) = tree(data, TRACE.hex())
    assert line.startswith("a: orphan")


def test_nothing_is_no_lines() -> None:
    assert list(tree(TracesData(), TRACE.hex())) == []
    assert jaeger_json(TracesData()) == {"data": [], "total": 0, "errors": None}


def test_resource_without_a_name_is_unknown() -> None:
    data = TracesData(resource_spans=[
        ResourceSpans(scope_spans=[ScopeSpans(spans=[span(1, 0, "s", 0, 1)])])
    ])  # fmt: skip
    (line,) = tree(data, TRACE.hex())
    assert line.startswith("unknown: s")


@pytest.fixture
def jaeger() -> dict[str, Any]:
    """The example as Jaeger's page gets it."""
    found: dict[str, Any] = json.loads(json.dumps(jaeger_json(example())))
    return found


def spans_of(trace: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {span["spanID"]: span for span in trace["spans"]}


def test_jaeger_file_has_each_trace_with_its_spans(jaeger: dict[str, Any]) -> None:
    assert (jaeger["total"], jaeger["errors"]) == (2, None)
    assert {trace["traceID"]: len(trace["spans"]) for trace in jaeger["data"]} == {
        TRACE.hex(): 5, BATCH.hex(): 1
    }  # fmt: skip
    for trace in jaeger["data"]:
        assert {span["traceID"] for span in trace["spans"]} == {trace["traceID"]}


def test_jaeger_span_has_the_fields_of_its_query_api(jaeger: dict[str, Any]) -> None:
    found = spans_of(jaeger["data"][0])["03" * 8]
    assert found == {
        "traceID": TRACE.hex(),
        "spanID": "03" * 8,
        "operationName": "mesh.v1.Infer/Run",
        "references": [{"refType": "CHILD_OF", "traceID": TRACE.hex(), "spanID": "02" * 8}],
        "startTime": START // 1000 + 3000,
        "duration": 8000,
        "tags": [{"key": "span.kind", "type": "string", "value": "server"}],
        "logs": [],
        "processID": found["processID"],
        "warnings": None,
    }


def test_jaeger_references_are_the_parent_first_and_then_the_links(jaeger: dict[str, Any]) -> None:
    spans = spans_of(jaeger["data"][0])
    assert spans["04" * 8]["references"] == [
        {"refType": "CHILD_OF", "traceID": TRACE.hex(), "spanID": "03" * 8},
        {"refType": "FOLLOWS_FROM", "traceID": BATCH.hex(), "spanID": "09" * 8},
    ]
    assert spans_of(jaeger["data"][1])["09" * 8]["references"] == []


def test_jaeger_processes_are_the_services(jaeger: dict[str, Any]) -> None:
    trace = jaeger["data"][0]
    names = {
        span["operationName"]: trace["processes"][span["processID"]]["serviceName"]
        for span in trace["spans"]
    }
    assert names["run"] == "infer"
    assert names["mesh.v1.Mesh/Detect"] == "gateway"
    assert len(trace["processes"]) == 2
    tags = trace["processes"][trace["spans"][0]["processID"]]["tags"]
    assert tags == [{"key": "service.name", "type": "string", "value": "infer"}]


def test_replicas_of_a_service_are_processes_of_their_own() -> None:
    first, second = (
        group("infer", span(key, 0, "s", 0, 1), **{"service.instance.id": str(key)})
        for key in (1, 2)
    )
    (trace,) = jaeger_json(TracesData(resource_spans=[first, second, first]))["data"]
    assert [span["processID"] for span in trace["spans"]] == ["p1", "p2", "p1"]


def test_jaeger_error_is_a_tag(jaeger: dict[str, Any]) -> None:
    tags = {tag["key"]: tag["value"] for tag in spans_of(jaeger["data"][0])["05" * 8]["tags"]}
    assert tags["error"] is True
    assert tags["otel.status_description"] == "no replica"


def test_jaeger_tags_have_their_types() -> None:
    found = span(1, 0, "s", 0, 1)
    found.attributes.extend([
        attribute("text", "t"), attribute("flag", True), attribute("count", 3),
        attribute("ratio", 0.5),
        KeyValue(key="list", value=AnyValue(array_value=ArrayValue())),
    ])  # fmt: skip
    event = found.events.add(name="exception", time_unix_nano=START + 5000)
    event.attributes.append(attribute("exception.message", "why"))
    (trace,) = jaeger_json(TracesData(resource_spans=[group("a", found)]))["data"]
    tags = {tag["key"]: (tag["type"], tag["value"]) for tag in trace["spans"][0]["tags"]}
    assert tags["text"] == ("string", "t")
    assert tags["flag"] == ("bool", True)
    assert tags["count"] == ("int64", 3)
    assert tags["ratio"] == ("float64", 0.5)
    assert tags["list"][0] == "string"
    assert trace["spans"][0]["logs"] == [{
        "timestamp": START // 1000 + 5,
        "fields": [
            {"key": "event", "type": "string", "value": "exception"},
            {"key": "exception.message", "type": "string", "value": "why"},
        ],
    }]  # fmt: skip


def test_span_that_names_itself_as_its_parent_ends_the_tree() -> None:
    data = TracesData(resource_spans=[group("a", span(1, 1, "loop", 0, 1), span(2, 0, "s", 0, 1))])
    assert len(list(tree(data, TRACE.hex()))) <= 2


def test_span_without_an_id_ends_the_tree() -> None:
    odd = span(1, 0, "odd", 0, 1)
    odd.span_id = b""
    assert len(list(tree(TracesData(resource_spans=[group("a", odd)]), TRACE.hex()))) == 1
