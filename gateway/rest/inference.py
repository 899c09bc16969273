"""The routes of the Open Inference Protocol over HTTP, and Triton's extensions of it."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from tritonclient.grpc import service_pb2 as oip

from gateway.rest.answers import JSON, as_json, call, respond
from gateway.rest.bodies import from_base64, read, while_awaited
from gateway.rest.plain import plain
from gateway.rest.schema import IndexRequest, Inference, LoadParameters, UnloadParameters
from gateway.rest.tensors import Wishes, answer_of, raw_request, request_of
from mesh.errors import InvalidInput
from mesh.oip.service import OipService, load_parameters
from mesh.tensor import TensorSpec
from mesh.validation import faults

B = TypeVar("B", bound=BaseModel)

Answer = Callable[..., Awaitable[Response]]
HEADER = "Inference-Header-Content-Length"
FILE = "file:"
BINARY_MEDIA = "application/octet-stream"


def inference_routes(service: OipService, most_bytes: int) -> APIRouter:
    """Return the routes.

    Args:
        service: of the protocol.
        most_bytes: of a body.
    """
    routes = _Routes(service, most_bytes)
    router = APIRouter(tags=["Open Inference Protocol"])

    def add(
        method: str, path: str, answer: Callable[..., Awaitable[Response]], **more: Any
    ) -> None:
        router.add_api_route(path, answer, methods=[method], response_model=None, **more)

    add("GET", "/v2", routes.server)
    add("GET", "/v2/health/live", routes.live)
    add("GET", "/v2/health/ready", routes.ready)
    add("GET", "/v2/models/stats", routes.statistics)
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        add("GET", path, routes.metadata)
        add("GET", f"{path}/ready", routes.model_ready)
        add("GET", f"{path}/config", routes.config)
        add("GET", f"{path}/stats", routes.statistics)
        add("POST", f"{path}/infer", routes.infer, openapi_extra=_body(Inference))
    add("POST", "/v2/repository/index", routes.index, openapi_extra=_body(IndexRequest))
    for action, kind in (("load", LoadParameters), ("unload", UnloadParameters)):
        path = f"/v2/repository/models/{{model}}/{action}"
        add("POST", path, getattr(routes, action), openapi_extra=_body(kind))
    return router


class _Routes:
    def __init__(self, service: OipService, most_bytes: int) -> None:
        self._service = service
        self._handlers = service.handlers
        self._most = most_bytes

    async def server(self, http: Request) -> Response:
        """What this server is."""
        message = oip.ServerMetadataRequest()
        return as_json(plain(await call(self._handlers, http, message, oip)))

    async def live(self) -> Response:
        """200: the process answers."""
        return as_json({"live": True})  # KServe's client reads it, where Triton's body is empty

    async def ready(self, http: Request) -> Response:
        """200: inferences are answered; else 400, as with Triton."""
        message = oip.ServerReadyRequest()
        answer = await call(self._handlers, http, message, oip)
        return as_json({"ready": answer.ready}, 200 if answer.ready else 400)

    async def model_ready(self, http: Request, model: str, version: str = "") -> Response:
        """200: the model serves; else 400, as with Triton."""
        message = oip.ModelReadyRequest(name=model, version=version)
        answer = await call(self._handlers, http, message, oip)
        body = {"name": model, "ready": answer.ready}
        return as_json(body, 200 if answer.ready else 400)

    async def metadata(self, http: Request, model: str, version: str = "") -> Response:
        """What a model takes and makes."""
        message = oip.ModelMetadataRequest(name=model, version=version)
        return as_json(plain(await call(self._handlers, http, message, oip)))

    async def config(self, http: Request, model: str, version: str = "") -> Response:
        """Triton's ModelConfig of a model, with what was filled in."""
        message = oip.ModelConfigRequest(name=model, version=version)
        answer = await call(self._handlers, http, message, oip)
        return as_json(plain(answer)["config"])

    async def statistics(self, http: Request, model: str = "", version: str = "") -> Response:
        """What was counted and timed, of a model or of all."""
        message = oip.ModelStatisticsRequest(name=model, version=version)
        answer = await call(self._handlers, http, message, oip)
        return as_json(plain(answer))

    async def infer(self, http: Request, model: str, version: str = "") -> Response:
        """Run a model: JSON, with tensors in it or in binary behind it; or only one input's bytes.

        The header `Inference-Header-Content-Length` tells the bytes of the JSON where tensors
        follow; 0: the body is the model's only input.
        """
        body = await read(http, self._most)
        length = http.headers.get(HEADER)
        if length == "0":
            message = raw_request(*self._only_input(model, version), body)
            wishes = Wishes({}, others=True)
        else:
            message, wishes = request_of(body, length)
        message.model_name, message.model_version = model, version
        answering = call(self._handlers, http, message, oip)
        answer, head = answer_of(await while_awaited(http, answering), wishes)
        if head is None:
            return respond(http, answer, JSON)
        return respond(http, answer, BINARY_MEDIA, {HEADER: str(head)})

    async def index(self, http: Request) -> Response:
        """Every version of every model, how it is, and why."""
        given = _parsed(IndexRequest, await read(http, self._most))
        message = oip.RepositoryIndexRequest(ready=given.ready)
        answer = await call(self._handlers, http, message, oip)
        return as_json(plain(answer)["models"])

    async def load(self, http: Request, model: str) -> Response:
        """Load a model, or load it anew; answered once it serves."""
        given = _parsed(LoadParameters, await read(http, self._most)).parameters
        message = oip.RepositoryModelLoadRequest(model_name=model)
        load_parameters(message, {name: _loaded(name, value) for name, value in given.items()})
        await call(self._handlers, http, message, oip)
        return Response(media_type=JSON)

    async def unload(self, http: Request, model: str) -> Response:
        """Serve a model no more; what it runs is answered."""
        given = _parsed(UnloadParameters, await read(http, self._most)).parameters
        message = oip.RepositoryModelUnloadRequest(model_name=model)
        parts = given.get("unload_dependents", False)
        message.parameters["unload_dependents"].bool_param = parts
        await call(self._handlers, http, message, oip)
        return Response(media_type=JSON)

    def _only_input(self, model: str, version: str) -> tuple[TensorSpec, bool]:
        """Return the only input of a model, and whether its first dimension is a batch's."""
        inputs, batched = self._service.inputs(model, version)
        if len(inputs) != 1:
            raise InvalidInput(
                f"{HEADER} is 0, wanted for a model with one input; {model!r} has {len(inputs)}"
            )
        return inputs[0], batched


async def unknown_route(http: Request, error: Exception) -> Response:
    """Answer for a path that there is not, or not with this method, in Triton's form."""
    text = f"there is no {http.method} {http.url.path}; see /docs"
    status = getattr(error, "status_code", 404)
    return as_json({"error": text}, status)


def _parsed(kind: type[B], body: bytes) -> B:
    try:
        return kind.model_validate_json(body or b"{}")
    except ValidationError as err:
        raise InvalidInput(f"the body cannot be used: {faults(err, 'JSON')}") from err


def _loaded(name: str, value: Any) -> Any:
    if not name.startswith(FILE):
        return value
    return from_base64(f"parameter {name!r}", value)


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    """Return what the OpenAPI page tells of a body that is read by hand."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return {"requestBody": {"content": {JSON: {"schema": schema}}}}
