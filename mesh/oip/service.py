"""`inference.GRPCInferenceService`: models for clients of Triton and KServe."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from copy import copy
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.trace import Tracer
from tritonclient.grpc import service_pb2 as oip

from mesh import __version__
from mesh.errors import InvalidInput, MeshError, Overloaded, QueueTimeout, StageUnavailable
from mesh.grpc_types import Context, Methods
from mesh.item import Handler, Layer, Reply, Request
from mesh.layers import errors, logging_failures, stack, standard_layers
from mesh.messages import message_handler
from mesh.oip.catalog import Catalog, Model
from mesh.oip.regions import Regions
from mesh.oip.tensors import check_outputs, fill_outputs, inputs_of, items_of, joined, metadata
from mesh.status import to_status
from mesh.tensor import TensorSpec
from mesh.unary import request_of, unary_method
from protos.mesh.v1.tensor_pb2 import Tensors

NAME = "inference.GRPCInferenceService"
SETTINGS = (
    "LogSettings", "TraceSetting",
    *(f"{kind}SharedMemory{action}" for kind in ("System", "Cuda")
      for action in ("Status", "Register", "Unregister")),
)  # fmt: skip
"""Methods about settings and shared memory."""
SERVER = "trtmesh"
EXTENSIONS = (
    "classification", "model_repository", "model_repository(unload_dependents)", "schedule_policy",
    "model_configuration", "system_shared_memory", "cuda_shared_memory", "binary_tensor_data",
    "parameters", "statistics", "trace", "logging",
)  # fmt: skip
"""As Triton names them."""
FINAL = "triton_final_response"
PASSED_ON = ("priority", "timeout")
"""Parameters that models know, with Triton's meanings; those that generate know others."""
TEXT = "text"
ALL = oip.ModelInferRequest()
"""Names no outputs, and so wants all."""
AT_ONCE = 256
"""Requests of one stream that run side by side; their answers come in the order of the requests."""
SWAPS = 3
"""Times that the items of one request may meet different versions before it is given up."""


