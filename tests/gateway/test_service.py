"""The public methods: typed calls, any pipeline, streams, lists and traces."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, TracesData
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind

from gateway.answers import text_of
from gateway.idempotency import Calls
from gateway.late_trace import LateTraces
from gateway.routing.controller import RouteController, route_handlers
from gateway.routing.store import RouteStore
from gateway.runner import PipelineRunner
from gateway.service import NAME, MeshService
from gateway.trace_store import TraceStore, trace_handler
from mesh.client import StageClient
from mesh.errors import DeadlineExceeded, InvalidInput, MeshError, NotFound, Refused
from mesh.item import Reply, Request
from mesh.messages import MOST_ITEMS
from mesh.server import Limits
from mesh.status import from_rpc_error
from mesh.telemetry import Tracing
from mesh.tensor import Tensors, bytes_tensor, from_proto, pack, to_proto, unpack
from protos.mesh.v1 import mesh_pb2, mesh_pb2_grpc, routes_pb2
from tests.conftest import eventually
from tests.gateway import generating
from tests.gateway.stages import PIPELINE, FakeMesh, repository, running_mesh
from tests.gateway.test_trace_store import group, request_span
from tests.mesh.spans import SAMPLED, Spans, parent_id, span_id

PIPELINES = {
    "digits": PIPELINE,
    "texts": PIPELINE.replace("classify", "classify_text"),
    "boxes": PIPELINE.replace("classify", "detect"),
    "misfit": "model: other",
    "plain": "model: digits",
}


@dataclass
class Gateway:
    """A served `MeshService` in front of small stages."""

    channel: grpc.aio.Channel
    address: str
    mesh: FakeMesh
    spans: Spans

    async def call(
        self, method: str, request: Message | bytes, timeout: float = 10, **metadata: str
    ) -> Any:
        """Call a method; raise our error where it fails."""
        descriptor = mesh_pb2.DESCRIPTOR.services_by_name["Mesh"].methods_by_name[method]
        name = descriptor.output_type.name
        response: Any = getattr(mesh_pb2, name, None) or getattr(routes_pb2, name)
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, Any] = self.channel.unary_unary(
            f"/{NAME}/{method}", response_deserializer=response.FromString
        )
        payload = request if isinstance(request, bytes) else request.SerializeToString()
        pairs = tuple((key.replace("_", "-"), value) for key, value in metadata.items())
        try:
            return await call(payload, timeout=timeout, metadata=pairs)
        except grpc.aio.AioRpcError as err:
            raise from_rpc_error(err) from err


async def pass_on(request: Request) -> Reply:
    """Preprocess and infer: refuse what is bad, else what came."""
    if b"bad" in request.payload:
        raise InvalidInput("tensor 'image' is bad")
    return Reply(request.payload)


async def rank(request: Request) -> Reply:
    """Postprocess: the length of what came as the only class."""
    (array,) = unpack(request.payload).values()
    length = len(array.tolist()[0])
    answer: Tensors = {
        "scores": np.array([[0.5]], np.float32), "classes": np.array([[length]], np.int64),
        "labels": bytes_tensor(b"bytes").reshape(1, 1),
    }  # fmt: skip
    return Reply(pack(answer))


def controlled(store: TraceStore | None, routes: RouteController | None = None) -> Any:
    """Return what a control process answers."""
    routes = routes or RouteController(RouteStore(None), [])
    return {"GetTrace": trace_handler(store), **route_handlers(routes), **Calls().handlers()}


@asynccontextmanager
async def running_gateway(
    folder: Path, store: TraceStore | None = None, spans: Spans | None = None, slow_s: float = 0
) -> AsyncIterator[Gateway]:
    root = repository(folder, **PIPELINES)
    async with running_mesh() as mesh:
        mesh.preprocess.answer = mesh.infer.answer = pass_on
        mesh.postprocess.answer = rank
        runner = PipelineRunner(root, mesh.stages)
        await runner.check()
        spans = spans or Spans()
        tracing = Tracing(spans.tracer, spans.sampled, lambda _: spans.sampled, lambda: None)
        late = LateTraces(tracing, slow_s) if slow_s else None
        service = MeshService(runner, spans.tracer, Limits(), controlled(store), late=late)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(NAME, service.methods()),)
        )
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                yield Gateway(channel, address, mesh, spans)
        finally:
            await server.stop(None)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with running_gateway(tmp_path) as found:
        yield found


def classes(response: Any) -> list[int]:
    return [result.categories[0].class_id for result in response.results]


def run_request(*texts: bytes, pipeline: str = "digits") -> mesh_pb2.RunRequest:
    inputs = [to_proto({"image": bytes_tensor(text)}) for text in texts]
    return mesh_pb2.RunRequest(pipeline=pipeline, inputs=inputs)


async def test_typed_call_answers_each_item_in_its_place(gateway: Gateway) -> None:
    images = [b"x" * length for length in (3, 1, 4, 1, 5, 9)]
    response = await gateway.call("Classify", mesh_pb2.ClassifyRequest(images=images))
    assert classes(response) == [3, 1, 4, 1, 5, 9]
    assert response.results[0].categories[0].label == "bytes"


async def test_typed_call_of_texts(gateway: Gateway) -> None:
    request = mesh_pb2.ClassifyTextRequest(texts=["ü", "abc"])
    assert classes(await gateway.call("ClassifyText", request)) == [2, 3]


async def test_run_takes_and_gives_tensors(gateway: Gateway) -> None:
    response = await gateway.call("Run", run_request(b"ab", b"abc"))
    outputs = [from_proto(output) for output in response.outputs]
    assert [output["classes"].tolist() for output in outputs] == [[[2]], [[3]]]


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Detect", mesh_pb2.DetectRequest()),
        ("Classify", mesh_pb2.ClassifyRequest(pipeline="digits")),
        ("ClassifyText", mesh_pb2.ClassifyTextRequest()),
        ("Run", mesh_pb2.RunRequest(pipeline="digits")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_call_without_items_is_refused(
    method: str, request_: Message, gateway: Gateway
) -> None:
    with pytest.raises(InvalidInput, match=r"0 items came for pipeline '.+', wanted 1 to 512"):
        await gateway.call(method, request_)


async def test_more_items_than_a_call_may_have_are_refused(gateway: Gateway) -> None:
    texts = ["x"] * MOST_ITEMS
    found = classes(await gateway.call("ClassifyText", mesh_pb2.ClassifyTextRequest(texts=texts)))
    assert len(found) == MOST_ITEMS
    with pytest.raises(InvalidInput, match=r"513 items came .*`Stream` takes any number"):
        await gateway.call("ClassifyText", mesh_pb2.ClassifyTextRequest(texts=[*texts, "x"]))


async def test_one_bad_item_of_several_fails_the_call_and_names_its_place(
    gateway: Gateway,
) -> None:
    request = mesh_pb2.ClassifyRequest(images=[b"good", b"good", b"bad", b"good"])
    with pytest.raises(InvalidInput) as caught:
        await gateway.call("Classify", request)
    assert str(caught.value) == "item 2: tensor 'image' is bad"
    with pytest.raises(InvalidInput, match=r"^item 1: "):
        await gateway.call("Run", run_request(b"good", b"bad"))


async def test_only_item_that_is_bad_needs_no_place(gateway: Gateway) -> None:
    with pytest.raises(InvalidInput, match=r"^tensor 'image' is bad$"):
        await gateway.call("Classify", mesh_pb2.ClassifyRequest(images=[b"bad"]))


@pytest.mark.parametrize(
    ("request_", "kind", "match"),
    [
        pytest.param(run_request(b"x", pipeline="nope"), NotFound, "'nope'", id="unknown"),
        pytest.param(run_request(b"x", pipeline=""), NotFound, "''", id="no_name"),
        pytest.param(run_request(b"x", pipeline="misfit"), Refused, "no 'other'", id="refused"),
        pytest.param(b"\xff\xff", InvalidInput, r"2 bytes .* no mesh\.v1\.RunRequest", id="bytes"),
        pytest.param(b"\x0a\x01\xff", InvalidInput, "valid UTF-8", id="no_utf_8"),
    ],
)
async def test_run_that_cannot_be_is_told_why(
    request_: Message | bytes, kind: type[MeshError], match: str, gateway: Gateway
) -> None:
    with pytest.raises(kind, match=match):
        await gateway.call("Run", request_)


async def test_pipeline_of_another_task_is_refused(gateway: Gateway) -> None:
    request = mesh_pb2.ClassifyRequest(pipeline="boxes", images=[b"x"])
    with pytest.raises(InvalidInput, match="has the task 'detect', this call is for 'classify'"):
        await gateway.call("Classify", request)


async def test_list_shows_what_is_served_and_why_the_rest_is_not(gateway: Gateway) -> None:
    response = await gateway.call("ListPipelines", mesh_pb2.ListPipelinesRequest())
    rows = {row.name: row for row in response.pipelines}
    assert list(rows) == sorted(PIPELINES)
    digits = rows["digits"]
    assert (digits.task, digits.model, digits.model_version) == ("classify", "digits", "3")
    assert [(spec.name, spec.dtype, list(spec.shape)) for spec in digits.inputs] == [
        ("image", "BYTES", [1])
    ]
    assert [spec.name for spec in digits.outputs] == ["classes"]
    assert [row.name for row in response.pipelines if row.refused] == ["misfit"]
    assert rows["misfit"].refused == "mesh.v1.Infer: there is no 'other'"


async def test_trace_is_given_from_the_store(tmp_path: Path) -> None:
    store = TraceStore()
    spans: ResourceSpans = group("gateway", request_span(5))
    store.add([spans])
    async with running_gateway(tmp_path, store) as gateway:
        response = await gateway.call("GetTrace", mesh_pb2.GetTraceRequest())
        assert response.trace_id == (5).to_bytes(16, "big").hex()
        assert TracesData.FromString(response.traces).resource_spans[0].resource == spans.resource
        with pytest.raises(InvalidInput, match="hexadecimal"):
            await gateway.call("GetTrace", mesh_pb2.GetTraceRequest(trace_id="x"))


async def test_trace_where_none_are_kept_says_where_they_go(gateway: Gateway) -> None:
    with pytest.raises(NotFound, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        await gateway.call("GetTrace", mesh_pb2.GetTraceRequest())


async def test_call_is_one_span_and_looking_is_none(gateway: Gateway) -> None:
    header = f"00-{SAMPLED[:16].hex()}-{SAMPLED[16:24].hex()}-01"
    await gateway.call("Run", run_request(b"ab", b"c"), traceparent=header)
    await gateway.call("ListPipelines", mesh_pb2.ListPipelinesRequest(), traceparent=header)
    assert [span.name for span in gateway.spans.all] == [f"{NAME}/Run"]
    parent = gateway.spans.one(f"{NAME}/Run").parent
    assert parent is not None
    assert parent.span_id.to_bytes(8, "big") == SAMPLED[16:24]


@pytest.fixture
async def unsampled(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway that samples nothing, and to which every request is slow."""
    async with running_gateway(tmp_path, spans=Spans(ALWAYS_OFF), slow_s=1e-9) as found:
        for client in found.mesh.stages.all():
            client._tracer = found.spans.tracer
        yield found


