"""Routes of texts that are generated: Triton's `/generate` and OpenAI's `/v1/completions`."""

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.rest.answers import JSON, as_json, mesh_request, status_of
from gateway.rest.bodies import read, while_awaited
from gateway.rest.schema import Completion, Generation
from mesh.errors import InvalidInput, MeshError
from mesh.item import Handler, Reply
from mesh.unary import replies
from mesh.validation import faults
from protos.mesh.v1 import mesh_pb2

SSE = "text/event-stream"
PARAMETERS = (
    "max_tokens", "temperature", "top_k", "top_p", "seed", "stop", "repetition_penalty",
)  # fmt: skip
"""Of `GenerateRequest`."""
DONE = b"data: [DONE]\n\n"


def generating_routes(
    generate: Handler, models: Callable[[], list[str]], most_bytes: int
) -> APIRouter:
    """Return the routes.

    Args:
        generate: the handler of `Mesh.Generate`.
        models: returns the names of pipelines that generate.
        most_bytes: of a body.
    """
    routes = _Routes(generate, models, most_bytes)
    router = APIRouter(tags=["Generation"])
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        for name, answer in (("generate", routes.whole), ("generate_stream", routes.stream)):
            router.add_api_route(
                f"{path}/{name}", answer, methods=["POST"], response_model=None,
                openapi_extra=_body(Generation),
            )  # fmt: skip
    router.add_api_route(
        "/v1/completions", routes.completions, methods=["POST"], response_model=None,
        openapi_extra=_body(Completion),
    )  # fmt: skip
    router.add_api_route("/v1/models", routes.models, methods=["GET"], response_model=None)
    return router


class _Routes:
    def __init__(self, generate: Handler, models: Callable[[], list[str]], most_bytes: int) -> None:
        self._generate, self._models, self._most = generate, models, most_bytes

    async def whole(self, http: Request, model: str, version: str = "") -> Response:
        """A text, once it is whole."""
        given = _generation(await read(http, self._most))
        request = _request(_target(model, version), given)
        text, end = await while_awaited(http, self._text(http, request))
        return as_json(_told(model, version, text, end, given.id))

    async def stream(self, http: Request, model: str, version: str = "") -> Response:
        """A text bit by bit, as server-sent events; to close the connection ends it."""
        given = _generation(await read(http, self._most))
        request = _request(_target(model, version), given)

        def event(piece: mesh_pb2.GenerateResponse) -> bytes:
            end = piece if piece.finish_reason else None
            return _event(_told(model, version, piece.text, end, given.id))

        return await _streamed(self._pieces(http, request), event, _event_error)

    async def completions(self, http: Request) -> Response:
        """OpenAI's text completion."""
        try:
            given = _completion(await read(http, self._most))
            prompts = [given.prompt] if isinstance(given.prompt, str) else given.prompt
            if not prompts or (given.stream and len(prompts) > 1):
                raise InvalidInput(
                    f"{len(prompts)} prompts came, wanted at least one, and one for a stream"
                )
            requests = [_completing(given, prompt) for prompt in prompts]
            if given.stream:
                return await self._completion_stream(http, given, requests[0])
            made = [await while_awaited(http, self._text(http, one)) for one in requests]
        except MeshError as err:
            return Response(_openai_error(err), status_of(err), media_type=JSON)
        answer = _completed(given.model)
        answer["choices"] = [
            _choice(index, f"{prompts[index] if given.echo else ''}{text}", end)
            for index, (text, end) in enumerate(made)
        ]
        answer["usage"] = _usage([end for _, end in made])
        return as_json(answer)

    async def models(self, http: Request) -> Response:
        """The models of `/v1/completions`, as OpenAI lists them."""
        rows = [
            {"id": name, "object": "model", "created": 0, "owned_by": "trtmesh"}
            for name in self._models()
        ]
        return as_json({"object": "list", "data": rows})

    async def _completion_stream(
        self, http: Request, given: Completion, request: mesh_pb2.GenerateRequest
    ) -> Response:
        head = _completed(given.model)
        usage = given.stream_options is not None and given.stream_options.include_usage
        if given.echo:
            raise InvalidInput("echo came with stream, wanted one of them")

        def event(piece: mesh_pb2.GenerateResponse) -> bytes:
            end = piece if piece.finish_reason else None
            told = _event({**head, "choices": [_choice(0, piece.text, end)]})
            if end is not None and usage:
                told += _event({**head, "choices": [], "usage": _usage([end])})
            return told + (DONE if end is not None else b"")

        def failed(error: MeshError) -> bytes:
            return b"data: " + _openai_error(error) + b"\n\n"

        return await _streamed(self._pieces(http, request), event, failed)

    async def _pieces(
        self, http: Request, request: mesh_pb2.GenerateRequest
    ) -> AsyncGenerator[mesh_pb2.GenerateResponse, None]:
        """Yield what a generation tells; the last has the reason of its end.

        Raises:
            MeshError: it failed.
        """
        asked = mesh_request(http, "Generate", request)
        async with aclosing(replies(self._generate, asked)) as made:
            async for reply in made:
                yield _piece(reply)

    async def _text(
        self, http: Request, request: mesh_pb2.GenerateRequest
    ) -> tuple[str, mesh_pb2.GenerateResponse]:
        """Return a whole text, and what its last response tells."""
        parts = []
        piece = mesh_pb2.GenerateResponse()
        async with aclosing(self._pieces(http, request)) as pieces:
            async for piece in pieces:
                parts.append(piece.text)
        return "".join(parts), piece


