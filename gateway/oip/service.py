"""`inference.GRPCInferenceService`: pipelines as models, for clients of Triton and KServe.

A model that a pipeline has the name of is `<name>.model`. What Triton has beside and this has not
yet (model control, shared memory, settings) is answered UNIMPLEMENTED.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as oip

from gateway.messages import message_handler
from gateway.oip.statistics import model_statistics, statistics
from gateway.oip.tensors import check_outputs, fill_outputs, inputs_of, items_of, joined, metadata
from gateway.pipeline import GENERATE, Pipeline
from gateway.runner import PipelineRunner
from mesh import __version__
from mesh.errors import InvalidInput, MeshError, NotFound, Overloaded, StageUnavailable
from mesh.grpc_types import Context, Method, Methods
from mesh.item import Handler, Layer, Reply, Request
from mesh.layers import errors, logging_failures, stack
from mesh.status import to_status
from mesh.unary import request_of, unary_method
from protos.mesh.v1.tensor_pb2 import Tensors

NAME = "inference.GRPCInferenceService"
SERVER = "trtmesh"
EXTENSIONS = ("classification", "model_configuration", "binary_tensor_data", "parameters")
FINAL = "triton_final_response"
WANTS_FINAL = "triton_enable_empty_final_response"
PASSED_ON = ("priority", "timeout")
"""Parameters that models know, with Triton's meanings; those that generate know others."""
TEXT = "text"
ALL = oip.ModelInferRequest()
"""Names no outputs, and so wants all."""
AT_ONCE = 256
"""Requests of one stream that run side by side; their answers come in the order of the requests."""