def kinds(gateway: Gateway, root: str) -> list[tuple[str, SpanKind]]:
    """Return the children of the only root with that name."""
    span = gateway.spans.one(root)
    return [
        (child.name, child.kind) for child in gateway.spans.all if parent_id(child) == span_id(span)
    ]


async def test_slow_call_that_is_not_sampled_shows_the_attempts_of_each_item(
    unsampled: Gateway,
) -> None:
    await unsampled.call("Run", run_request(b"ab", b"c", b"d"))
    stages = [fake.service for fake in unsampled.mesh.fakes]
    assert sorted(kinds(unsampled, f"{NAME}/Run")) == sorted(
        (f"{stage}/Run", SpanKind.CLIENT) for stage in stages * 3
    )


async def test_slow_item_of_a_stream_shows_its_attempts(unsampled: Gateway) -> None:
    async with StageClient(NAME, unsampled.address, method="Stream") as client:
        await client.call(Request("digits", pack({"image": bytes_tensor(b"x")})))
    assert len(kinds(unsampled, f"{NAME}/Stream")) == 3


async def test_looking_at_traces_is_never_slow(unsampled: Gateway) -> None:
    await unsampled.call("ListPipelines", mesh_pb2.ListPipelinesRequest())
    assert not unsampled.spans.all


