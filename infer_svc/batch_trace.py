"""Spans of batches: roots of their own, with a link to each request that is traced."""

from opentelemetry.trace import Link, Tracer

from infer_svc.recovery import Attempt
from mesh.telemetry import (
    BATCH_INDEX,
    BATCH_ITEMS,
    BATCH_ROWS,
    LANE,
    RECOVERY,
    TARGET,
    Attributes,
    context_of,
    epoch_ns,
    is_sampled,
    start_span,
    trace_of,
)


class BatchTrace:
    """Writes the spans of one model's batches.

    Args:
        model: its name.
        tracer: samples everything: that a request is traced was decided before.
    """

    def __init__(self, model: str, tracer: Tracer) -> None:
        self._model = model
        self._tracer = tracer

    def write(self, attempt: Attempt) -> bytes:
        """Write the span of an attempt; return its context; empty: no request is traced."""
        links = [
            Link(context_of(entry.request.trace), {BATCH_INDEX: index})
            for index, entry in enumerate(attempt.entries)
            if is_sampled(entry.request.trace)
        ]
        if not links:
            return b""
        batch, result = attempt.batch, attempt.result
        attributes: Attributes = {
            TARGET: self._model, LANE: attempt.lane.name,
            BATCH_ITEMS: len(attempt.entries), BATCH_ROWS: sum(batch.rows),
        }  # fmt: skip
        span = start_span(
            self._tracer, f"batch {self._model}", attributes=attributes, links=links,
            started=batch.formed,
        )  # fmt: skip
        if attempt.step:
            span.add_event(RECOVERY, {"step": attempt.step})
        if result.error is not None:
            span.record_exception(result.error)
        span.end(epoch_ns(batch.formed + result.around_s + result.run_s))
        return trace_of(span)
