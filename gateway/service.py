"""The public service `mesh.v1.Mesh`: every method is a handler with the same layers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import Message
from opentelemetry.trace import Tracer

from gateway.admission import Admission, admitting
from gateway.answers import TYPED_CALLS, TypedCall, generate_end, generate_parameters, text_of
from gateway.catalog import PipelineCatalog
from gateway.idempotency import idempotent
from gateway.late_trace import LateTraces
from gateway.metrics import metering, watch_admissions
from gateway.pipeline import GENERATE
from gateway.routing.routes import complete_route
from gateway.runner import PipelineRunner
from mesh.errors import InvalidInput, MeshError
from mesh.grpc_types import Methods
from mesh.item import Handler, Layer, Reply, Request, name_of, version_of
from mesh.layers import errors, logging_failures, stack, standard_layers
from mesh.messages import MOST_ITEMS, message_handler
from mesh.oip.regions import Regions
from mesh.oip.service import NAME as OIP
from mesh.oip.service import OipService
from mesh.server import Limits, StageServer
from mesh.tensor import bytes_tensor, pack, unpack
from mesh.unary import streaming_method, unary_method
from protos.mesh.v1 import mesh_pb2, routes_pb2
from protos.mesh.v1.stage_pb2 import Envelope
from protos.mesh.v1.tensor_pb2 import Tensors

NAME = "mesh.v1.Mesh"
CONTROL = ("GetTrace", "GetRoutes", "SetRoute")
"""Methods that the control process answers."""
INSIDE = ("Claim", "Complete")
"""Of its methods for data workers, those about idempotency keys."""
TEXTS = (f"{NAME}/Generate", f"{OIP}/ModelStreamInfer")
"""Methods whose answers come bit by bit."""


class MeshService:
    """The methods of `mesh.v1.Mesh`.

    Args:
        runner: runs one item through a pipeline.
        tracer: of the process.
        limits: of the coalescing streams.
        control: what the control process answers, by method: `CONTROL` and `INSIDE`.
        target_s: latency that is kept under overload, by refusing what would take longer; 0: none.
        late: writes traces of requests that were not sampled; None: nobody does.
    """

    def __init__(
        self,
        runner: PipelineRunner,
        tracer: Tracer,
        limits: Limits,
        control: Mapping[str, Handler],
        target_s: float = 0.0,
        late: LateTraces | None = None,
    ) -> None:
        self._runner = runner
        self._tracer = tracer
        self._late = late
        self._control = control
        admissions = {name: Admission(target_s) for name in runner.bounded() if target_s}
        watch_admissions(admissions)
        admitted = admitting(admissions)
        self._item = stack(runner, [metering(), errors, admitted])
        streamed = [metering(), *self._layers(f"{NAME}/Stream"), admitted]
        self.streams = StageServer(stack(runner, streamed), limits)
        self.streams.open()

        self.handlers = self._handlers()
        """Of all methods but `Stream`, by name; each raises nothing."""

    def methods(self) -> Methods:
        """Return the gRPC methods by name."""
        methods = {
            name: (streaming_method if name == "Generate" else unary_method)(handler, name)
            for name, handler in self.handlers.items()
        }
        methods["Stream"] = grpc.stream_stream_rpc_method_handler(
            self.streams.run, Envelope.FromString, Envelope.SerializeToString
        )
        return methods

    def _handlers(self) -> dict[str, Handler]:
        traced = {name: self._typed(call) for name, call in TYPED_CALLS.items()} | {
            "Generate": message_handler(mesh_pb2.GenerateRequest, self._generate),
            "Run": message_handler(mesh_pb2.RunRequest, self._run),
        }
        # Without a span: looking at traces should not make some.
        plain = {
            "ListPipelines": message_handler(mesh_pb2.ListPipelinesRequest, self._list_pipelines),
            **{name: self._control[name] for name in CONTROL},
            "SetRoute": message_handler(routes_pb2.SetRouteRequest, self._set_route),
        }
        return {
            name: stack(
                handler,
                [*self._layers(f"{NAME}/{name}"), *self._once(f"{NAME}/{name}")],
            )
            for name, handler in traced.items()
        } | {
            name: stack(handler, [logging_failures(f"{NAME}/{name}"), errors])
            for name, handler in plain.items()
        }

    def generating(self) -> list[str]:
        """Return the names of the pipelines that generate."""
        return self._runner.of_task(GENERATE)

    def oip(
        self,
        refresh: Callable[[], Awaitable[None]],
        settings: Mapping[str, Handler],
        regions: Regions,
    ) -> OipService:
        """Return the Open Inference Protocol over the same pipelines.

        Args:
            refresh: as for `PipelineCatalog`.
            settings: as for `OipService`.
            regions: as for `OipService`.
        """
        catalog = PipelineCatalog(self._runner, refresh)

        def layers(method: str) -> list[Layer]:
            return [*self._layers(method), *self._once(method)]

        return OipService(catalog, self._item, layers, settings, regions)

    def _layers(self, method: str) -> list[Layer]:
        # A text takes its time.
        slow = method not in TEXTS
        late = [self._late.layer(method, slow=slow)] if self._late is not None else []
        return [*late, *standard_layers(self._tracer, method)]

    def _once(self, method: str) -> list[Layer]:
        """Return what looks for idempotency keys; an answer that comes bit by bit has none."""
        return [idempotent(self._control, method)] if method not in TEXTS else []

    def _typed(self, call: TypedCall) -> Handler:
        async def answer(message: Any, request: Request) -> Message:
            pipeline = self._runner.find_task(call.task, name_of(message.pipeline))
            target = f"{pipeline.name}{version_of(message.pipeline)}"
            replies = await self._run_items(target, call.items(message), request)
            return call.response([unpack(reply.payload) for reply in replies])

        return message_handler(call.request, answer)

    async def _generate(self, message: mesh_pb2.GenerateRequest, call: Request) -> Message:
        pipeline = self._runner.find_task(GENERATE, name_of(message.pipeline))
        target = f"{pipeline.name}{version_of(message.pipeline)}"
        item = Request(
            target, pack({"text": bytes_tensor(message.text.encode())}),
            generate_parameters(message), b"", call.deadline, call.trace, call.client,
            hops=call.hops, metadata=call.metadata,
        )  # fmt: skip

        def emit(reply: Reply) -> None:
            if call.emit is not None:
                piece = mesh_pb2.GenerateResponse(text=text_of(reply))
                call.emit(Reply(piece.SerializeToString(), more=True))

        item.emit = emit
        reply = await self._item(item)
        reply.check()
        return generate_end(reply)

    async def _run(self, message: mesh_pb2.RunRequest, request: Request) -> Message:
        items = [tensors.SerializeToString() for tensors in message.inputs]
        replies = await self._run_items(message.pipeline, items, request)
        outputs = [Tensors.FromString(reply.payload) for reply in replies]
        versions = [reply.version for reply in replies]
        return mesh_pb2.RunResponse(outputs=outputs, model_versions=versions)

    async def _run_items(self, pipeline: str, items: list[bytes], call: Request) -> list[Reply]:
        """Run the items of one call side by side; one that fails, fails the call."""
        if not 1 <= len(items) <= MOST_ITEMS:
            raise InvalidInput(
                f"{len(items)} items came for pipeline {pipeline!r}, wanted 1 to {MOST_ITEMS} in a "
                "call; `Stream` takes any number"
            )

        def request(item: bytes) -> Request:
            return Request(
                pipeline, item, b"", b"", call.deadline, call.trace, call.client, hops=call.hops,
                metadata=call.metadata,
            )  # fmt: skip

        requests = list(map(request, items))
        if len(requests) == 1:
            replies = [await self._item(requests[0])]
        else:
            replies = await asyncio.gather(*map(self._item, requests))
        for index, reply in enumerate(replies):
            error = reply.error()
            if error is not None:
                raise error if len(replies) == 1 else type(error)(f"item {index}: {error}")
        return replies

    async def _set_route(
        self, message: routes_pb2.SetRouteRequest, call: Request
    ) -> routes_pb2.RoutesResponse:
        """Compare a route with what is served, and let the control process set it."""
        if not (message.remove or message.promote or message.rollback):
            complete_route(message.route, self._runner.find(message.route.pipeline).versions)
        message.by = call.client
        asked = Request("SetRoute", message.SerializeToString(), deadline=call.deadline)
        reply = await self._control["SetRoute"](asked)
        return routes_pb2.RoutesResponse.FromString(reply.payload)

    async def _list_pipelines(
        self, _: mesh_pb2.ListPipelinesRequest, __: Request
    ) -> mesh_pb2.ListPipelinesResponse:
        response = mesh_pb2.ListPipelinesResponse()
        for name in self._runner.names():
            row = response.pipelines.add(name=name)
            try:
                pipeline = self._runner.find(name)
            except MeshError as err:
                row.refused = str(err)
                continue
            row.task, row.model = pipeline.config.task, pipeline.config.model
            row.model_version = pipeline.model_version
            row.inputs.extend(spec.to_proto() for spec in pipeline.inputs)
            row.outputs.extend(spec.to_proto() for spec in pipeline.outputs)
        return response
