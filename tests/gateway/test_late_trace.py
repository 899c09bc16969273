"""A trace that is written afterwards has the shape of a live one, and few are written."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, DEFAULT_OFF, DEFAULT_ON, Sampler
from opentelemetry.trace import SpanKind, StatusCode, Tracer
from prometheus_client import REGISTRY

from gateway.late_trace import MAX_HOPS, Bucket, LateTraces, worst
from gateway.runner import PipelineRunner
from gateway.service import NAME
from mesh.errors import EngineError, InvalidInput, MeshError, Overloaded, StageUnavailable
from mesh.item import Handler, Hop, Reply, Request, Timings
from mesh.layers import errors, stack, standard_layers, tracing
from mesh.status import to_status
from mesh.telemetry import ATTEMPTS, BATCH_ROWS, RECONSTRUCTED, Tracing
from tests.conftest import eventually
from tests.gateway.stages import PIPELINE, FakeMesh, repository, running_mesh
from tests.mesh.spans import (
    SAMPLED,
    STATUS,
    TRACE_ID,
    UNSAMPLED,
    CountedIds,
    attributes,
    parent_id,
    span_id,
)

METHOD = f"{NAME}/Run"
SERVICES = ("preprocess", "infer", "postprocess")
EDGES = {
    ("-", "gateway: mesh.v1.Mesh/Run"),
    ("gateway: mesh.v1.Mesh/Run", "gateway: mesh.v1.Preprocess/Run"),
    ("gateway: mesh.v1.Preprocess/Run", "preprocess: mesh.v1.Preprocess/Run"),
    ("preprocess: mesh.v1.Preprocess/Run", "preprocess: queue"),
    ("preprocess: mesh.v1.Preprocess/Run", "preprocess: run"),
    ("gateway: mesh.v1.Mesh/Run", "gateway: mesh.v1.Infer/Run"),
    ("gateway: mesh.v1.Infer/Run", "infer: mesh.v1.Infer/Run"),
    ("infer: mesh.v1.Infer/Run", "infer: queue"),
    ("infer: mesh.v1.Infer/Run", "infer: batch"),
    ("infer: mesh.v1.Infer/Run", "infer: run"),
    ("gateway: mesh.v1.Mesh/Run", "gateway: mesh.v1.Postprocess/Run"),
    ("gateway: mesh.v1.Postprocess/Run", "postprocess: mesh.v1.Postprocess/Run"),
    ("postprocess: mesh.v1.Postprocess/Run", "postprocess: run"),
}
TIMINGS = {
    "preprocess": Timings(0.002, 0, 0.003),
    "infer": Timings(0.001, 0.002, 0.003, 4),
    "postprocess": Timings(0, 0, 0.001),
}
NEVER = 1e6


class Recorder:
    """The tracing of several services, in one memory; counts the span objects."""

    def __init__(self, sampler: Sampler) -> None:
        self._memory = InMemorySpanExporter()
        self.ids = CountedIds()
        self.tracing = Tracing(
            self.tracer("gateway", sampler), self.tracer("gateway"), self.tracer, lambda: None
        )

    def tracer(self, service: str, sampler: Sampler = ALWAYS_ON) -> Tracer:
        resource = Resource({"service.name": service})
        provider = TracerProvider(sampler, resource, id_generator=self.ids)
        provider.add_span_processor(SimpleSpanProcessor(self._memory))
        return provider.get_tracer("test")

    @property
    def spans(self) -> dict[int, ReadableSpan]:
        return {span_id(span): span for span in self._memory.get_finished_spans()}

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans.values() if label(span) == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def shape(self) -> list[tuple[object, ...]]:
        """Return each span with its parent's name and whatever does not differ from run to run."""
        spans = self.spans
        rows = []
        for span in spans.values():
            parent = spans.get(parent_id(span) or 0)
            found = attributes(span)
            found.pop(RECONSTRUCTED, None)
            found["server.address"] = "server.address" in found
            rows.append((
                label(parent) if parent is not None else "-", label(span), span.kind,
                sorted(found.items()), span.status.status_code, span.status.description,
            ))  # fmt: skip
        return sorted(rows, key=str)

    def edges(self) -> set[tuple[object, object]]:
        return {(row[0], row[1]) for row in self.shape()}


def label(span: ReadableSpan) -> str:
    return f"{span.resource.attributes['service.name']!s}: {span.name}"