async def test_stream_carries_items_of_any_pipeline(gateway: Gateway) -> None:
    async with StageClient(NAME, gateway.address, method="Stream") as client:

        async def ask(pipeline: str, text: bytes) -> Reply:
            return await client.call(Request(pipeline, pack({"image": bytes_tensor(text)})))

        good = [ask("digits", b"x" * length) for length in range(50)]
        replies = await asyncio.gather(*good, ask("digits", b"bad"), ask("nope", b""))
        lengths = [unpack(reply.payload)["classes"].tolist() for reply in replies[:50]]
        assert lengths == [[[length]] for length in range(50)]
        assert [type(reply.error()) for reply in replies[50:]] == [InvalidInput, NotFound]


async def test_item_of_a_stream_that_nobody_awaits_ends(gateway: Gateway) -> None:
    async def hang(_: Request) -> Reply:
        await asyncio.Event().wait()
        return Reply()

    gateway.mesh.infer.answer = hang
    async with StageClient(NAME, gateway.address, method="Stream") as client:
        request = Request("digits", pack({"image": bytes_tensor(b"x")}))
        call = asyncio.create_task(client.call(request))
        await eventually(lambda: gateway.mesh.infer.stage.depth == 1)
        call.cancel()
        await eventually(lambda: gateway.mesh.infer.stage.depth == 0)
        assert client.replicas


