"""OTLP traces for people: a tree of lines, and the JSON that Jaeger's page opens."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status, TracesData

KINDS = {2: "server", 3: "client", 4: "producer", 5: "consumer"}
SHOWN = (
    "mesh.target",
    "mesh.attempt",
    "mesh.batch.rows",
    "mesh.batch.items",
    "mesh.reconstructed",
    "rpc.response.status_code",
)

Row = tuple[str, Span]
"""Name of the service and one of its spans."""


def tree(data: TracesData, trace_id: str) -> Iterator[str]:
    """Yield the lines of a trace, then of the batch traces that it links to.

    Args:
        data: spans of one trace and of those it links to.
        trace_id: of the trace that comes first, 32 hexadecimal digits.
    """
    rows = sorted(_rows(data), key=lambda row: row[1].start_time_unix_nano)
    first = [row for row in rows if row[1].trace_id.hex() == trace_id]
    others = [row for row in rows if row[1].trace_id.hex() != trace_id]
    start = first[0][1].start_time_unix_nano if first else 0
    for group in (first, others):
        known = {span.span_id for _, span in group} - {b""}
        children: dict[bytes | None, list[Row]] = defaultdict(list)
        for row in group:
            parent = row[1].parent_span_id
            children[parent if parent in known else None].append(row)
        yield from _branch(children, None, "", start)


def _branch(
    children: dict[bytes | None, list[Row]], parent: bytes | None, indent: str, start: int
) -> Iterator[str]:
    for service, span in children[parent]:
        begin = (span.start_time_unix_nano - start) / 1e6
        took = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        kind = KINDS.get(span.kind, "")
        title = f"{indent}{service}: {span.name} {kind}".rstrip()
        failed = f" ERROR {span.status.message}" if _failed(span) else ""
        yield f"{title:<64} {begin:8.2f} + {took:8.2f} ms  {_notes(span)}{failed}".rstrip()
        yield from _branch(children, span.span_id, indent + "  ", start)


def _notes(span: Span) -> str:
    values = {pair.key: _value(pair.value) for pair in span.attributes}
    notes = [f"{key.rpartition('.')[2]}={values[key]}" for key in SHOWN if key in values]
    linked = {link.trace_id.hex()[:8] for link in span.links}
    return " ".join(notes + [f"link={trace}" for trace in sorted(linked)])


def jaeger_json(data: TracesData) -> dict[str, Any]:
    """Return traces in the form of Jaeger's query API, which its page opens by upload."""
    traces: dict[str, dict[str, Any]] = {}
    for group in data.resource_spans:
        for scope in group.scope_spans:
            for span in scope.spans:
                key = span.trace_id.hex()
                trace = traces.setdefault(key, {"traceID": key, "spans": [], "processes": {}})
                process = _process(trace["processes"], group.resource)
                trace["spans"].append(_jaeger_span(span, process))
    return {"data": list(traces.values()), "total": len(traces), "errors": None}


def _jaeger_span(span: Span, process: str) -> dict[str, Any]:
    trace_id = span.trace_id.hex()
    references = [
        {"refType": "FOLLOWS_FROM", "traceID": link.trace_id.hex(), "spanID": link.span_id.hex()}
        for link in span.links
    ]
    if span.parent_span_id:
        parent = span.parent_span_id.hex()
        references.insert(0, {"refType": "CHILD_OF", "traceID": trace_id, "spanID": parent})
    tags = _tags(span.attributes)
    if span.kind in KINDS:
        tags.append({"key": "span.kind", "type": "string", "value": KINDS[span.kind]})
    if _failed(span):
        tags.append({"key": "error", "type": "bool", "value": True})
        tags.append(
            {"key": "otel.status_description", "type": "string", "value": span.status.message}
        )
    return {
        "traceID": trace_id,
        "spanID": span.span_id.hex(),
        "operationName": span.name,
        "references": references,
        "startTime": span.start_time_unix_nano // 1000,
        "duration": (span.end_time_unix_nano - span.start_time_unix_nano) // 1000,
        "tags": tags,
        "logs": [
            {
                "timestamp": event.time_unix_nano // 1000,
                "fields": [
                    {"key": "event", "type": "string", "value": event.name},
                    *_tags(event.attributes),
                ],
            }
            for event in span.events
        ],
        "processID": process,
        "warnings": None,
    }


def _process(processes: dict[str, Any], resource: Resource) -> str:
    entry = {"serviceName": _service(resource), "tags": _tags(resource.attributes)}
    for key, known in processes.items():
        if known == entry:
            return str(key)
    key = f"p{len(processes) + 1}"
    processes[key] = entry
    return key


def _tags(attributes: Iterable[KeyValue]) -> list[dict[str, Any]]:
    kinds = {bool: "bool", int: "int64", float: "float64", str: "string"}
    tags = []
    for pair in attributes:
        value = _value(pair.value)
        tags.append({"key": pair.key, "type": kinds[type(value)], "value": value})
    return tags


def _value(value: AnyValue) -> bool | int | float | str:
    which = value.WhichOneof("value")
    if which in ("string_value", "bool_value", "int_value", "double_value"):
        found: bool | int | float | str = getattr(value, which)
        return found
    return str(value)


def _failed(span: Span) -> bool:
    return span.status.code == Status.STATUS_CODE_ERROR


def _rows(data: TracesData) -> Iterator[Row]:
    for group in data.resource_spans:
        for scope in group.scope_spans:
            for span in scope.spans:
                yield _service(group.resource), span


def _service(resource: Resource) -> str:
    names = [p.value.string_value for p in resource.attributes if p.key == "service.name"]
    return names[0] if names else "unknown"
