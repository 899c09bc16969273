"""Bodies of requests: bounded before they are read, unpacked, and watched until the answer."""

import asyncio
import base64
import zlib
from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.requests import Request

from mesh.errors import Cancelled, InvalidInput

PIECE = 1 << 16
WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""For zlib, by the name in `Content-Encoding`."""

T = TypeVar("T")


class TooLarge(InvalidInput):
    """A body is larger than the gateway takes."""


async def read(request: Request, most: int) -> bytes:
    """Return the body of a request, unpacked.

    Args:
        request: not read yet.
        most: bytes, packed and unpacked.

    Raises:
        TooLarge: it has more; nothing, or no more than that, was read.
        InvalidInput: its encoding is none of ours, or it is not in it.
    """
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > most:
        raise _too_large(f"{told} bytes", most)
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", *WINDOWS):
        raise InvalidInput(
            f"Content-Encoding {encoding!r} came, wanted {' or '.join(WINDOWS)}, or none"
        )
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _too_large("a body that goes on", most)
        parts.append(part)
    body = b"".join(parts)
    return body if encoding == "identity" else _unpacked(body, encoding, most)


def from_base64(what: str, value: Any) -> bytes:
    """Return the bytes of a text.

    Args:
        what: names it.
        value: that came.

    Raises:
        InvalidInput: it is no base64.
    """
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError) as err:  # also binascii.Error
        raise InvalidInput(f"{what} is no base64: {err}") from err


def packed(body: bytes, accepted: str) -> tuple[bytes, str]:
    """Return a body as a client accepts it, and its encoding; empty: none.

    Args:
        body: of an answer.
        accepted: `Accept-Encoding`.
    """
    weights = {encoding: _weight(accepted, encoding) for encoding in WINDOWS}
    encoding = max(weights, key=weights.__getitem__)
    if not weights[encoding]:
        return body, ""
    packer = zlib.compressobj(1, wbits=WINDOWS[encoding])
    return packer.compress(body) + packer.flush(), encoding


def _weight(accepted: str, encoding: str) -> float:
    """Return how much an encoding is wanted; 0: it is not."""
    for word in accepted.lower().split(","):
        name, _, weight = word.replace(" ", "").partition(";q=")
        if name == encoding:
            try:
                return float(weight or 1)
            except ValueError:
                return 0.0
    return 0.0


async def while_awaited(request: Request, answer: Awaitable[T]) -> T:
    """Wait for an answer as long as the client does: when it leaves, the work ends.

    Args:
        request: whose body was read.
        answer: cancelled when the client goes.

    Raises:
        Cancelled: the client left.
    """
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise Cancelled("the client left before its answer came")
        return answering.result()
    finally:
        for task in (answering, leaving):
            task.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    message: Any = {}
    while message.get("type") != "http.disconnect":
        message = await request.receive()


def _unpacked(body: bytes, encoding: str, most: int) -> bytes:
    unpacker = zlib.decompressobj(WINDOWS[encoding])
    try:
        made = unpacker.decompress(body, most + 1)
        if len(made) > most:
            raise _too_large(f"{encoding} of more", most)
        if not unpacker.eof or unpacker.unused_data:
            raise InvalidInput(f"the body is not one whole piece of {encoding}")
        return made
    except zlib.error as err:
        raise InvalidInput(f"the body is no {encoding}: {err}") from err


def _too_large(what: str, most: int) -> TooLarge:
    return TooLarge(f"{what} came, wanted at most {most}; see GATEWAY_MAX_REQUEST_MBYTES")
