"""Calls of the gateway's handlers for HTTP requests; answers and errors as HTTP has them."""

import json
import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import grpc
from google.protobuf.message import Message
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from gateway.rest.bodies import TooLarge, packed
from mesh.errors import MeshError, Overloaded
from mesh.item import Handler, Request
from mesh.status import code_of
from mesh.telemetry import from_traceparent

JSON = "application/json"
STATUSES = {
    grpc.StatusCode.NOT_FOUND: 404, grpc.StatusCode.INTERNAL: 500, grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.UNAVAILABLE: 503, grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.UNIMPLEMENTED: 501, grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}  # fmt: skip
"""As Triton's, and 504; every other code is 400. Overload is 503, as with Triton."""
TOO_LARGE = 413


def mesh_request(http: HttpRequest, target: str, message: Message) -> Request:
    """Return the request that a call of a handler is.

    Args:
        http: its trace context, and whose it is.
        target: name of the method.
        message: of the method.
    """
    address = http.client
    return Request(
        target, message.SerializeToString(), deadline=math.inf,
        trace=from_traceparent(http.headers.get("traceparent", "")),
        client=f"{address.host}:{address.port}" if address is not None else "",
        metadata=http.headers.items(),
    )  # fmt: skip


async def call(
    handlers: Mapping[str, Handler], http: HttpRequest, message: Message, protocol: ModuleType
) -> Any:
    """Call the method whose request a message is, and return its response.

    Args:
        handlers: by method.
        http: the request of HTTP.
        message: `<method>Request`.
        protocol: module of the messages, which has `<method>Response`.

    Raises:
        MeshError: as it answered.
    """
    name = type(message).__name__.removesuffix("Request")
    reply = await handlers[name](mesh_request(http, name, message))
    reply.check()
    return getattr(protocol, f"{name}Response").FromString(reply.payload)


def as_json(value: Any, status: int = 200) -> Response:
    """Return an answer of JSON.

    It is not packed: Triton's asyncio client accepts what is packed and unpacks inferences only.
    """
    return Response(json.dumps(value, separators=(",", ":")).encode(), status, media_type=JSON)


def respond(
    http: HttpRequest, body: bytes, media: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an answer, packed as the client accepts it."""
    body, encoding = packed(body, http.headers.get("accept-encoding", ""))
    given = dict(headers or {})
    if encoding:
        given["Content-Encoding"] = encoding
    return Response(body, media_type=media, headers=given)


def status_of(error: MeshError) -> int:
    """Return the HTTP status of an error."""
    return TOO_LARGE if isinstance(error, TooLarge) else STATUSES.get(code_of(error), 400)


def failure(error: MeshError) -> Response:
    """Return the answer that tells an error, in Triton's form."""
    answer = as_json({"error": str(error)}, status_of(error))
    if isinstance(error, Overloaded) and error.retry_s:
        answer.headers["Retry-After"] = str(math.ceil(error.retry_s))
    return answer
