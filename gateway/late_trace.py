"""Traces of slow or failed requests that no sampler chose, written when they have ended."""

import asyncio
import heapq
import math
import random
import time
from collections.abc import Sequence

from opentelemetry.trace import SpanKind, Tracer

from gateway.metrics import LATE_TRACES
from mesh.errors import Cancelled
from mesh.item import Handler, Hop, Layer, Reply, Request
from mesh.layers import span_timings
from mesh.status import SERVER_FAULTS, code_from_number, to_status
from mesh.telemetry import (
    ATTEMPT,
    ATTEMPTS,
    RECONSTRUCTED,
    Attributes,
    Tracing,
    child_of,
    is_sampled,
    rpc_attributes,
    write_rpc_span,
)
from protos.mesh.v1.stage_pb2 import Status

PER_S = 10.0
"""Traces per second: one takes about half a millisecond of the loop."""
BURST = 20.0
"""Traces that may be saved up."""
MAX_HOPS = 32
"""Attempts that a trace shows; of more, those that failed and the longest."""

OK = Status()
MARK: Attributes = {RECONSTRUCTED: True}


class Bucket:
    """Bounds a rate.

    Args:
        per_s: how often, in the long run.
        burst: how often at once.
    """

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = self._left = burst
        self._at = time.monotonic()

    def take(self, now: float) -> bool:
        """Tell whether once more is allowed at a moment, and count it."""
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class LateTraces:
    """Looks at requests that were not sampled when they have ended.

    Args:
        tracing: of the process.
        slow_s: a request that took longer gets a trace, as does one that failed by our fault.
        per_s: traces per second, at most.
        burst: traces that may be saved up.
    """

    def __init__(
        self, tracing: Tracing, slow_s: float, per_s: float = PER_S, burst: float = BURST
    ) -> None:
        self._tracer = tracing.sampled
        self._sampled_as = tracing.sampled_as
        self._stages: dict[str, Tracer] = {}
        self._slow_s = slow_s
        self._bucket = Bucket(per_s, burst)
        self._written = LATE_TRACES.labels("written")
        self._dropped = LATE_TRACES.labels("dropped")

    def layer(self, method: str, *, slow: bool = True) -> Layer:
        """Return the layer of a method; it stands outside of the standard ones.

        Args:
            method: full name, as `mesh.v1.Mesh/Run`.
            slow: whether what is slow gets a trace, or (False) only what failed.
        """
        slow_s = self._slow_s if slow else math.inf

        def layer(handler: Handler) -> Handler:
            async def watched(request: Request) -> Reply:
                came = request.trace
                if is_sampled(came):
                    return await handler(request)
                request.hops = []
                try:
                    reply = await handler(request)
                except asyncio.CancelledError:
                    gave_up = Cancelled("the caller gave up")
                    self._look(method, request, came, to_status(gave_up), slow_s)
                    raise
                self._look(method, request, came, reply.status, slow_s)
                return reply

            return watched

        return layer

    def _look(
        self, method: str, request: Request, came: bytes, status: Status | None, slow_s: float
    ) -> None:
        """Write the trace of a request that has ended, where it deserves one."""
        now = time.monotonic()
        failed = status is not None and code_from_number(status.code) in SERVER_FAULTS
        if not failed and now - request.received < slow_s:
            return
        if is_sampled(request.trace):
            return  # the sampler chose it after it had come
        if not self._bucket.take(now):
            self._dropped.inc()
            return
        self._written.inc()
        self._write(method, request, came, status or OK, now)

    def _write(
        self, method: str, request: Request, came: bytes, status: Status, ended: float
    ) -> None:
        parent = came if len(came) == 25 and any(came) else b""
        # Without a caller's the trace is the one that log lines tell.
        trace = sampled(child_of(parent) if parent else request.trace)
        hops = request.hops or []
        attributes = {**rpc_attributes(method, request.target), **MARK}
        if len(hops) > MAX_HOPS:
            attributes[ATTEMPTS] = len(hops)
        for hop in worst(hops):
            self._write_hop(trace, hop)
        write_rpc_span(
            self._tracer, method, trace, parent, SpanKind.SERVER, (status.code, status.message),
            started=request.received, ended=ended, attributes=attributes,
        )  # fmt: skip

    def _write_hop(self, parent: bytes, hop: Hop) -> None:
        trace, status = child_of(parent), hop.status or OK
        if hop.answered:
            self._write_stage(trace, hop)
        write_rpc_span(
            self._tracer, hop.method, trace, parent, SpanKind.CLIENT,
            (status.code, status.message), started=hop.sent, ended=hop.ended,
            attributes={
                **rpc_attributes(hop.method, hop.target), "server.address": hop.address,
                ATTEMPT: hop.attempt, **MARK,
            },
        )  # fmt: skip

    def _write_stage(self, parent: bytes, hop: Hop) -> None:
        """Write the SERVER span of a replica; way there and way back are taken for equal."""
        tracer, trace, status = self._stage(hop.method), child_of(parent), hop.status or OK
        took = hop.ended - hop.sent
        timings = hop.timings
        inside = min(took, timings.queue + timings.batch + timings.run) if timings else took
        began = hop.sent + (took - inside) / 2
        if timings is not None:
            item = Request(hop.target, b"", trace=trace, received=began)
            span_timings(tracer, item, timings, MARK)
        write_rpc_span(
            tracer, hop.method, trace, parent, SpanKind.SERVER, (status.code, status.message),
            started=began, ended=began + inside,
            attributes={**rpc_attributes(hop.method, hop.target), **MARK},
        )  # fmt: skip

    def _stage(self, method: str) -> Tracer:
        """Return the tracer of a stage, under the name that it has unless told otherwise."""
        name = method.partition("/")[0].rpartition(".")[2].lower()
        if name not in self._stages:
            self._stages[name] = self._sampled_as(name)
        return self._stages[name]


def sampled(trace: bytes) -> bytes:
    """Return the context of a span that is written whatever was decided; of none, a new one."""
    ids = trace[:24] if len(trace) == 25 and any(trace) else random.randbytes(24)
    return ids + b"\1"


def worst(hops: Sequence[Hop]) -> list[Hop]:
    """Return the attempts that a trace shows, in the order in which they were sent."""
    if len(hops) <= MAX_HOPS:
        return list(hops)
    chosen = heapq.nlargest(
        MAX_HOPS, hops, key=lambda hop: (hop.status is not None, hop.ended - hop.sent)
    )
    return sorted(chosen, key=lambda hop: hop.sent)
