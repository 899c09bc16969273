"""A call that is made again with its `idempotency-key` gets the answer of the first time.

The answers are in the control process, as a retry comes to any data worker. Only who sets the key
has them kept; the ids of requests are no keys, as clients repeat them.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Counter

from mesh.errors import InvalidInput
from mesh.item import Handler, Layer, Reply, Request
from mesh.messages import message_handler
from protos.mesh.v1 import routes_pb2

KEY = "idempotency-key"
KEPT_S = 600.0
"""How long an answer is given again."""
MOST_BYTES = 64 * 1024**2
"""Of all answers; the oldest go first."""
LEASE_S = 60.0
"""Who runs a call and does not say how it went within its deadline, or this, is gone."""
MOST_KEY = 255

REPLAYS = Counter("mesh_gateway_idempotent_replays", "Calls answered as the first time")


@dataclass
class Call:
    """A call with a key."""

    digest: bytes
    """Of its method and body."""
    lease_until: float
    """When whoever runs it counts as gone, on the clock of `time.monotonic`."""
    at: float = 0.0
    """When it was answered; 0: it was not yet."""
    reply: bytes = b""
    done: asyncio.Event = field(default_factory=asyncio.Event)
    """It is answered, or may be run again."""


class Calls:
    """The calls with a key of the last minutes. Lives in the control process's event loop.

    Args:
        kept_s: see `KEPT_S`.
        most_bytes: see `MOST_BYTES`.
    """

    def __init__(self, kept_s: float = KEPT_S, most_bytes: int = MOST_BYTES) -> None:
        self._kept_s, self._most_bytes = kept_s, most_bytes
        self._calls: OrderedDict[str, Call] = OrderedDict()
        self._bytes = 0

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers of the data workers' calls, by method."""

        async def claim(message: Any, _: Request) -> Any:
            return await self.claim(message)

        async def complete(message: Any, _: Request) -> Any:
            return self.complete(message)

        return {
            "Claim": message_handler(routes_pb2.ClaimRequest, claim),
            "Complete": message_handler(routes_pb2.CompleteRequest, complete),
        }

    async def claim(self, message: routes_pb2.ClaimRequest) -> routes_pb2.ClaimResponse:
        """Tell whether a call is to be run, or how it was answered; waits while it is run.

        Raises:
            InvalidInput: the key came with another call.
        """
        while True:
            self._forget()
            now = time.monotonic()
            known = self._calls.get(message.key)
            if known is None or (not known.at and known.lease_until <= now):
                self._calls[message.key] = Call(message.digest, now + message.lease_s)
                if known is not None:
                    known.done.set()
                return routes_pb2.ClaimResponse(run=True)
            if known.digest != message.digest:
                raise InvalidInput(
                    f"{KEY} {message.key!r} came with another call before; a key is for one call "
                    "and its repetitions"
                )
            if known.at:
                return routes_pb2.ClaimResponse(reply=known.reply)
            try:
                async with asyncio.timeout(known.lease_until - now):
                    await known.done.wait()
            except TimeoutError:
                continue

    def complete(self, message: routes_pb2.CompleteRequest) -> routes_pb2.CompleteResponse:
        """Keep the answer of a call; one that failed may be run again."""
        known = self._calls.get(message.key)
        if known is not None and known.digest == message.digest and not known.at:
            if message.failed:
                del self._calls[message.key]
            else:
                known.reply, known.at = message.reply, time.monotonic()
                self._bytes += len(known.reply)
                self._calls.move_to_end(message.key)
            known.done.set()
        return routes_pb2.CompleteResponse()

    def _forget(self) -> None:
        """Drop answers that are too old, or too many."""
        oldest = time.monotonic() - self._kept_s
        for key, call in list(self._calls.items()):
            old = call.at and (call.at < oldest or self._bytes > self._most_bytes)
            if not old and not (not call.at and call.lease_until < oldest):
                break
            self._bytes -= len(call.reply)
            del self._calls[key]


def idempotent(control: Mapping[str, Handler], method: str) -> Layer:
    """Run a call with a key once.

    Args:
        control: answers `Claim` and `Complete`.
        method: full name: the same body is another call at another method.
    """

    def layer(handler: Handler) -> Handler:
        async def once(request: Request) -> Reply:
            key = key_of(request)
            if not key:
                return await handler(request)
            digest = hashlib.sha256(f"{method}\n".encode() + request.payload).digest()
            left = min(request.deadline - time.monotonic(), LEASE_S)
            claim = routes_pb2.ClaimRequest(key=key, digest=digest, lease_s=left)
            told = await _ask(control["Claim"], claim, request)
            answer = routes_pb2.ClaimResponse.FromString(told.payload)
            if not answer.run:
                REPLAYS.inc()
                return Reply(answer.reply)
            done = routes_pb2.CompleteRequest(key=key, digest=digest, failed=True)
            try:
                reply = await handler(request)
                if reply.status is None:
                    done.failed, done.reply = False, reply.payload
                return reply
            finally:
                await asyncio.shield(_ask(control["Complete"], done, Request("Complete", b"")))

        return once

    return layer


def key_of(request: Request) -> str:
    """Return the key of a call; empty: it has none.

    Raises:
        InvalidInput: it is too long.
    """
    for name, value in request.metadata:
        if name.lower() == KEY:
            key = value if isinstance(value, str) else value.decode("latin-1")
            if len(key) > MOST_KEY:
                raise InvalidInput(f"{KEY} has {len(key)} characters, wanted at most {MOST_KEY}")
            return key
    return ""


async def _ask(handler: Handler, message: Any, call: Request) -> Reply:
    reply = await handler(Request(call.target, message.SerializeToString(), deadline=call.deadline))
    reply.check()
    return reply
