"""Nobody waits for an exporter, memory is bounded, and every span that is lost is counted."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, StaticSampler
from prometheus_client import REGISTRY

from gateway.trace_store import TraceStore, trace_service
from mesh.settings import TelemetrySettings, load
from mesh.span_queue import SpanQueue
from mesh.telemetry import configure, start_span
from tests.conftest import eventually


class Exporter(SpanExporter):
    """Notes batches, and waits at a gate before each."""

    def __init__(self, result: SpanExportResult | Exception = SpanExportResult.SUCCESS) -> None:
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False
        self._result = result

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.batches.append(len(spans))
        self.gate.wait(30)
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    def shutdown(self) -> None:
        self.closed = True


class Losses:
    """Spans exported and dropped since this object was made."""

    def __init__(self) -> None:
        self._before = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float]:
        def value(name: str, **labels: str) -> float:
            return REGISTRY.get_sample_value(name, labels) or 0

        return (
            value("mesh_spans_exported_total"),
            value("mesh_spans_dropped_total", reason="queue_full"),
            value("mesh_spans_dropped_total", reason="export_failed"),
        )

    def counted(self) -> tuple[float, ...]:
        """Return those exported, lost at a full queue, lost by a failed export."""
        return tuple(now - old for now, old in zip(self._read(), self._before, strict=True))


@contextmanager
def queue(
    exporter: Exporter, max_spans: int = 100, every_ms: float = 5, decision: Decision | None = None
) -> Iterator[TracerProvider]:
    sampler = ALWAYS_ON if decision is None else StaticSampler(decision)
    provider = TracerProvider(sampler, shutdown_on_exit=False)
    provider.add_span_processor(SpanQueue(exporter, max_spans, 40, every_ms))
    try:
        yield provider
    finally:
        exporter.gate.set()
        provider.shutdown()


def end_spans(provider: TracerProvider, count: int) -> float:
    """Make and end spans; return the seconds that the slowest took."""
    tracer = provider.get_tracer("test")
    slowest = 0.0
    for _ in range(count):
        started = time.perf_counter()
        tracer.start_span("s").end()
        slowest = max(slowest, time.perf_counter() - started)
    return slowest


async def test_spans_are_exported_and_counted() -> None:
    losses, exporter = Losses(), Exporter()
    with queue(exporter) as provider:
        end_spans(provider, 30)
        await eventually(lambda: losses.counted() == (30, 0, 0))
        assert sum(exporter.batches) == 30
    assert exporter.closed


async def test_queue_that_is_full_drops_counts_and_does_not_wait() -> None:
    losses, exporter = Losses(), Exporter()
    exporter.gate.clear()
    with queue(exporter, max_spans=100) as provider:
        end_spans(provider, 40)
        await eventually(lambda: exporter.batches == [40])  # in the exporter, which hangs
        assert end_spans(provider, 1000) < 1.0
        assert losses.counted() == (0, 900, 0)
        exporter.gate.set()
        await eventually(lambda: losses.counted() == (140, 900, 0))
        end_spans(provider, 20)
        await eventually(lambda: losses.counted() == (160, 900, 0))


async def test_spans_at_the_end_are_exported() -> None:
    losses, exporter = Losses(), Exporter()
    with queue(exporter, every_ms=60_000) as provider:
        end_spans(provider, 30)
        assert losses.counted() == (0, 0, 0)
    assert losses.counted() == (30, 0, 0)


@pytest.mark.parametrize(
    "result", [SpanExportResult.FAILURE, RuntimeError("broken")], ids=["failure", "error"]
)
async def test_spans_that_could_not_be_delivered_are_counted(
    result: SpanExportResult | Exception,
) -> None:
    losses = Losses()
    with queue(Exporter(result)) as provider:
        end_spans(provider, 10)
        await eventually(lambda: losses.counted() == (0, 0, 10))
        end_spans(provider, 5)
        await eventually(lambda: losses.counted() == (0, 0, 15))


async def test_span_that_records_and_is_not_sampled_takes_no_place() -> None:
    losses, exporter = Losses(), Exporter()
    with queue(exporter, max_spans=10, decision=Decision.RECORD_ONLY) as provider:
        end_spans(provider, 50)
    assert (losses.counted(), exporter.batches) == ((0, 0, 0), [])


async def test_queue_smaller_than_a_batch_is_a_queue_all_the_same() -> None:
    losses = Losses()
    with queue(Exporter(), max_spans=1) as provider:
        end_spans(provider, 1)
        await eventually(lambda: losses.counted() == (1, 0, 0))


@asynccontextmanager
async def silent_socket() -> AsyncIterator[str]:
    """Accept connections and never say a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@asynccontextmanager
async def hanging_collector() -> AsyncIterator[str]:
    """Take exports and never answer them."""

    async def hang(_: object, __: object) -> None:
        await asyncio.Event().wait()

    name, methods = trace_service(TraceStore())
    methods = {key: grpc.unary_unary_rpc_method_handler(hang) for key in methods}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.mark.parametrize("collector", [silent_socket, hanging_collector], ids=["tcp", "grpc"])
async def test_collector_that_hangs_blocks_nobody_and_not_the_end(
    collector: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setattr("mesh.telemetry.SHUTDOWN_S", 0.2)
    losses = Losses()
    async with collector() as address:  # type: ignore[operator]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        tracing = configure("gateway", load(TelemetrySettings))
        slowest = 0.0
        for _ in range(1000):
            started = time.perf_counter()
            start_span(tracing.tracer, "s").end()
            slowest = max(slowest, time.perf_counter() - started)
            await asyncio.sleep(0)
        assert slowest < 1.0  # the exporter waits 10 s for an answer
        exported, dropped, failed = losses.counted()
        assert exported == failed == 0
        assert 1000 - 2 * 64 <= dropped <= 1000 - 64  # the rest waits, or is with the exporter
        started = time.monotonic()
        tracing.shutdown()
        assert time.monotonic() - started < 5
