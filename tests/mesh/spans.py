"""Finished spans of a test, in memory."""

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

STATUS = "rpc.response.status_code"
TRACE_ID = bytes(range(1, 17))
SAMPLED = TRACE_ID + bytes(range(1, 9)) + b"\1"
"""A binary trace context that asks for spans."""
UNSAMPLED = SAMPLED[:24] + b"\0"


class Spans:
    """A tracer and what it has made."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self._memory = InMemorySpanExporter()
        provider = TracerProvider(sampler)
        provider.add_span_processor(SimpleSpanProcessor(self._memory))
        self.tracer = provider.get_tracer("test")

    @property
    def all(self) -> Sequence[ReadableSpan]:
        """Return them in the order of their ends."""
        return self._memory.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        """Return those of a name."""
        return [span for span in self.all if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        """Return the only one of a name."""
        (span,) = self.named(name)
        return span


def attributes(span: ReadableSpan) -> dict[str, object]:
    """Return the attributes of a span."""
    return dict(span.attributes or {})


def span_id(span: ReadableSpan) -> int:
    """Return the id of a span."""
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def parent_id(span: ReadableSpan) -> int | None:
    """Return the id of a span's parent."""
    return span.parent.span_id if span.parent is not None else None
