"""Decides which requests are traced, with a comparison in place of a span."""

import random

from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanKind, TraceFlags, set_span_in_context

from mesh.telemetry import child_of, context_of, is_sampled, rpc_attributes

SAMPLED = TraceFlags.SAMPLED
_LOW_BITS = TraceIdRatioBased.TRACE_ID_LIMIT
_overridden: list[int] = []
"""The bound that somebody has set while the process runs, if one has."""


def override_roots(ratio: float | None) -> None:
    """Let so many of the requests without a trace context be traced, whatever the sampler says.

    Args:
        ratio: 0 to 1; None: as the sampler says.
    """
    _overridden[:] = [] if ratio is None else [round(ratio * (_LOW_BITS + 1))]


class Sampling:
    """The sampler of a process, as the SDK would ask it about the requests of a method.

    Args:
        tracer: of the process.
        method: full name, as `mesh.v1.Infer/Run`.
    """

    def __init__(self, tracer: SdkTracer, method: str) -> None:
        self._sampler = tracer.sampler
        self._method = method
        self._bound = root_bound(tracer.sampler)
        self._follows = follows(tracer.sampler)

    def decide(self, came: bytes, target: str) -> bytes:
        """Return the binary trace context of a request in this process.

        Sampled: it is that of a span that is to be written; else no span is.

        Args:
            came: as the request brought it; empty: it begins a trace.
            target: of the request.
        """
        if not came:
            return self._begin(target)
        if not is_sampled(came):
            return came
        if self._follows or self._ask(came, int.from_bytes(came[:16], "big"), target):
            return child_of(came)
        return came[:24] + bytes([came[24] & ~SAMPLED])

    def _begin(self, target: str) -> bytes:
        trace_id = random.getrandbits(128)
        if _overridden:
            sampled = trace_id & _LOW_BITS < _overridden[0]
        elif self._bound is None:
            sampled = self._ask(b"", trace_id, target)
        else:
            sampled = trace_id & _LOW_BITS < self._bound
        flags = TraceFlags.RANDOM_TRACE_ID | (SAMPLED if sampled else 0)
        return (trace_id << 72 | random.getrandbits(64) << 8 | flags).to_bytes(25, "big")

    def _ask(self, came: bytes, trace_id: int, target: str) -> bool:
        parent = set_span_in_context(NonRecordingSpan(context_of(came))) if came else None
        attributes = rpc_attributes(self._method, target)
        result = self._sampler.should_sample(
            parent, trace_id, self._method, SpanKind.SERVER, attributes
        )
        return bool(result.decision.is_sampled())  # type: ignore[no-untyped-call]


def root_bound(sampler: Sampler) -> int | None:
    """Return the bound below which the low 64 bits of a sampled root's trace id are.

    None: only the sampler itself tells; so for every one that is not the SDK's.
    """
    if type(sampler) in (ParentBased, ParentBasedTraceIdRatio):
        sampler = getattr(sampler, "_root", sampler)  # there is no other way to ask for it
    if type(sampler) is TraceIdRatioBased:
        return sampler.bound
    if sampler is ALWAYS_ON:
        return _LOW_BITS + 1
    return 0 if sampler is ALWAYS_OFF else None


def follows(sampler: Sampler) -> bool:
    """Tell whether whatever goes on from a sampled caller is sampled, without asking."""
    if type(sampler) in (ParentBased, ParentBasedTraceIdRatio):
        sampler = getattr(sampler, "_remote_parent_sampled", sampler)
    return sampler is ALWAYS_ON