@dataclass
class Gateway:
    """The layers of the gateway in front of small stages that have theirs."""

    handler: Handler
    mesh: FakeMesh
    recorder: Recorder

    async def ask(self, trace: bytes = b"") -> Reply:
        return await self.handler(Request("digits", b"jpeg", trace=trace))


def measured(name: str) -> Handler:
    async def handler(_: Request) -> Reply:
        return Reply(b"answer", timings=TIMINGS[name])

    return handler


@asynccontextmanager
async def running(
    folder: Path,
    slow_s: float = 0,
    sampler: Sampler = DEFAULT_OFF,
    per_s: float = 1000.0,
    burst: float = 1000.0,
) -> AsyncIterator[Gateway]:
    recorder = Recorder(sampler)
    root = repository(folder, digits=PIPELINE)
    async with running_mesh() as mesh:
        for client in mesh.stages.all():
            client._tracer = recorder.tracing.tracer
        runner = PipelineRunner(root, mesh.stages)
        await runner.check()
        late = LateTraces(recorder.tracing, slow_s, per_s, burst)
        layers = [late.layer(METHOD), *standard_layers(recorder.tracing.tracer, METHOD)]
        gateway = Gateway(stack(runner, layers), mesh, recorder)
        for index, name in enumerate(SERVICES):
            answer(gateway, index, measured(name))
        yield gateway


def answer(gateway: Gateway, index: int, handler: Handler) -> None:
    """Let a stage answer through the layers of a service whose sampler is the parent's."""
    fake = gateway.mesh.fakes[index]
    tracer = gateway.recorder.tracer(SERVICES[index], DEFAULT_ON)
    fake.answer = stack(handler, [tracing(tracer, f"{fake.service}/Run"), errors])


def failing(error: Exception, times: int = 1000) -> Handler:
    left = iter(range(times))

    async def handler(request: Request) -> Reply:
        if next(left, None) is None:
            return Reply(b"answer")
        raise error

    return handler


async def hang(_: Request) -> Reply:
    await asyncio.Event().wait()
    return Reply()


async def test_slow_request_has_every_edge(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        await gateway.ask()
        assert gateway.recorder.edges() == EDGES
        for span in gateway.recorder.spans.values():
            assert attributes(span)[RECONSTRUCTED] is True


@pytest.mark.parametrize(
    ("index", "error", "times"),
    [
        pytest.param(None, None, 0, id="ok"),
        *[
            pytest.param(index, EngineError("why"), 9, id=f"{name}_fails")
            for index, name in enumerate(SERVICES)
        ],
        pytest.param(1, StageUnavailable("sick"), 1, id="second_attempt"),
        pytest.param(1, StageUnavailable("sick"), 9, id="no_attempt_left"),
        pytest.param(0, InvalidInput("no JPEG"), 9, id="invalid"),
    ],
)
async def test_late_trace_has_the_shape_of_a_live_one(
    index: int | None, error: Exception | None, times: int, tmp_path: Path
) -> None:
    shapes = []
    for name, sampler in (("live", DEFAULT_ON), ("late", DEFAULT_OFF)):
        folder = tmp_path / name
        folder.mkdir()
        async with running(folder, sampler=sampler) as gateway:
            if index is not None and error is not None:
                answer(gateway, index, failing(error, times))
            await gateway.ask()
            shapes.append(gateway.recorder.shape())
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) > 2


async def test_replica_that_is_lost_is_told_without_a_span_in_its_name(tmp_path: Path) -> None:
    async with running(tmp_path, NEVER) as gateway:
        infer = gateway.mesh.infer
        answer(gateway, 1, hang)
        request = Request("digits", b"jpeg", deadline=time.monotonic() + 0.5)
        call = asyncio.ensure_future(gateway.handler(request))
        await eventually(lambda: infer.stage.depth == 1)
        await infer.kill()
        assert (await call).status is not None
        recorder = gateway.recorder
        assert recorder.one(f"gateway: {METHOD}").status.status_code is StatusCode.ERROR
        lost = recorder.one("gateway: mesh.v1.Infer/Run")
        assert attributes(lost)[STATUS] == "UNAVAILABLE"
        assert not recorder.named("infer: mesh.v1.Infer/Run")  # nobody knows how far it came


