"""Routes for people with curl: files and texts in, answers out."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response

from gateway.rest.answers import JSON, as_json, call
from gateway.rest.bodies import read, while_awaited
from gateway.rest.plain import plain
from gateway.rest.schema import Texts
from mesh.errors import InvalidInput
from mesh.item import Handler
from mesh.messages import MOST_ITEMS
from mesh.validation import faults
from protos.mesh.v1 import mesh_pb2

FORM = "multipart/form-data"


def typed_routes(handlers: Mapping[str, Handler], most_bytes: int) -> APIRouter:
    """Return the routes.

    Args:
        handlers: of `mesh.v1.Mesh`, by method.
        most_bytes: of a body.
    """
    router = APIRouter(tags=["Files and texts"])

    async def detect(http: Request, pipeline: str = "") -> Response:
        """Find objects: `curl -F file=@page.jpg`, several of them, or a file as the body."""
        files = await _files(http, most_bytes)
        message = mesh_pb2.DetectRequest(pipeline=pipeline, images=files)
        answering = call(handlers, http, message, mesh_pb2)
        return as_json(plain(await while_awaited(http, answering)))

    async def classify(http: Request, pipeline: str = "") -> Response:
        """Say what pictures show: as `/v1/detect`."""
        files = await _files(http, most_bytes)
        message = mesh_pb2.ClassifyRequest(pipeline=pipeline, images=files)
        answering = call(handlers, http, message, mesh_pb2)
        return as_json(plain(await while_awaited(http, answering)))

    async def classify_text(http: Request) -> Response:
        """Say of texts what they are."""
        try:
            given = Texts.model_validate_json(await read(http, most_bytes))
        except ValidationError as err:
            raise InvalidInput(f"the body cannot be used: {faults(err, 'JSON')}") from err
        message = mesh_pb2.ClassifyTextRequest(pipeline=given.pipeline, texts=given.texts)
        answering = call(handlers, http, message, mesh_pb2)
        return as_json(plain(await while_awaited(http, answering)))

    async def pipelines(http: Request) -> Response:
        """Every pipeline, and why one is not served."""
        message = mesh_pb2.ListPipelinesRequest()
        return as_json(plain(await call(handlers, http, message, mesh_pb2)))

    for path, answer, body in (
        ("/v1/detect", detect, _FILES), ("/v1/classify", classify, _FILES),
        ("/v1/classify_text", classify_text, _TEXTS),
    ):  # fmt: skip
        router.add_api_route(
            path, answer, methods=["POST"], response_model=None, openapi_extra=body
        )
    router.add_api_route("/v1/pipelines", pipelines, methods=["GET"], response_model=None)
    return router


async def _files(http: Request, most_bytes: int) -> list[bytes]:
    """Return the files of a form, or the body as one file.

    Raises:
        InvalidInput: the form cannot be read, or has no file.
    """
    body = await read(http, most_bytes)
    if not http.headers.get("content-type", "").startswith(FORM):
        if not body:
            raise InvalidInput("no file came, wanted one as the body, or several in a form")
        return [body]
    sent = False

    async def receive() -> Any:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        form = await Request(http.scope, receive).form(max_files=MOST_ITEMS)
    except (MultiPartException, HTTPException, KeyError) as err:
        raise InvalidInput(f"the form cannot be read: {err}") from err
    try:
        files = [await one.read() for _, one in form.multi_items() if isinstance(one, UploadFile)]
    finally:
        await form.close()
    if not files:
        raise InvalidInput("a form without a file came; with curl: -F file=@picture.jpg")
    return files


_FILES = {
    "requestBody": {
        "content": {
            FORM: {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        }
    }
}
_TEXTS = {"requestBody": {"content": {JSON: {"schema": Texts.model_json_schema()}}}}
