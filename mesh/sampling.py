"""Decides which requests begin a sampled trace, with a comparison in place of a span."""

import random
import threading

from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    StaticSampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import TraceFlags, Tracer

_LOW_BITS = TraceIdRatioBased.TRACE_ID_LIMIT


class TraceIds(RandomIdGenerator):
    """Random ids; a trace id that was drawn before its span goes to the next root of the thread."""

    def __init__(self) -> None:
        self._thread = threading.local()

    def give(self, trace_id: int) -> None:
        """Keep a trace id for the next root span of this thread."""
        self._thread.drawn = trace_id

    def generate_trace_id(self) -> int:
        """Return the trace id that was given, once, else a new one."""
        drawn: int = getattr(self._thread, "drawn", 0)
        if not drawn:
            return super().generate_trace_id()
        self._thread.drawn = 0
        return drawn


class Roots:
    """Begins the traces of requests that came without one.

    Args:
        tracer: of the process; its sampler decides.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._ids = _ids_of(tracer)
        self._bound = root_bound(tracer.sampler) if isinstance(tracer, SdkTracer) else None
        if self._ids is None and self._bound:
            self._bound = None  # a span would get another id than the one that was compared

    def begin(self) -> bytes:
        """Return a new binary trace context that is not sampled; empty: a span must be made.

        The span gets the trace id that was compared here, so its sampler comes to the same end.
        """
        trace_id = random.getrandbits(128)
        if self._bound is None or trace_id & _LOW_BITS < self._bound:
            if self._ids is not None:
                self._ids.give(trace_id)
            return b""
        whole = trace_id << 72 | random.getrandbits(64) << 8 | TraceFlags.RANDOM_TRACE_ID
        return whole.to_bytes(25, "big")


def root_bound(sampler: Sampler) -> int | None:
    """Return the bound of the low 64 bits of the trace ids whose roots are sampled.

    None: only a span, made through the sampler, tells; so for every sampler that is not the SDK's,
    and where each root is sampled anyway.
    """
    if type(sampler) in (ParentBased, ParentBasedTraceIdRatio):
        sampler = getattr(sampler, "_root", sampler)  # there is no other way to ask for it
    if type(sampler) is TraceIdRatioBased:
        return sampler.bound
    off = type(sampler) is StaticSampler and sampler.get_description() == "AlwaysOffSampler"
    return 0 if off else None


def give_id(tracer: Tracer, trace: bytes) -> None:
    """Let the next root span of a tracer, in this thread, have the trace id of a context."""
    ids = _ids_of(tracer)
    if ids is not None:
        ids.give(int.from_bytes(trace[:16], "big"))


def _ids_of(tracer: Tracer) -> TraceIds | None:
    ids = tracer.id_generator if isinstance(tracer, SdkTracer) else None
    return ids if isinstance(ids, TraceIds) else None