async def test_deadline_of_the_call_ends_every_item(gateway: Gateway) -> None:
    async def hang(_: Request) -> Reply:
        await asyncio.Event().wait()
        return Reply()

    gateway.mesh.infer.answer = hang
    with pytest.raises(DeadlineExceeded):
        await gateway.call("Run", run_request(*[b"x"] * 10), timeout=0.2)
    await eventually(lambda: gateway.mesh.infer.stage.depth == 0)
    await eventually(lambda: gateway.mesh.leased() == (0, 0))


async def test_caller_that_hangs_up_ends_every_item(gateway: Gateway) -> None:
    async def hang(_: Request) -> Reply:
        await asyncio.Event().wait()
        return Reply()

    gateway.mesh.preprocess.answer = hang
    call = asyncio.create_task(gateway.call("Run", run_request(*[b"x"] * 10)))
    await eventually(lambda: gateway.mesh.preprocess.stage.depth == 10)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await eventually(lambda: gateway.mesh.preprocess.stage.depth == 0)
    await eventually(lambda: gateway.mesh.leased() == (0, 0))


async def test_item_that_is_not_needed_any_more_does_not_change_the_error(
    gateway: Gateway,
) -> None:
    request = mesh_pb2.ClassifyRequest(images=[b"bad"] * 3)
    with pytest.raises(InvalidInput, match=r"^item 0: "):
        await gateway.call("Classify", request)


def test_methods_are_those_of_the_proto(tmp_path: Path) -> None:
    root = repository(tmp_path, digits=PIPELINE)
    runner = PipelineRunner(root, FakeMesh.__new__(FakeMesh))  # type: ignore[arg-type]
    methods = MeshService(runner, Spans().tracer, Limits(), controlled(None)).methods()
    assert methods.keys() == set(mesh_pb2.DESCRIPTOR.services_by_name["Mesh"].methods_by_name)


@asynccontextmanager
async def generating_gateway(
    folder: Path, addresses: list[str] | None = None
) -> AsyncIterator[tuple[grpc.aio.Channel, FakeMesh]]:
    """Serve one pipeline that generates, and one more whose answers are admitted by latency."""
    root = repository(folder, speller=generating.PIPELINE, other="model: other")
    async with generating.generating_mesh() as mesh:
        runner = PipelineRunner(root, mesh.stages)
        await runner.check()
        spans = Spans()
        service = MeshService(runner, spans.tracer, Limits(), controlled(TraceStore()), 0.001)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(NAME, service.methods()),)
        )
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        if addresses is not None:
            addresses.append(address)
        await server.start()
        async with grpc.aio.insecure_channel(address) as channel:
            yield channel, mesh
        await server.stop(None)


def generate(
    channel: grpc.aio.Channel, text: str, **options: Any
) -> grpc.aio.UnaryStreamCall[mesh_pb2.GenerateRequest, mesh_pb2.GenerateResponse]:
    call: Any = mesh_pb2_grpc.MeshStub(channel).Generate
    request = mesh_pb2.GenerateRequest(text=text, **options)
    return call(request, timeout=5)  # type: ignore[no-any-return]


async def test_generation_is_a_stream_of_texts_and_an_end(tmp_path: Path) -> None:
    async with generating_gateway(tmp_path) as (channel, mesh):
        responses = [response async for response in generate(channel, "Hello!", max_tokens=9)]
        assert "".join(response.text for response in responses) == "Hello!"
        assert [response.finish_reason for response in responses[:-1]] == [""] * (
            len(responses) - 1
        )
        last = responses[-1]
        assert (last.text, last.finish_reason) == ("", "length")
        assert (last.prompt_tokens, last.completion_tokens) == (6, 6)
        parameters = json.loads(mesh.infer.requests[0].parameters)
        assert parameters.pop("seed") > 0
        assert parameters == {"max_tokens": 9}