class OipService:
    """The methods of the Open Inference Protocol.

    Args:
        runner: of the pipelines.
        item: runs one item, with the layers of every item.
        layers: returns those of a call, given the method's full name.
    """

    def __init__(
        self, runner: PipelineRunner, item: Handler, layers: Callable[[str], list[Layer]]
    ) -> None:
        self._runner = runner
        self._item = item
        self._call_layers = layers
        self._infer = stack(
            message_handler(oip.ModelInferRequest, self._model_infer), self._layers("ModelInfer")
        )

    def methods(self) -> Methods:
        """Return the gRPC methods by name."""
        plain: dict[str, tuple[Any, Callable[[Any, Request], Awaitable[Any]]]] = {
            "ServerLive": (oip.ServerLiveRequest, self._server_live),
            "ServerReady": (oip.ServerReadyRequest, self._server_ready),
            "ServerMetadata": (oip.ServerMetadataRequest, self._server_metadata),
            "ModelReady": (oip.ModelReadyRequest, self._model_ready),
            "ModelMetadata": (oip.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": (oip.ModelConfigRequest, self._model_config),
            "ModelStatistics": (oip.ModelStatisticsRequest, self._model_statistics),
            "RepositoryIndex": (oip.RepositoryIndexRequest, self._repository_index),
        }
        return {
            name: self._plain(name, message_handler(kind, answer))
            for name, (kind, answer) in plain.items()
        } | {
            "ModelInfer": unary_method(self._infer, "ModelInfer"),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
                self._stream, None, oip.ModelStreamInferResponse.SerializeToString
            ),
        }

    def _layers(self, name: str) -> list[Layer]:
        return [*self._call_layers(f"{NAME}/{name}"), _as_triton]

    def _plain(self, name: str, handler: Handler) -> Method:
        return unary_method(stack(handler, [logging_failures(f"{NAME}/{name}"), errors]), name)

    async def _server_live(self, _: Any, __: Request) -> Any:
        return oip.ServerLiveResponse(live=True)

    async def _server_ready(self, _: Any, __: Request) -> Any:
        ready = [self._runner.is_ready(name) for name in self._runner.names()]
        return oip.ServerReadyResponse(ready=any(ready))

    async def _server_metadata(self, _: Any, __: Request) -> Any:
        return oip.ServerMetadataResponse(name=SERVER, version=__version__, extensions=EXTENSIONS)

    async def _model_ready(self, message: Any, _: Request) -> Any:
        try:
            pipeline = self._find(message.name, message.version)
        except MeshError:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=self._runner.is_ready(pipeline.name))

    async def _model_metadata(self, message: Any, _: Request) -> Any:
        pipeline = self._find(message.name, message.version)
        return oip.ModelMetadataResponse(
            name=pipeline.name, versions=[pipeline.model_version], platform="ensemble",
            inputs=map(metadata, _inputs(pipeline)), outputs=map(metadata, pipeline.outputs),
        )  # fmt: skip

    async def _model_config(self, message: Any, _: Request) -> Any:
        pipeline = self._find(message.name, message.version)
        config = model_config_pb2.ModelConfig(name=pipeline.name, platform="ensemble")
        for target, specs in (
            (config.input, _inputs(pipeline)), (config.output, pipeline.outputs),
        ):  # fmt: skip
            for spec in specs:
                kind = f"TYPE_{spec.dtype.replace('BYTES', 'STRING')}"
                number = model_config_pb2.DataType.Value(kind)
                target.add(name=spec.name, data_type=number, dims=spec.shape)
        config.model_transaction_policy.decoupled = pipeline.config.task == GENERATE
        return oip.ModelConfigResponse(config=config)

    async def _model_statistics(self, message: Any, _: Request) -> Any:
        """Tell what the pipelines' models counted, whoever asked them."""
        names = [message.name] if message.name else self._served()
        pipelines = [self._find(name, message.version) for name in names]
        sums = await statistics(self._runner.stages.infer)
        response = oip.ModelStatisticsResponse()
        for pipeline in pipelines:
            key = pipeline.config.model, pipeline.model_version
            counted = sums.get(key, Counter())
            response.model_stats.append(model_statistics(pipeline.name, key[1], counted))
        return response

    def _served(self) -> list[str]:
        return [name for name in self._runner.models() if self._runner.is_ready(name)]

    async def _repository_index(self, message: Any, _: Request) -> Any:
        response = oip.RepositoryIndexResponse()
        for name in self._runner.models():
            try:
                pipeline = self._runner.find(name)
            except MeshError as err:
                if not message.ready:
                    response.models.add(name=name, state="UNAVAILABLE", reason=str(err))
                continue
            response.models.add(name=name, version=pipeline.model_version, state="READY")
        return response

    def _find(self, name: str, version: str) -> Pipeline:
        pipeline = self._runner.find(name)
        if version not in ("", pipeline.model_version):
            raise NotFound(
                f"version {version!r} of model {name!r} is not served, but {pipeline.model_version}"
            )
        return pipeline

    async def _model_infer(self, message: Any, call: Request) -> Any:
        return await self._answer(message, call, None)

    async def _answer(
        self, message: Any, call: Request, emit: Callable[[Reply], None] | None
    ) -> Any:
        """Run a request; a failure of one of its items is its failure."""
        pipeline = self._find(message.model_name, message.model_version)
        check_outputs(message, [spec.name for spec in pipeline.outputs])
        tensors = inputs_of(message)
        if pipeline.before is not None:
            items = items_of(tensors, pipeline.inputs[0])
        else:
            items = [Tensors(tensors=tensors).SerializeToString()]
        if emit is not None and len(items) > 1:
            raise InvalidInput(f"{len(items)} texts came, wanted one for each request of a stream")
        parameters = _parameters(message, pipeline)
        requests = [
            Request(
                pipeline.name, item, parameters, b"", call.deadline, call.trace, call.client,
                emit=emit, hops=call.hops,
            )
            for item in items
        ]  # fmt: skip
        replies = await asyncio.gather(*map(self._item, requests))
        for reply in replies:
            reply.check()
        response = _response(message, pipeline)
        fill_outputs(response, message, joined([reply.payload for reply in replies]))
        return response

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
            pipeline = self._find(given.model_name, given.model_version)
            decoupled = pipeline.config.task == GENERATE
            told = not given.outputs or any(output.name == TEXT for output in given.outputs)

            def emit(reply: Reply) -> None:
                piece = _response(given, pipeline)
                fill_outputs(piece, ALL, joined([reply.payload]))
                piece.parameters[FINAL].bool_param = False
                answer.put_nowait(oip.ModelStreamInferResponse(infer_response=piece))

            last = await self._answer(given, request, emit if decoupled and told else None)
            if decoupled:
                _leave_out_text(last)
            if decoupled or given.parameters[WANTS_FINAL].bool_param:
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


def _inputs(pipeline: Pipeline) -> list[Any]:
    """Return what a request brings: of texts and files as many as there are."""
    if pipeline.before is None:
        return list(pipeline.inputs)
    return [replace(spec, shape=(-1,)) for spec in pipeline.inputs]


def _response(message: Any, pipeline: Pipeline) -> Any:
    return oip.ModelInferResponse(
        model_name=pipeline.name, model_version=pipeline.model_version, id=message.id
    )


def _parameters(message: Any, pipeline: Pipeline) -> bytes:
    """Return the parameters that the pipeline's model knows, as JSON."""
    given = {
        name: getattr(value, kind)
        for name, value in message.parameters.items()
        if (kind := value.WhichOneof("parameter_choice")) and not name.startswith("triton_")
    }
    generates = pipeline.config.task == GENERATE
    given = {name: value for name, value in given.items() if (name in PASSED_ON) != generates}
    return json.dumps(given, sort_keys=True, separators=(",", ":")).encode() if given else b""


def _as_triton(handler: Handler) -> Handler:
    """Answer an overload with UNAVAILABLE, as Triton does."""
    inner = errors(handler)

    async def mapped(request: Request) -> Reply:
        reply = await inner(request)
        error = reply.error()
        if isinstance(error, Overloaded):
            reply.status = to_status(StageUnavailable(str(error)))
        return reply

    return mapped
