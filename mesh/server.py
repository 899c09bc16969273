"""The receiving side of the wire: sessions of streams, bounded, cancellable, drained."""

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import grpc

from mesh import WIRE_VERSION
from mesh.arena import Lender
from mesh.errors import InvalidInput, MeshError, ReplicaFull, StageUnavailable
from mesh.grpc_types import Context
from mesh.item import Handler, Reply, Request, Timings
from mesh.outbox import HEADER_BYTES, MAX_ITEM_BYTES, WHOLE_ITEM_BYTES, Assembler, Outbox
from mesh.status import abort, to_status
from protos.mesh.v1.stage_pb2 import Envelope, Grant, Hello, Item
from protos.mesh.v1.tensor_pb2 import Slot

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Bounds of one replica."""

    max_items: int = 1024
    """Items waiting or running; more are sent back at once."""
    max_bytes: int = 512 * 1024 * 1024
    """Bytes of items waiting or running that the grants of all clients add up to."""
    max_age_s: float = math.inf
    """A stream older than this is drained, so that new replicas get traffic; jittered by 10 %."""


@dataclass(eq=False)
class Session:
    """One client: its data stream, its control stream, its items in flight."""

    key: str
    data: Outbox
    control: Outbox | None = None
    tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    active: float = 0.0

    def cancel(self, keys: Iterable[int]) -> None:
        """Cancel items whose answers nobody awaits."""
        for key in keys:
            if (task := self.tasks.get(key)) is not None:
                _cancel(task)


class StageServer:
    """Serves one `Run(stream Envelope) returns (stream Envelope)`.

    Args:
        handler: does the work of one item.
        limits: of the replica.
        lender: of shared memory for the clients' items; None: they bring their bytes.
    """

    def __init__(
        self, handler: Handler, limits: Limits = Limits(), lender: Lender | None = None
    ) -> None:
        self._handler = handler
        self._limits = limits
        self._lender = lender
        self._sessions: dict[str, Session] = {}
        self._depth = 0
        self._draining = False
        self._edition = 0
        self._share = (0.0, 1)
        self._open = asyncio.Event()

    @property
    def depth(self) -> int:
        """Items of all clients that are waiting or running."""
        return self._depth

    def announce(self) -> None:
        """Tell all clients that there is something new to describe."""
        self._edition += 1
        for session in self._sessions.values():
            session.data.control().grant.CopyFrom(self._grant())

    def open(self) -> None:
        """Grant credits; streams that came before wait for this."""
        self._open.set()

    async def run(self, stream: AsyncIterator[Envelope], context: Context) -> None:
        """Serve one stream of a client; the handler of the gRPC method."""
        try:
            hello = await self._greet(stream)
        except MeshError as err:
            await abort(context, err)
            return
        if hello.control:
            await self._run_control(hello.session, stream, context)
        else:
            await self._run_data(hello.session, stream, context)

    async def drain(self, grace_s: float) -> None:
        """Take no new streams, let clients finish what they sent, and wait for that.

        Args:
            grace_s: seconds after which whatever is left is given up.
        """
        self._draining = True
        for session in self._sessions.values():
            session.data.control().drain = True
        end = time.monotonic() + grace_s
        while self._sessions and time.monotonic() < end:
            await asyncio.sleep(0.01)
        if self._sessions:
            log.warning("drain gave up", extra={"items": self._depth, "grace_s": grace_s})

    async def _greet(self, stream: AsyncIterator[Envelope]) -> Hello:
        first = await anext(stream, None)
        if first is None or not first.HasField("hello"):
            raise InvalidInput("the first message of a stream must be a hello with a session")
        hello = first.hello
        if hello.wire_version != WIRE_VERSION:
            raise InvalidInput(
                f"wire version {hello.wire_version} came, wanted {WIRE_VERSION}; "
                "run one release on both sides"
            )
        await self._open.wait()
        if self._draining and not hello.control:
            raise StageUnavailable("this replica is going away")
        if hello.session in self._sessions and not hello.control:
            raise InvalidInput(f"a data stream of session {hello.session!r} is open already")
        return hello

    async def _run_control(
        self, key: str, stream: AsyncIterator[Envelope], context: Context
    ) -> None:
        session = self._sessions.get(key)
        if session is None:
            await abort(context, InvalidInput(f"no data stream of session {key!r} is open"))
            return
        outbox = session.control = Outbox(context.write)
        outbox.control().grant.CopyFrom(self._grant())
        writer = asyncio.create_task(outbox.run())
        try:
            async for envelope in stream:
                session.cancel(envelope.cancel)
        finally:
            session.control = None
            outbox.close()
            await _finish(writer)

    async def _run_data(self, key: str, stream: AsyncIterator[Envelope], context: Context) -> None:
        outbox = Outbox(self._with_grant(context.write))
        session = Session(key, outbox)
        self._sessions[key] = session
        first = outbox.control()
        lending = self._lender.lend(key) if self._lender is not None else None
        if lending is not None:
            first.lending.CopyFrom(lending)
        writer = asyncio.create_task(outbox.run())
        age = self._drain_later(session)
        assembler = Assembler()
        try:
            async for envelope in stream:
                self._take(envelope, session, assembler)
            while session.tasks:
                await asyncio.wait(session.tasks.values())
            outbox.close()
            await writer
        except InvalidInput as err:
            outbox.close()
            await _finish(writer)  # gRPC takes no status while a message is being written
            await abort(context, err)
        finally:
            if age is not None:
                age.cancel()
            del self._sessions[key]
            if self._lender is not None:
                self._lender.take_back(key)
            for task in session.tasks.values():
                _cancel(task)
            writer.cancel()
            await _finish(writer)

    def _drain_later(self, session: Session) -> asyncio.TimerHandle | None:
        if math.isinf(self._limits.max_age_s):
            return None
        age = self._limits.max_age_s * random.uniform(0.9, 1.1)

        def drain() -> None:
            session.data.control().drain = True

        return asyncio.get_running_loop().call_later(age, drain)

    def _take(self, envelope: Envelope, session: Session, assembler: Assembler) -> None:
        now = time.monotonic()
        session.active = now
        session.cancel(envelope.cancel)
        for item in envelope.items:
            self._accept(item, session, now)
        if envelope.HasField("fragment"):
            whole = assembler.add(envelope.fragment)
            if whole is not None:
                self._accept(whole, session, now)

    def _accept(self, item: Item, session: Session, now: float) -> None:
        key = item.id
        if key in session.tasks:
            raise InvalidInput(f"item {key} came, which is in flight already")
        if self._depth >= self._limits.max_items:
            full = ReplicaFull(f"{self._depth} items are waiting or running here, no more fit")
            _send(session.data, key, Reply(status=to_status(full)))
            return
        left = item.time_left_us
        request = Request(
            item.target, item.payload, item.parameters, item.context,
            now + left * 1e-6 if left else math.inf, item.trace, session.key,
            _slot(item), None, now,
        )  # fmt: skip
        if item.caller:
            request.caller = f"{session.key}/{item.caller}"
        request.emit = lambda reply: _send(session.data, key, reply)
        self._depth += 1
        session.tasks[key] = asyncio.create_task(self._serve(key, request, session))

    async def _serve(self, key: int, request: Request, session: Session) -> None:
        try:
            reply = await self._handler(request)
            _send(session.data, key, reply)
        finally:
            self._depth -= 1
            session.tasks.pop(key, None)

    def _with_grant(
        self, write: Callable[[Envelope], Awaitable[object]]
    ) -> Callable[[Envelope], Awaitable[object]]:
        async def write_with_grant(envelope: Envelope) -> None:
            envelope.grant.CopyFrom(self._grant())
            await write(envelope)

        return write_with_grant

    def _grant(self) -> Grant:
        """Return one client's fair share: the bounds divided by the clients of the last second."""
        now = time.monotonic()
        if now > self._share[0]:
            active = sum(now - session.active < 1.0 for session in self._sessions.values())
            self._share = (now + 0.1, max(1, active))
        share = self._share[1]
        return Grant(
            items=max(1, self._limits.max_items // share),
            bytes=max(1, self._limits.max_bytes // share),
            queue_depth=self._depth,
            edition=self._edition,
        )


def _slot(item: Item) -> Slot | None:
    if not item.HasField("slot"):
        return None
    slot = Slot()
    slot.CopyFrom(item.slot)  # the item's own would keep the whole envelope alive
    return slot


def _send(outbox: Outbox, key: int, reply: Reply) -> None:
    size = len(reply.payload) + len(reply.context) + HEADER_BYTES
    if size > WHOLE_ITEM_BYTES:
        item = Item()
        if size > MAX_ITEM_BYTES:
            too_large = InvalidInput(
                f"the reply has {size} bytes, more than {MAX_ITEM_BYTES}; ask for less at once"
            )
            reply = Reply(status=to_status(too_large))
    else:
        item = outbox.item(size)
    item.id = key
    item.payload = reply.payload
    if reply.context:
        item.context = reply.context
    if reply.more:
        item.more = True
    if reply.status is not None:
        item.status.CopyFrom(reply.status)
    if reply.version:
        item.version = reply.version
    if reply.timings is not None:
        _fill_timings(item, reply.timings)
    if size > WHOLE_ITEM_BYTES:
        outbox.put_large(item)


def _fill_timings(item: Item, timings: Timings) -> None:
    item.timings.queue_us = int(timings.queue * 1e6)
    item.timings.batch_us = int(timings.batch * 1e6)
    item.timings.run_us = int(timings.run * 1e6)
    item.timings.batch_rows = timings.batch_rows


def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel after the task's first step: one that never began would not run its `finally`."""
    asyncio.get_running_loop().call_soon(task.cancel)


async def _finish(writer: asyncio.Task[None]) -> None:
    """Wait for a writer whose stream may be gone already."""
    with suppress(asyncio.CancelledError, grpc.aio.BaseError, asyncio.InvalidStateError):
        await writer