async def _streamed(
    pieces: AsyncGenerator[mesh_pb2.GenerateResponse, None],
    event: Callable[[mesh_pb2.GenerateResponse], bytes],
    failed: Callable[[MeshError], bytes],
) -> Response:
    """Return a stream of events, once the first is there: until then an error has its status.

    Raises:
        MeshError: nothing came.
    """
    try:
        first = await anext(pieces)
    except BaseException:
        await pieces.aclose()
        raise

    async def events() -> AsyncIterator[bytes]:
        async with aclosing(pieces):
            yield event(first)
            try:
                async for piece in pieces:
                    yield event(piece)
            except MeshError as err:
                yield failed(err)

    return StreamingResponse(events(), media_type=SSE, headers={"Cache-Control": "no-cache"})


def _piece(reply: Reply) -> mesh_pb2.GenerateResponse:
    reply.check()
    return mesh_pb2.GenerateResponse.FromString(reply.payload)


def _generation(body: bytes) -> Generation:
    try:
        return Generation.model_validate_json(body)
    except ValidationError as err:
        raise InvalidInput(f"the body is no generation: {faults(err, 'JSON')}") from err


def _completion(body: bytes) -> Completion:
    try:
        return Completion.model_validate_json(body)
    except ValidationError as err:
        raise InvalidInput(f"the body is no completion: {faults(err, 'JSON')}") from err


def _target(model: str, version: str) -> str:
    return f"{model}/{version}" if version else model


def _request(pipeline: str, given: Generation) -> mesh_pb2.GenerateRequest:
    """Return the request of `/generate`: parameters stand beside the text, or in an object."""
    beside = given.model_extra or {}
    options = {**beside, **given.parameters}
    if unknown := sorted(options.keys() - set(PARAMETERS)):
        raise InvalidInput(f"parameters {unknown} came, there are {list(PARAMETERS)}")
    return _filled(mesh_pb2.GenerateRequest(pipeline=pipeline, text=given.text_input), options)


def _completing(given: Completion, prompt: str) -> mesh_pb2.GenerateRequest:
    options = {name: value for name in PARAMETERS if (value := getattr(given, name)) is not None}
    return _filled(mesh_pb2.GenerateRequest(pipeline=given.model, text=prompt), options)


def _filled(
    request: mesh_pb2.GenerateRequest, options: Mapping[str, Any]
) -> mesh_pb2.GenerateRequest:
    for name, value in options.items():
        try:
            if name == "stop":
                request.stop.extend([value] if isinstance(value, str) else value)
            else:
                setattr(request, name, value)
        except (TypeError, ValueError) as err:
            raise InvalidInput(f"parameter {name!r} is {value!r:.80}: {err}") from err
    return request


def _told(
    model: str, version: str, text: str, end: mesh_pb2.GenerateResponse | None, key: str
) -> dict[str, Any]:
    told: dict[str, Any] = {"model_name": model}
    if version := version or (end.model_version if end is not None else ""):
        told["model_version"] = version
    told["text_output"] = text
    if key:
        told["id"] = key
    if end is not None:
        told |= {
            "finish_reason": end.finish_reason, "prompt_tokens": end.prompt_tokens,
            "completion_tokens": end.completion_tokens,
        }  # fmt: skip
    return told


def _completed(model: str) -> dict[str, Any]:
    return {
        "id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion",
        "created": int(time.time()), "model": model,
    }  # fmt: skip


def _choice(index: int, text: str, end: mesh_pb2.GenerateResponse | None) -> dict[str, Any]:
    reason = end.finish_reason if end is not None else None
    return {"text": text, "index": index, "logprobs": None, "finish_reason": reason}


def _usage(ends: list[mesh_pb2.GenerateResponse]) -> dict[str, int]:
    read_, made = sum(end.prompt_tokens for end in ends), sum(e.completion_tokens for e in ends)
    return {"prompt_tokens": read_, "completion_tokens": made, "total_tokens": read_ + made}


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _event_error(error: MeshError) -> bytes:
    return _event({"error": str(error)})


def _openai_error(error: MeshError) -> bytes:
    kind = "invalid_request_error" if status_of(error) < 500 else "server_error"
    told = {"message": str(error), "type": kind, "param": None, "code": None}
    return json.dumps({"error": told}).encode()


def _body(kind: type[Generation] | type[Completion]) -> dict[str, Any]:
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return {"requestBody": {"content": {JSON: {"schema": schema}}}}
