"""Spans on their way out: a bounded queue that never blocks, and what became of each span."""

import threading
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import Counter

EXPORTED = Counter("mesh_spans_exported", "Spans that the exporter has delivered")
DROPPED = Counter("mesh_spans_dropped", "Spans that were lost, by the reason", ["reason"])
QUEUE_FULL = DROPPED.labels("queue_full")
EXPORT_FAILED = DROPPED.labels("export_failed")


class SpanQueue(BatchSpanProcessor):
    """Exports finished spans in a thread of its own.

    Whoever ends a span never waits: one that finds the queue full is dropped and counted. In memory
    are at most `max_spans`, and one batch that is being exported.

    Args:
        exporter: may be slow, hang or fail.
        max_spans: that wait.
        batch_spans: that leave together, at most.
        every_ms: how often what waits leaves.
    """

    def __init__(
        self, exporter: SpanExporter, max_spans: int, batch_spans: int, every_ms: float
    ) -> None:
        self._counting = _Counting(exporter)
        self._max_spans = max_spans
        self._ended = 0
        self._lock = threading.Lock()
        super().__init__(
            self._counting,
            max_queue_size=max_spans,
            max_export_batch_size=min(batch_spans, max_spans),
            schedule_delay_millis=every_ms,
        )

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a finished span, or drop it."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        with self._lock:
            if self._ended - self._counting.taken >= self._max_spans:
                QUEUE_FULL.inc()
                return
            self._ended += 1
        super().on_end(span)


class _Counting(SpanExporter):
    """Passes spans on to an exporter, and counts what it takes and what it delivers."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            done = result is SpanExportResult.SUCCESS
            (EXPORTED if done else EXPORT_FAILED).inc(len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
