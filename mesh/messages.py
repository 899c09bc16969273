"""Handlers of protobuf messages."""

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import DecodeError, Message

from mesh.errors import InvalidInput
from mesh.item import Handler, Reply, Request

MOST_ITEMS = 512
"""Texts or files in one request: they all wait at once, and other requests behind them."""


def message_handler(
    kind: type[Any], answer: Callable[[Any, Request], Awaitable[Message]]
) -> Handler:
    """Return a handler of serialized messages from a function of messages."""

    async def handle(request: Request) -> Reply:
        try:
            message = kind.FromString(request.payload)
        except DecodeError as err:
            raise InvalidInput(
                f"{len(request.payload)} bytes came that are no {kind.DESCRIPTOR.full_name} "
                "(texts must be valid UTF-8)"
            ) from err
        return Reply((await answer(message, request)).SerializeToString())

    return handle
