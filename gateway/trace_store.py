"""The local default for traces: an OTLP receiver that keeps the newest ones in memory."""

import re
from collections import OrderedDict
from collections.abc import Iterable

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, TracesData

from mesh.errors import InvalidInput, NotFound
from mesh.grpc_types import Methods
from mesh.item import Handler, Request
from mesh.messages import message_handler
from protos.mesh.v1 import mesh_pb2

TRACE_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
MAX_TRACES = 1000
MAX_SPANS = 50_000
_TRACE_ID = re.compile("[0-9a-fA-F]{32}")

Kept = list[tuple[bytes, bytes]]
"""Spans of one trace: the resource and the span, serialized. As messages they would take four times
as much, and keep all that came with them."""


class TraceStore:
    """The newest traces, at most `MAX_TRACES` of them and `MAX_SPANS` spans."""

    def __init__(self) -> None:
        self._traces: OrderedDict[bytes, Kept] = OrderedDict()
        self._spans = 0

    def add(self, groups: Iterable[ResourceSpans]) -> None:
        """Keep the spans of an export."""
        for group in groups:
            resource = group.resource.SerializeToString()
            for scope in group.scope_spans:
                for span in scope.spans:
                    kept = self._traces.setdefault(span.trace_id, [])
                    kept.append((resource, span.SerializeToString()))
                    self._spans += 1
        while self._traces and (len(self._traces) > MAX_TRACES or self._spans > MAX_SPANS):
            _, dropped = self._traces.popitem(last=False)
            self._spans -= len(dropped)

    def get(self, trace_id: str) -> tuple[str, TracesData]:
        """Return a trace and the batch traces that it links to.

        Args:
            trace_id: 32 hexadecimal digits; empty: the newest trace of a request.

        Raises:
            InvalidInput: that is no trace id.
            NotFound: it was never kept, or is gone already.
        """
        if trace_id and not _TRACE_ID.fullmatch(trace_id):
            raise InvalidInput(f"trace id {trace_id!r} came, wanted 32 hexadecimal digits")
        key = bytes.fromhex(trace_id) or self._newest()
        spans = list(self._traces.get(key, ()))
        linked = {link.trace_id for span in _parsed(spans) for link in span.links} - {key}
        for other in sorted(linked):
            spans += self._traces.get(other, [])
        if not spans:
            raise NotFound(
                f"trace {trace_id or '(none yet)'} is not kept here; only sampled requests are, "
                f"and the newest {MAX_TRACES}"
            )
        return key.hex(), _data(spans)

    def _newest(self) -> bytes:
        """Return the newest trace that has a span with a parent; a batch's trace has none."""
        for key in reversed(self._traces):
            if any(span.parent_span_id for span in _parsed(self._traces[key])):
                return key
        return b""


def trace_handler(store: TraceStore | None) -> Handler:
    """Return the handler of `GetTrace` over a store; None: traces go elsewhere."""

    async def answer(message: mesh_pb2.GetTraceRequest, _: Request) -> mesh_pb2.GetTraceResponse:
        if store is None:
            raise NotFound("traces are not kept here but sent to OTEL_EXPORTER_OTLP_ENDPOINT")
        trace_id, data = store.get(message.trace_id)
        return mesh_pb2.GetTraceResponse(trace_id=trace_id, traces=data.SerializeToString())

    return message_handler(mesh_pb2.GetTraceRequest, answer)


def trace_service(store: TraceStore) -> tuple[str, Methods]:
    """Return OTLP's `TraceService` over a store, as its name and methods."""

    async def export(request: ExportTraceServiceRequest, _: object) -> ExportTraceServiceResponse:
        store.add(request.resource_spans)
        return ExportTraceServiceResponse()

    method = grpc.unary_unary_rpc_method_handler(
        export, ExportTraceServiceRequest.FromString, ExportTraceServiceResponse.SerializeToString
    )
    return TRACE_SERVICE, {"Export": method}


def _data(spans: Kept) -> TracesData:
    data = TracesData()
    groups: dict[bytes, ResourceSpans] = {}
    for (resource, _), span in zip(spans, _parsed(spans), strict=True):
        group = groups.get(resource)
        if group is None:
            group = groups[resource] = data.resource_spans.add()
            group.resource.MergeFromString(resource)
            group.scope_spans.add()
        group.scope_spans[0].spans.append(span)
    return data


def _parsed(spans: Kept) -> list[Span]:
    return [Span.FromString(span) for _, span in spans]