async def test_generation_that_fails_has_the_error_of_its_stage(tmp_path: Path) -> None:
    async with generating_gateway(tmp_path) as (channel, _):
        for text, options, error in (
            ("bad", {}, InvalidInput), ("x", {"pipeline": "none"}, NotFound),
            ("x", {"stop": [""]}, InvalidInput),
        ):  # fmt: skip
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await generate(channel, text, **options).read()
            assert isinstance(from_rpc_error(caught.value), error)


async def test_who_leaves_a_generation_ends_it_at_the_model(tmp_path: Path) -> None:
    async with generating_gateway(tmp_path) as (channel, mesh):
        mesh.infer.answer = partial(generating.spell, pause_s=0.01)
        for _ in range(10):
            call = generate(channel, "x" * 500)
            await call.read()
            call.cancel()
        await eventually(lambda: mesh.infer.stage.depth == 0)
        assert mesh.leased() == (0, 0)


async def test_generation_by_the_stream_of_many_requests(tmp_path: Path) -> None:
    """Those that take no replies before the last one find the whole text in it."""
    addresses: list[str] = []
    async with (
        generating_gateway(tmp_path, addresses), StageClient(NAME, addresses[0], "Stream") as client
    ):  # fmt: skip
        came: list[str] = []
        payload = pack({"text": bytes_tensor(b"Hello!")})
        reply = await client.call(
            Request("speller", payload), more=lambda reply: came.append(text_of(reply))
        )
        assert "".join(came) == text_of(reply) == "Hello!"


async def test_long_generation_is_no_sign_of_an_overload(tmp_path: Path) -> None:
    async with generating_gateway(tmp_path) as (channel, mesh):
        mesh.infer.answer = partial(generating.spell, pause_s=0.02)
        calls = [generate(channel, "x" * 30) for _ in range(30)]
        ends = await asyncio.gather(*(_end(call) for call in calls))
        assert ends == ["length"] * 30


async def _end(call: Any) -> str:
    reasons: list[str] = [response.finish_reason async for response in call]
    return reasons[-1]


async def test_route_is_compared_with_what_is_served_and_passed_on(gateway: Gateway) -> None:
    request = routes_pb2.SetRouteRequest(route={"pipeline": "digits", "canary": "9"})
    with pytest.raises(InvalidInput, match=r"versions \['9'\] of 'digits' are not served"):
        await gateway.call("SetRoute", request)
    with pytest.raises(NotFound, match="'none' is not known"):
        await gateway.call("SetRoute", routes_pb2.SetRouteRequest(route={"pipeline": "none"}))
    with pytest.raises(NotFound, match="has no route"):
        await gateway.call(
            "SetRoute", routes_pb2.SetRouteRequest(route={"pipeline": "digits"}, remove=True)
        )
    told = await gateway.call(
        "SetRoute", routes_pb2.SetRouteRequest(route={"pipeline": "digits", "stable": "3"}, by="x")
    )
    assert told.changes[-1].by.startswith("ipv4:127.0.0.1")  # not what the caller says
    assert (await gateway.call("GetRoutes", routes_pb2.GetRoutesRequest())).routes == told.routes


async def test_call_with_a_key_is_run_once(gateway: Gateway) -> None:
    request = mesh_pb2.ClassifyRequest(images=[b"picture"])
    answers = [await gateway.call("Classify", request, idempotency_key="k1") for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert len(gateway.mesh.infer.requests) == 1
    await gateway.call("Classify", request)
    await gateway.call("Classify", request, idempotency_key="k2")
    assert len(gateway.mesh.infer.requests) == 3
    other = mesh_pb2.ClassifyRequest(images=[b"another"])
    with pytest.raises(InvalidInput, match="'k1' came with another call before"):
        await gateway.call("Classify", other, idempotency_key="k1")
    bad = mesh_pb2.ClassifyRequest(images=[b"bad"])
    for _ in range(2):  # what failed is tried again
        with pytest.raises(InvalidInput, match="is bad"):
            await gateway.call("Classify", bad, idempotency_key="k3")