async def test_times_are_those_of_the_request(tmp_path: Path) -> None:
    async with running(tmp_path, NEVER) as gateway:
        answer(gateway, 1, failing(EngineError("why")))
        before = time.time_ns()
        request = Request("digits", b"jpeg", received=time.monotonic() - 2)
        await gateway.handler(request)
        after = time.time_ns()
        recorder = gateway.recorder
        root = recorder.one(f"gateway: {METHOD}")
        assert root.start_time == pytest.approx(before - 2 * 10**9, abs=10**8)
        assert before < (root.end_time or 0) <= after
        spans = recorder.spans
        for span in spans.values():
            parent = spans.get(parent_id(span) or 0)
            if parent is not None and span.name not in ("queue", "batch", "run"):
                assert (parent.start_time or 0) <= (span.start_time or 0) + 10**6, span.name
                assert (span.end_time or 0) <= (parent.end_time or 0) + 10**6, span.name


async def test_stage_lies_in_the_middle_of_its_attempt_and_its_parts_follow_one_another() -> None:
    recorder = Recorder(DEFAULT_OFF)
    late = LateTraces(recorder.tracing, 0)
    now = time.monotonic()
    hop = Hop(
        "mesh.v1.Infer/Run", "digits", "a:1", 0, now - 1, now, True, Timings(0.1, 0.2, 0.3, 8)
    )

    async def handler(request: Request) -> Reply:
        assert request.hops is not None
        request.hops.append(hop)
        return Reply()

    await late.layer(METHOD)(handler)(Request("digits", b""))
    client, server = (
        recorder.one("gateway: mesh.v1.Infer/Run"),
        recorder.one("infer: mesh.v1.Infer/Run"),
    )
    starts = [
        ((span.start_time or 0) - (client.start_time or 0)) / 1e9
        for span in (server, *(recorder.one(f"infer: {n}") for n in ("queue", "batch", "run")))
    ]
    assert starts == pytest.approx([0.2, 0.2, 0.3, 0.5], abs=0.005)
    assert ((client.end_time or 0) - (server.end_time or 0)) / 1e9 == pytest.approx(0.2, abs=0.005)
    assert attributes(recorder.one("infer: run"))[BATCH_ROWS] == 8


@pytest.mark.parametrize(
    ("error", "written"),
    [
        (None, False),
        (InvalidInput("no"), False),
        (Overloaded("full"), False),
        (EngineError("why"), True),
        (StageUnavailable("sick"), True),
        (ZeroDivisionError(), True),
    ],
    ids=["ok", "invalid", "overloaded", "engine", "unavailable", "unexpected"],
)
async def test_fast_request_is_written_only_for_a_fault_of_ours(
    error: Exception | None, written: bool, tmp_path: Path
) -> None:
    async with running(tmp_path, NEVER) as gateway:
        if error is not None:
            answer(gateway, 1, failing(error))
        await gateway.ask()
        assert bool(gateway.recorder.spans) is written


async def test_requests_that_are_not_written_make_no_span_object_anywhere(tmp_path: Path) -> None:
    async with running(tmp_path, NEVER) as gateway:
        for trace in (b"", UNSAMPLED):
            replies = await asyncio.gather(*(gateway.ask(trace) for _ in range(20)))
            assert {reply.payload for reply in replies} == {b"answer"}
        assert gateway.recorder.ids.spans == 0
        assert not gateway.recorder.spans
        await gateway.ask(SAMPLED)
        assert len(gateway.recorder.spans) == len(EDGES)  # the spans that could have been


async def test_sampled_request_is_written_once(tmp_path: Path) -> None:
    async with running(tmp_path, sampler=DEFAULT_ON) as gateway:
        await gateway.ask(SAMPLED)
        await gateway.ask()
        roots = gateway.recorder.named(f"gateway: {METHOD}")
        assert len(roots) == 2
        assert not any(RECONSTRUCTED in attributes(root) for root in roots)


