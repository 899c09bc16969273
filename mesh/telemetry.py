"""Spans for sampled items, after OpenTelemetry's conventions for RPC (v1.44)."""

import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import grpc
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBasedTraceIdRatio, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

import mesh
from mesh.settings import DEFAULT_RATIO, TelemetrySettings
from mesh.span_queue import SpanQueue
from mesh.status import SERVER_FAULTS, code_from_number

MAX_LINKS = 1024
"""A batch span links to every member; the SDK keeps 128 unless told otherwise."""

SHUTDOWN_S = 2.0
"""Time for the last spans to leave."""
EXPORT_EVERY_MS = 500
"""So that a trace can be looked at right after its request."""

TARGET = "mesh.target"
ATTEMPT = "mesh.attempt"
BATCH_ROWS = "mesh.batch.rows"
BATCH_ITEMS = "mesh.batch.items"
BATCH_INDEX = "mesh.batch.index"
LANE = "mesh.lane"
RECOVERY = "mesh.recovery"
PIPELINE = "mesh.pipeline"
RECONSTRUCTED = "mesh.reconstructed"
"""Written afterwards, from what was noted of a request that was not sampled."""
ATTEMPTS = "mesh.attempts"
"""Of a request with more attempts than its trace shows."""

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
"""Versions after 00 may have more parts."""

Attributes = Mapping[str, AttributeValue]

UNSET = Status()
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SCOPE = InstrumentationScope("trtmesh")


@dataclass(frozen=True)
class Tracing:
    """Makes and exports the spans of a process."""

    tracer: Tracer
    """Samples as `OTEL_TRACES_SAMPLER` says."""
    sampled: Tracer
    """Samples everything: for spans whose reason to be was sampled already, as a batch's is."""
    sampled_as: Callable[[str], Tracer]
    """Returns a tracer like `sampled` for spans in the name of another service."""
    shutdown: Callable[[], None]
    """Exports what is left."""


class FixedResource(Resource):
    """A resource that is hashed once: exporters hash that of each span, at a fifth of its cost."""

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource.attributes, resource.schema_url)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash


def configure(
    service: str, settings: TelemetrySettings, exporter: SpanExporter | None = None
) -> Tracing:
    """Set up the tracing of a process; sampler and exporter as the `OTEL_*` variables say.

    Args:
        service: `service.name` where `OTEL_SERVICE_NAME` is not set.
        settings: the `OTEL_*` variables that the SDK does not read by itself.
        exporter: used where no OTLP endpoint is configured; None: nothing is exported then.
    """
    attributes = {"service.namespace": "trtmesh", "service.version": mesh.__version__}
    if not settings.service_name:
        attributes["service.name"] = service
    limits = SpanLimits() if settings.span_link_count_limit else SpanLimits(max_links=MAX_LINKS)
    resource = Resource.create(attributes)
    sampler = None if settings.traces_sampler else ParentBasedTraceIdRatio(DEFAULT_RATIO)
    if settings.exports:
        exporter = OTLPSpanExporter()
    processor = None if exporter is None else SpanQueue(
        exporter, settings.bsp_max_queue_size, settings.bsp_max_export_batch_size, EXPORT_EVERY_MS
    )  # fmt: skip

    def make(sampler: Sampler | None, resource: Resource) -> TracerProvider:
        made = TracerProvider(sampler, FixedResource(resource), span_limits=limits)
        if processor is not None:
            made.add_span_processor(processor)
        return made

    provider, sampled = make(sampler, resource), make(ALWAYS_ON, resource)

    def sampled_as(service: str) -> Tracer:
        # Nothing else of this process's resource holds for another one.
        other = Resource({"service.namespace": "trtmesh", "service.name": service})
        return make(ALWAYS_ON, other).get_tracer("trtmesh")

    def shutdown() -> None:
        # A collector that is gone must not hold up the end of the process.
        last = threading.Thread(target=provider.shutdown, daemon=True)
        last.start()
        last.join(SHUTDOWN_S)

    return Tracing(
        provider.get_tracer("trtmesh"), sampled.get_tracer("trtmesh"), sampled_as, shutdown
    )


def is_sampled(trace: bytes) -> bool:
    """Tell whether a binary trace context asks for spans."""
    return len(trace) == 25 and trace[24] & 1 == 1


def trace_of(span: Span) -> bytes:
    """Return the binary trace context that makes others children of a span."""
    context = span.get_span_context()
    flags = int(context.trace_flags).to_bytes(1, "big")
    return context.trace_id.to_bytes(16, "big") + context.span_id.to_bytes(8, "big") + flags


def context_of(trace: bytes) -> SpanContext:
    """Return the span context of a binary trace context of 25 bytes."""
    return SpanContext(
        int.from_bytes(trace[:16], "big"), int.from_bytes(trace[16:24], "big"), True,
        TraceFlags(trace[24]),
    )  # fmt: skip


def child_of(trace: bytes) -> bytes:
    """Return the binary trace context of a new span whose parent has a context of 25 bytes."""
    return trace[:16] + random.randbytes(8) + trace[24:]


