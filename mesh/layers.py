"""Concerns that wrap every handler: tracing, then logging, then errors, then the work."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence

from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.trace import Link, SpanKind, Tracer
from opentelemetry.util.types import AttributeValue

from mesh.item import Handler, Layer, Reply, Request, Timings
from mesh.sampling import Sampling
from mesh.status import SERVER_FAULTS, code_from_number, public, to_status
from mesh.telemetry import (
    BATCH_ROWS,
    Attributes,
    child_of,
    context_of,
    is_sampled,
    rpc_attributes,
    write_rpc_span,
    write_span,
)

log = logging.getLogger(__name__)

NO_TRACE = bytes(25)
"""Tells the services behind one without tracing that they should not begin a trace either."""


def stack(handler: Handler, layers: Sequence[Layer]) -> Handler:
    """Return a handler wrapped in layers, the outermost first in the list."""
    for layer in reversed(layers):
        handler = layer(handler)
    return handler


def standard_layers(tracer: Tracer, method: str) -> list[Layer]:
    """Return the layers of every service, outermost first.

    Errors become a status innermost, so that the span and the log line see the code that the
    caller gets.
    """
    return [tracing(tracer, method), logging_failures(method), errors]


def tracing(tracer: Tracer, method: str) -> Layer:
    """Make a SERVER span of each sampled request, with a child for each timing it reports.

    A request that comes without a trace context begins a trace, and the sampler decides. No span
    is made of one that is not sampled.

    Args:
        tracer: of the process.
        method: full name, as `mesh.v1.Infer/Run`.
    """
    if not isinstance(tracer, SdkTracer):
        return _untraced
    sampling = Sampling(tracer, method)

    def layer(handler: Handler) -> Handler:
        async def traced(request: Request) -> Reply:
            came = request.trace
            trace = request.trace = sampling.decide(came, request.target)
            if not is_sampled(trace):
                return await handler(request)

            def write(code: int, message: str, told: Attributes | None = None) -> None:
                write_rpc_span(
                    tracer, method, trace, came, SpanKind.SERVER, (code, message),
                    started=request.received, ended=time.monotonic(),
                    attributes={**rpc_attributes(method, request.target), **(told or {})},
                )  # fmt: skip

            try:
                reply = await handler(request)
            except asyncio.CancelledError:
                write(1, "the caller gave up")
                raise
            if reply.timings is not None:
                span_timings(tracer, request, reply.timings)
            status = reply.status
            write(
                status.code if status else 0, status.message if status else "", reply.attributes
            )  # fmt: skip
            return reply

        return traced

    return layer


def _untraced(handler: Handler) -> Handler:
    def untraced(request: Request) -> Awaitable[Reply]:
        if not request.trace:
            request.trace = NO_TRACE
        return handler(request)

    return untraced


def logging_failures(method: str) -> Layer:
    """Log one line for each request that failed; a server's fault is a warning."""

    def layer(handler: Handler) -> Handler:
        async def logged(request: Request) -> Reply:
            reply = await handler(request)
            if reply.status is not None:
                code = code_from_number(reply.status.code)
                level = logging.WARNING if code in SERVER_FAULTS else logging.INFO
                fields = {
                    "method": method, "target": request.target, "code": code.name,
                    "error": reply.status.message, "trace_id": request.trace[:16].hex(),
                }  # fmt: skip
                log.log(level, "request failed", extra=fields)
            return reply

        return logged

    return layer


def errors(handler: Handler) -> Handler:
    """Turn every error into a status; the one place that catches all."""

    async def mapped(request: Request) -> Reply:
        try:
            return await handler(request)
        except Exception as err:  # the boundary
            if public(err) is not err:
                log.exception("unexpected error", extra={"target": request.target})
            return Reply(status=to_status(err))

    return mapped


def span_timings(
    tracer: Tracer, request: Request, timings: Timings, marks: Attributes | None = None
) -> None:
    """Make a child span of a request's span for each timing, unless they have spans already.

    Args:
        tracer: of the process that the timings are from.
        request: with the context of its span, and when it was received.
        timings: of the request.
        marks: attributes of every child.
    """
    if timings.traced:
        return
    at = request.received
    for name, seconds in (
        ("queue", timings.queue),
        ("batch", timings.batch),
        ("run", timings.run),
    ):
        if not seconds:
            continue
        links = []
        attributes: dict[str, AttributeValue] = dict(marks or {})
        if name == "run" and timings.batch_rows:
            attributes[BATCH_ROWS] = timings.batch_rows
            links = [Link(context_of(timings.batch_trace))] if timings.batch_trace else []
        write_span(
            tracer, name, child_of(request.trace), request.trace,
            started=at, ended=at + seconds, attributes=attributes, links=links,
        )  # fmt: skip
        at += seconds