async def test_trace_has_the_id_that_stages_and_logs_saw(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        await gateway.ask()
        (seen,) = gateway.mesh.infer.requests
        contexts = [span.get_span_context() for span in gateway.recorder.spans.values()]
        assert {context.trace_id for context in contexts if context is not None} == {
            int.from_bytes(seen.trace[:16], "big")
        }
        assert gateway.recorder.one(f"gateway: {METHOD}").parent is None


async def test_request_with_a_context_goes_on_in_the_trace_of_its_caller(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        await gateway.ask(UNSAMPLED)
        root = gateway.recorder.one(f"gateway: {METHOD}")
        assert parent_id(root) == int.from_bytes(UNSAMPLED[16:24], "big")
        context = root.get_span_context()
        assert context is not None
        assert context.trace_id.to_bytes(16, "big") == TRACE_ID


@pytest.mark.parametrize(
    "trace", [b"x", UNSAMPLED + b"\0", bytes(25)], ids=["short", "long", "zero"]
)
async def test_context_that_is_none_begins_a_trace(trace: bytes, tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        assert (await gateway.ask(trace)).payload == b"answer"
        assert gateway.recorder.one(f"gateway: {METHOD}").parent is None
        assert gateway.recorder.edges() == EDGES


@pytest.mark.parametrize("slow_s", [0, NEVER], ids=["slow", "fast"])
async def test_caller_that_gives_up_is_written_when_it_waited_long(
    slow_s: float, tmp_path: Path
) -> None:
    async with running(tmp_path, slow_s) as gateway:
        answer(gateway, 1, hang)
        call = asyncio.ensure_future(gateway.ask())
        await eventually(lambda: gateway.mesh.infer.stage.depth == 1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        found = {label(span): attributes(span)[STATUS] for span in gateway.recorder.spans.values()
                 if span.kind is SpanKind.CLIENT or span.parent is None}  # fmt: skip
        assert found == ({} if slow_s else {
            f"gateway: {METHOD}": "CANCELLED", "gateway: mesh.v1.Preprocess/Run": "OK",
            "gateway: mesh.v1.Infer/Run": "CANCELLED",
        })  # fmt: skip


def counted(result: str) -> float:
    return REGISTRY.get_sample_value("mesh_gateway_late_traces_total", {"result": result}) or 0


async def test_overload_writes_few_traces_and_counts_the_rest(tmp_path: Path) -> None:
    async with running(tmp_path, NEVER, per_s=1e-6, burst=5) as gateway:
        answer(gateway, 1, failing(EngineError("why")))
        before = counted("written"), counted("dropped")
        await asyncio.gather(*(gateway.ask() for _ in range(50)))
        assert len(gateway.recorder.named(f"gateway: {METHOD}")) == 5
        assert counted("written") - before[0] == 5
        assert counted("dropped") - before[1] == 45


def test_bucket_fills_with_time_up_to_its_burst() -> None:
    bucket = Bucket(per_s=10, burst=3)
    now = time.monotonic()
    assert [bucket.take(now) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(now + 0.05)
    assert bucket.take(now + 0.11)
    assert [bucket.take(now + 100) for _ in range(4)] == [True, True, True, False]


def hop(sent: float, took: float, error: MeshError | None = None) -> Hop:
    status = None if error is None else to_status(error)
    return Hop("mesh.v1.Infer/Run", "t", "a:1", 0, sent, sent + took, status=status)


def test_of_many_attempts_those_that_failed_and_the_longest_are_shown() -> None:
    quick = [hop(at, 1) for at in range(200)]
    failed, long = hop(50.5, 0.1, EngineError("why")), hop(20.5, 9)
    shown = worst([*quick[:100], failed, long, *quick[100:]])
    assert len(shown) == MAX_HOPS
    assert failed in shown
    assert long in shown
    assert [found.sent for found in shown] == sorted(found.sent for found in shown)


async def test_call_of_many_items_is_a_trace_of_bounded_size() -> None:
    recorder = Recorder(DEFAULT_OFF)

    async def handler(request: Request) -> Reply:
        assert request.hops is not None
        request.hops.extend(hop(at, 1) for at in range(10_000))
        return Reply()

    await LateTraces(recorder.tracing, 0).layer(METHOD)(handler)(Request("digits", b""))
    assert len(recorder.spans) == 1 + MAX_HOPS
    assert attributes(recorder.one(f"gateway: {METHOD}"))[ATTEMPTS] == 10_000


async def test_method_that_takes_its_time_is_written_only_where_it_failed() -> None:
    provider, exporter = TracerProvider(sampler=DEFAULT_OFF), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("t")
    late = LateTraces(Tracing(tracer, tracer, lambda _: tracer, lambda: None), 0.01)

    async def slow(request: Request) -> Reply:
        await asyncio.sleep(0.03)
        return Reply(status=to_status(EngineError("broke")) if request.payload else None)

    handler = stack(slow, [late.layer(METHOD, slow=False)])
    await handler(Request("p", b""))
    assert exporter.get_finished_spans() == ()
    await handler(Request("p", b"fail"))
    assert len(exporter.get_finished_spans()) == 1
    await stack(slow, [late.layer(METHOD)])(Request("p", b""))
    assert len(exporter.get_finished_spans()) == 2