def from_traceparent(header: str) -> bytes:
    """Return the binary form of a W3C `traceparent` header; empty when it is none."""
    found = _TRACEPARENT.fullmatch(header)
    if found is None or (header.startswith("00") and found[4]):
        return b""
    binary = bytes.fromhex(found[1] + found[2] + found[3])
    return binary if any(binary[:16]) and any(binary[16:24]) else b""


def to_traceparent(trace: bytes) -> str:
    """Return the W3C `traceparent` header of a binary trace context of 25 bytes."""
    return f"00-{trace[:16].hex()}-{trace[16:24].hex()}-{trace[24:].hex()}"


def start_span(
    tracer: Tracer,
    name: str,
    trace: bytes = b"",
    kind: SpanKind = SpanKind.INTERNAL,
    *,
    attributes: Attributes | None = None,
    links: Sequence[Link] = (),
    started: float | None = None,
) -> Span:
    """Start a span of the SDK's; `write_span` costs a sixth of it.

    Args:
        tracer: of the process.
        name: of the span.
        trace: binary context of the parent; empty: the span is a root, and the sampler decides.
        kind: role of the span.
        attributes: set at the start, where a sampler sees them.
        links: to spans of other traces.
        started: on the clock of `time.monotonic`; None: now.
    """
    parent = set_span_in_context(NonRecordingSpan(context_of(trace))) if trace else None
    return tracer.start_span(
        name,
        context=parent,
        kind=kind,
        attributes=dict(attributes or {}),
        links=links,
        start_time=None if started is None else epoch_ns(started),
    )


def rpc_attributes(method: str, target: str) -> dict[str, str]:
    """Return the attributes that CLIENT and SERVER spans of a method share."""
    return {"rpc.system.name": "grpc", "rpc.method": method, TARGET: target}


def write_span(
    tracer: Tracer,
    name: str,
    trace: bytes,
    parent: bytes = b"",
    kind: SpanKind = SpanKind.INTERNAL,
    *,
    started: float,
    ended: float,
    attributes: Attributes | None = None,
    links: Sequence[Link] = (),
    status: Status = UNSET,
) -> None:
    """Write a span that has ended already; no sampler is asked.

    Args:
        tracer: gives the resource and the way out; one that is not the SDK's writes nothing.
        name: of the span.
        trace: binary context of the span itself; it counts as sampled.
        parent: binary context of its parent; empty: the span is a root.
        kind: role of the span.
        started: on the clock of `time.monotonic`.
        ended: on the same clock.
        attributes: kept, not copied.
        links: to spans of other traces.
        status: of the span.
    """
    if not isinstance(tracer, SdkTracer):
        return
    zero = time.time_ns() - int(time.monotonic() * 1e9)
    trace_id = int.from_bytes(trace[:16], "big")
    own = SpanContext(trace_id, int.from_bytes(trace[16:24], "big"), False, _SAMPLED)
    span = ReadableSpan(
        name, own, context_of(parent) if parent else None, tracer.resource, attributes, (), links,
        kind, status=status, start_time=zero + int(started * 1e9),
        end_time=zero + int(ended * 1e9), instrumentation_scope=_SCOPE,
    )  # fmt: skip
    tracer.span_processor.on_end(span)


def write_rpc_span(
    tracer: Tracer,
    name: str,
    trace: bytes,
    parent: bytes,
    kind: SpanKind,
    status: tuple[int, str],
    *,
    started: float,
    ended: float,
    attributes: dict[str, AttributeValue],
) -> None:
    """Write a CLIENT or SERVER span that has ended already, as `write_span` does.

    Args:
        tracer: as there.
        name: as there.
        trace: as there.
        parent: as there.
        kind: as there.
        status: number of a gRPC status code, and its message.
        started: as there.
        ended: as there.
        attributes: kept; the code is added.
    """
    code, error = _outcome(kind, status[0])
    attributes["rpc.response.status_code"] = code
    if error:
        attributes["error.type"] = code
    write_span(
        tracer, name, trace, parent, kind, started=started, ended=ended, attributes=attributes,
        status=Status(StatusCode.ERROR, status[1]) if error else UNSET,
    )  # fmt: skip


def end_rpc_span(span: Span, code: int, message: str = "") -> None:
    """End a CLIENT or SERVER span with the number of a gRPC status code."""
    name, error = _outcome(getattr(span, "kind", SpanKind.INTERNAL), code)
    span.set_attribute("rpc.response.status_code", name)
    if error:
        span.set_attribute("error.type", name)
        span.set_status(Status(StatusCode.ERROR, message))
    span.end()


def _outcome(kind: SpanKind, number: int) -> tuple[str, bool]:
    """Return the name of a status code, and whether it makes a span of that kind an error."""
    code = code_from_number(number)
    failed = kind is SpanKind.CLIENT and code is not grpc.StatusCode.OK
    return code.name, failed or code in SERVER_FAULTS


def epoch_ns(moment: float) -> int:
    """Return nanoseconds since 1970 for a moment on the clock of `time.monotonic`."""
    return time.time_ns() - int((time.monotonic() - moment) * 1e9)
