"""Finished spans of a test, in memory."""

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import Tracer

STATUS = "rpc.response.status_code"
TRACE_ID = bytes(range(1, 17))
SAMPLED = TRACE_ID + bytes(range(1, 9)) + b"\1"
"""A binary trace context that asks for spans."""
UNSAMPLED = SAMPLED[:24] + b"\0"


class CountedIds(RandomIdGenerator):
    """Counts the span objects that the SDK makes: each has an id, whether it records or not."""

    def __init__(self) -> None:
        super().__init__()
        self.spans = 0

    def generate_span_id(self) -> int:
        self.spans += 1
        return super().generate_span_id()


class Spans:
    """A tracer and what it has made."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self._memory = InMemorySpanExporter()
        self.ids = CountedIds()
        self.tracer = self._tracer(sampler)
        self.sampled = self._tracer(ALWAYS_ON)

    def _tracer(self, sampler: Sampler) -> Tracer:
        provider = TracerProvider(sampler, id_generator=self.ids)
        provider.add_span_processor(SimpleSpanProcessor(self._memory))
        return provider.get_tracer("test")

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