class OipService:
    """The methods of the Open Inference Protocol.

    Args:
        catalog: of the models.
        item: runs one item, with the layers of every item.
        layers: returns those of a call, given the method's full name.
        settings: handlers of the calls about settings and shared memory, by method.
        regions: shared memory that is registered.
    """

    def __init__(
        self,
        catalog: Catalog,
        item: Handler,
        layers: Callable[[str], list[Layer]],
        settings: Mapping[str, Handler],
        regions: Regions,
    ) -> None:
        self._settings = settings
        self.regions = regions
        self._catalog = catalog
        self._item = item
        self._call_layers = layers
        self.handlers = self._handlers()
        """Of the methods with one answer, by name; each raises nothing."""

    def methods(self) -> Methods:
        """Return the gRPC methods by name."""
        methods = {name: unary_method(handler, name) for name, handler in self.handlers.items()}
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._stream, None, oip.ModelStreamInferResponse.SerializeToString
        )
        return methods

    def inputs(self, name: str, version: str) -> tuple[list[TensorSpec], bool]:
        """Return what a request to a model brings, and whether the first dimension is a batch's.

        Raises:
            MeshError: the model is not served.
        """
        model = self._catalog.find(name, version)
        return taken(model), model.batched

    def _handlers(self) -> dict[str, Handler]:
        plain: dict[str, tuple[Any, Callable[[Any, Request], Awaitable[Any]]]] = {
            "ServerLive": (oip.ServerLiveRequest, self._server_live),
            "ServerReady": (oip.ServerReadyRequest, self._server_ready),
            "ServerMetadata": (oip.ServerMetadataRequest, self._server_metadata),
            "ModelReady": (oip.ModelReadyRequest, self._model_ready),
            "ModelMetadata": (oip.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": (oip.ModelConfigRequest, self._model_config),
            "ModelStatistics": (oip.ModelStatisticsRequest, self._model_statistics),
            "RepositoryIndex": (oip.RepositoryIndexRequest, self._repository_index),
            "RepositoryModelLoad": (oip.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": (oip.RepositoryModelUnloadRequest, self._unload),
        }
        infer = message_handler(oip.ModelInferRequest, self._model_infer)
        handlers = {name: message_handler(kind, answer) for name, (kind, answer) in plain.items()}
        return {
            name: stack(handler, [logging_failures(f"{NAME}/{name}"), errors])
            for name, handler in (handlers | dict(self._settings)).items()
        } | {"ModelInfer": stack(infer, self._layers("ModelInfer"))}

    def _layers(self, name: str) -> list[Layer]:
        return [*self._call_layers(f"{NAME}/{name}"), _as_triton]

    async def _server_live(self, _: Any, __: Request) -> Any:
        return oip.ServerLiveResponse(live=True)

    async def _server_ready(self, _: Any, __: Request) -> Any:
        return oip.ServerReadyResponse(ready=self._catalog.is_ready())

    async def _server_metadata(self, _: Any, __: Request) -> Any:
        return oip.ServerMetadataResponse(name=SERVER, version=__version__, extensions=EXTENSIONS)

    async def _model_ready(self, message: Any, _: Request) -> Any:
        try:
            model = self._catalog.find(message.name, message.version)
        except MeshError:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=self._catalog.serves(model))

    async def _model_metadata(self, message: Any, _: Request) -> Any:
        model = self._catalog.find(message.name, message.version)
        return oip.ModelMetadataResponse(
            name=model.name, versions=model.versions, platform=model.platform,
            inputs=map(metadata, taken(model)), outputs=map(metadata, model.outputs),
        )  # fmt: skip

    async def _model_config(self, message: Any, _: Request) -> Any:
        model = self._catalog.find(message.name, message.version)
        return oip.ModelConfigResponse(config=await self._catalog.config(model))

    async def _model_statistics(self, message: Any, _: Request) -> Any:
        found = await self._catalog.statistics(message.name, message.version)
        return oip.ModelStatisticsResponse(model_stats=found)

    async def _repository_index(self, message: Any, _: Request) -> Any:
        response = oip.RepositoryIndexResponse()
        for one in await self._catalog.index():
            if one.state == "READY" or not message.ready:
                response.models.add(
                    name=one.name, version=one.version, state=one.state, reason=one.reason
                )
        return response

    async def _load(self, message: Any, _: Request) -> Any:
        parameters = {
            name: getattr(value, kind)
            for name, value in message.parameters.items()
            if (kind := value.WhichOneof("parameter_choice"))
        }
        await self._catalog.load(message.model_name, parameters)
        return oip.RepositoryModelLoadResponse()

    async def _unload(self, message: Any, _: Request) -> Any:
        parts = message.parameters["unload_dependents"].bool_param
        await self._catalog.unload(message.model_name, parts=parts)
        return oip.RepositoryModelUnloadResponse()

    async def _model_infer(self, message: Any, call: Request) -> Any:
        return await self._answer(message, call, None)

    async def _answer(
        self, message: Any, call: Request, emit: Callable[[Reply], None] | None
    ) -> Any:
        """Run a request; a failure of one of its items is its failure."""
        model = self._catalog.find(message.model_name, message.model_version)
        check_outputs(message, [spec.name for spec in model.outputs])
        tensors = inputs_of(message, self.regions)
        if model.splits:
            items = items_of(tensors, model.inputs[0])
        else:
            items = [Tensors(tensors=tensors).SerializeToString()]
        if emit is not None and len(items) > 1:
            raise InvalidInput(f"{len(items)} texts came, wanted one for each request of a stream")
        parameters = _parameters(message, model)

        def request(item: bytes) -> Request:
            return Request(
                model.target, item, parameters, b"", call.deadline, call.trace, call.client,
                emit=emit, hops=call.hops, metadata=call.metadata,
            )  # fmt: skip

        replies = await self._run(list(map(request, items)))
        response = _response(message, model, replies[0].version)
        outputs = joined([reply.payload for reply in replies])
        fill_outputs(response, message, outputs, self.regions, model.labels, batched=model.batched)
        return response

    async def _run(self, requests: list[Request]) -> list[Reply]:
        """Run the items of one request on one version, also while another takes its place."""
        for _ in range(SWAPS):
            if len(requests) == 1:
                replies = [await self._item(requests[0])]
            else:
                replies = await asyncio.gather(*map(self._item, map(copy, requests)))
            for reply in replies:
                reply.check()
            if len({reply.version for reply in replies}) == 1:
                return replies
        raise StageUnavailable(
            f"the versions of {requests[0].target!r} changed {SWAPS} times during one request; try "
            "again, or name a version"
        )

    async def _stream(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Answer each request of a stream; what fails is told in its place and ends nothing."""
        answers: asyncio.Queue[asyncio.Queue[Any] | None] = asyncio.Queue(AT_ONCE)
        tasks: set[asyncio.Task[None]] = set()

        async def read() -> None:
            async for message in requests:
                answer: asyncio.Queue[Any] = asyncio.Queue()
                await answers.put(answer)
                task = asyncio.create_task(self._stream_one(message, context, answer))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await answers.put(None)

        reading = asyncio.create_task(read())
        try:
            while (answer := await answers.get()) is not None:
                while (response := await answer.get()) is not None:
                    await context.write(response)
            await reading
        finally:
            for task in (reading, *tasks):
                task.cancel()

    async def _stream_one(self, message: bytes, context: Context, answer: Any) -> None:
        """Put all responses to one request, and None at their end."""
        given = oip.ModelInferRequest()

        async def run(request: Request) -> Reply:
            try:
                given.MergeFromString(request.payload)
            except DecodeError as err:
                raise InvalidInput("a message came that is no ModelInferRequest") from err
            model = self._catalog.find(given.model_name, given.model_version)
            decoupled = model.decoupled
            told = not given.outputs or any(output.name == TEXT for output in given.outputs)

            def emit(reply: Reply) -> None:
                piece = _response(given, model, reply.version)
                fill_outputs(piece, ALL, joined([reply.payload]), self.regions)
                piece.parameters[FINAL].bool_param = False
                answer.put_nowait(oip.ModelStreamInferResponse(infer_response=piece))

            last = await self._answer(given, request, emit if decoupled and told else None)
            if decoupled:
                _leave_out_text(last)
            last.parameters[FINAL].bool_param = True
            return Reply(last.SerializeToString())

        handler = stack(run, self._layers("ModelStreamInfer"))
        reply = await handler(request_of("ModelStreamInfer", message, context))
        response = oip.ModelStreamInferResponse()
        if (error := reply.error()) is not None:
            response.error_message = str(error)
            response.infer_response.id = given.id
        else:
            response.infer_response.MergeFromString(reply.payload)
        answer.put_nowait(response)
        answer.put_nowait(None)


def _leave_out_text(last: Any) -> None:
    """Empty the text of the last response of a stream: it came bit by bit."""
    for index, output in enumerate(last.outputs):
        if output.name == TEXT:
            last.raw_output_contents[index] = bytes(4)  # one element, of no bytes


def oip_methods(
    catalog: Catalog,
    item: Handler,
    tracer: Tracer,
    settings: Mapping[str, Handler],
    regions: Regions,
) -> Methods:
    """Return the protocol's methods of a stage, with the layers that its items have."""
    handler = stack(item, [errors])

    def layers(name: str) -> list[Layer]:
        return standard_layers(tracer, name)

    return OipService(catalog, handler, layers, settings, regions).methods()


def load_parameters(message: Any, parameters: Mapping[str, Any]) -> None:
    """Add the parameters of a load to its request."""
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", bytes: "bytes_param"}.get(type(value))
        setattr(message.parameters[name], kind or "string_param", value)


def taken(model: Model) -> list[TensorSpec]:
    """Return what a request brings: of texts and files as many as there are."""
    if not model.splits:
        return list(model.inputs)
    return [replace(spec, shape=(-1,)) for spec in model.inputs]


def _response(message: Any, model: Model, version: str) -> Any:
    return oip.ModelInferResponse(
        model_name=model.name, model_version=version or model.version, id=message.id
    )


def _parameters(message: Any, model: Model) -> bytes:
    """Return the parameters that the model knows, as JSON."""
    given = {
        name: getattr(value, kind)
        for name, value in message.parameters.items()
        if (kind := value.WhichOneof("parameter_choice")) and not name.startswith("triton_")
    }
    known = {name: value for name, value in given.items() if (name in PASSED_ON) != model.decoupled}
    return json.dumps(known, sort_keys=True, separators=(",", ":")).encode() if known else b""


def _as_triton(handler: Handler) -> Handler:
    """Answer an overload, and a wait that a queue policy ends, with UNAVAILABLE as Triton does."""
    inner = errors(handler)

    async def mapped(request: Request) -> Reply:
        reply = await inner(request)
        error = reply.error()
        if isinstance(error, Overloaded | QueueTimeout):
            reply.status = to_status(StageUnavailable(str(error)))
        return reply

    return mapped
