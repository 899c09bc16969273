"""One connection of a client to one replica: a data stream, and a control stream between stages."""

import asyncio
import math
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from zlib import crc32

import grpc

from mesh import WIRE_VERSION
from mesh.arena import Slots, remove_orphans
from mesh.errors import DeadlineExceeded, InvalidInput, MeshError, StageUnavailable
from mesh.grpc_types import Stream
from mesh.item import Reply, Request, Timings
from mesh.outbox import (
    CHANNEL_BYTES,
    HEADER_BYTES,
    MAX_ITEM_BYTES,
    WHOLE_ITEM_BYTES,
    Assembler,
    Outbox,
)
from mesh.status import from_rpc_error
from mesh.tensor import inline
from protos.mesh.v1.stage_pb2 import Envelope, Hello, Item, Lending
from protos.mesh.v1.tensor_pb2 import Slot

ORPHAN_S = 1.0
SWEEP_S = 0.01
"""How often items in flight are compared with their deadlines."""

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", CHANNEL_BYTES),
    ("grpc.max_receive_message_length", CHANNEL_BYTES),
    # A channel of its own per link: the control stream must not wait behind tensors.
    ("grpc.use_local_subchannel_pool", 1),
    # Tensors in few frames: a tenth less CPU for 150 kB items.
    ("grpc.http2.max_frame_size", 1024 * 1024),
    # A replica that hangs is noticed after 8 s, one that died at once.
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.http2.ping_timeout_ms", 3000),  # 60 s unless set, whatever keepalive_timeout_ms says
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


@dataclass(slots=True)
class _Pending:
    future: asyncio.Future[Reply]
    deadline: float
    more: Callable[[Reply], None] | None


class Link:
    """Items in flight to one replica, and what the replica last said of itself.

    Args:
        address: target for gRPC: `host:port` or `unix:/path`.
        method: full name of the streaming method.
        changed: called when the replica can take more, or no more.
        control: have a control stream, on a connection of its own, so that cancels do not wait
            behind tensors. Not where several processes may be behind the address: they would get
            one stream each.
    """

    def __init__(
        self,
        address: str,
        method: str,
        changed: Callable[[], None],
        *,
        control: bool = True,
    ) -> None:
        self.address = address
        self.items = 0
        """Items that have a lease here: in flight or admitted."""
        self.bytes = 0
        """Bytes that have a lease here."""
        self.drained = asyncio.Event()
        """Set when the link takes nothing new: the replica asked for it, or the link is gone."""
        self.failures = 0
        """UNAVAILABLE replies in a row."""
        self.ejected_until = 0.0
        """Not chosen before this time while others can be."""
        self.dead = False
        """The stream is gone."""
        self.reason = ""
        """Why it is gone."""
        self.edition = 0
        """Counted up by the replica when what it describes has changed."""
        self.met = False
        """The replica has answered once; until then it may still be starting."""
        self._session = uuid.uuid4().hex
        self._slots: Slots | None = None
        self._method = method
        self._changed = changed
        self._has_control = control
        self._max_items = self._max_bytes = self._depth = 0
        self._depth_at = 0.0
        self._sent_since = 0
        self._pending: dict[int, _Pending] = {}
        self._next_id = 1
        self._outbox: Outbox | None = None
        self._control: Outbox | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()

    @property
    def open(self) -> bool:
        """Tell whether items that have a lease may still be sent."""
        return self._outbox is not None

    @property
    def ready(self) -> bool:
        """Tell whether new items may be sent."""
        return self._outbox is not None and not self.drained.is_set()

    def has_room(self, size: int) -> bool:
        """Tell whether the replica's grant has room for one more item of that many bytes."""
        if self.items == 0:
            return True
        return self.items < self._max_items and self.bytes + size <= self._max_bytes

    def load(self, now: float) -> float:
        """Return how busy the replica is: its queue depth as last reported, and what went since.

        A report older than 100 ms tells nothing, else a replica once busy would never be asked.
        """
        if now - self._depth_at > 0.1:
            return self.items
        return max(self.items, self._depth + self._sent_since)

    async def send(
        self, request: Request, trace: bytes, more: Callable[[Reply], None] | None = None
    ) -> Reply:
        """Send one item and wait for its last reply.

        Args:
            request: the item.
            trace: binary trace context, in place of the request's own.
            more: called with each reply before the last one.

        Raises:
            StageUnavailable: the link is or went down.
            DeadlineExceeded: no reply came in time; the replica is told to stop.
            InvalidInput: the item is larger than `MAX_ITEM_BYTES`.
        """
        outbox = self._outbox
        if outbox is None:
            raise StageUnavailable(f"the stream to {self.address} is closed")
        key = self._next_id
        self._next_id = key + 1
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        _put(outbox, key, request, trace)
        self._pending[key] = _Pending(future, request.deadline, more)
        self._sent_since += 1
        if self._sweeper is None and request.deadline != math.inf:
            self._sweeper = loop.call_later(SWEEP_S, self._sweep)
        try:
            return await future
        except asyncio.CancelledError:
            self._cancel(key)
            raise

    async def run(self) -> None:
        """Connect, and read replies until the stream ends; never raises for a lost replica."""
        reason = "it ended the stream"
        try:
            async with AsyncExitStack() as stack:
                channels = [
                    await stack.enter_async_context(
                        grpc.aio.insecure_channel(self.address, CHANNEL_OPTIONS)
                    )
                    for _ in range(2 if self._has_control else 1)
                ]
                await self._run_streams(channels)
        except grpc.aio.AioRpcError as err:
            reason = str(from_rpc_error(err)) or err.code().name
        except (MeshError, grpc.aio.BaseError, asyncio.InvalidStateError) as err:
            reason = str(err)
        finally:
            self._fail_pending(reason)

    async def _run_streams(self, channels: Sequence[grpc.aio.Channel]) -> None:
        streams = []
        for channel in channels:
            stream = self._open(channel)
            streams.append(stream)
            await stream.write(_hello(self._session, control=len(streams) == 2))
            await self._read_first(stream)
        outboxes = [Outbox(stream.write) for stream in streams]
        self._outbox, self._control = outboxes[0], outboxes[-1]
        tasks = [
            *(asyncio.create_task(self._read(stream)) for stream in streams),
            *(asyncio.create_task(outbox.run()) for outbox in outboxes),
        ]
        closing = asyncio.create_task(self._close_when_empty(streams[0]))
        self._changed()
        try:
            # The data stream ends last of all in good order; any other end is a lost replica.
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._outbox = None
            for task in (*tasks, closing):
                task.cancel()
            await asyncio.gather(*tasks, closing, return_exceptions=True)
            for stream in streams:
                stream.cancel()

    def _open(self, channel: grpc.aio.Channel) -> Stream:
        call: Callable[[], Stream] = channel.stream_stream(
            self._method,
            request_serializer=Envelope.SerializeToString,
            response_deserializer=Envelope.FromString,
        )
        return call()

    async def _read_first(self, stream: Stream) -> None:
        first = await stream.read()  # a replica that still loads grants nothing
        if not isinstance(first, Envelope):
            raise StageUnavailable("it closed the stream at once")
        self.met = True
        self._take(first, Assembler())

    async def _read(self, stream: Stream) -> None:
        assembler = Assembler()
        while True:
            envelope = await stream.read()
            if not isinstance(envelope, Envelope):
                return
            self._take(envelope, assembler)

    def _take(self, envelope: Envelope, assembler: Assembler) -> None:
        if envelope.HasField("grant"):
            grant = envelope.grant  # copied: it would keep the whole envelope alive
            self._max_items, self._max_bytes = grant.items, grant.bytes
            self._depth, self.edition = grant.queue_depth, grant.edition
            self._depth_at = time.monotonic()
            self._sent_since = 0
        if envelope.HasField("lending"):
            self._slots = _shared(envelope.lending, self._session)
        for item in envelope.items:
            self._answer(item)
        if envelope.HasField("fragment"):
            whole = assembler.add(envelope.fragment)
            if whole is not None:
                self._answer(whole)
        if envelope.drain and not self.drained.is_set():
            self.drained.set()
            self._note_empty()
        self._changed()

    def _answer(self, item: Item) -> None:
        pending = self._pending.get(item.id)
        if pending is None:
            return  # its caller gave up
        reply = Reply(item.payload, item.context, version=item.version)
        if item.HasField("status"):
            reply.status = item.status
        if item.HasField("timings"):
            t = item.timings
            reply.timings = Timings(
                t.queue_us / 1e6, t.batch_us / 1e6, t.run_us / 1e6, t.batch_rows
            )
        if item.more:
            reply.more = True
            if pending.more is not None:
                pending.more(reply)
            return
        del self._pending[item.id]
        if not pending.future.done():
            pending.future.set_result(reply)
        self._note_empty()

    def _cancel(self, key: int) -> None:
        self._pending.pop(key, None)
        self._note_empty()
        if self._control is not None and self._outbox is not None:
            self._control.control().cancel.append(key)

    def _sweep(self) -> None:
        now = time.monotonic()
        late = [key for key, pending in self._pending.items() if pending.deadline <= now]
        for key in late:
            pending = self._pending[key]
            self._cancel(key)
            if not pending.future.done():
                pending.future.set_exception(
                    DeadlineExceeded(f"{self.address} did not answer before the deadline")
                )
        self._sweeper = (
            asyncio.get_running_loop().call_later(SWEEP_S, self._sweep) if self._pending else None
        )

    def take_slot(self) -> Slot | None:
        """Lease a slot of the memory shared with the replica; None: there is none, or none free."""
        if self._slots is None or self._outbox is None:
            return None
        return self._slots.take()

    def inline(self, payload: bytes) -> bytes:
        """Return a payload with the tensors in it that the link's slots hold."""
        return inline(payload, self._slots.read) if self._slots is not None else payload

    def end_slot(self, slot: Slot) -> None:
        """End the lease of a slot."""
        if self._slots is not None:
            self._slots.give_back(slot)

    def _note_empty(self) -> None:
        if self.drained.is_set() and not self._pending and self.items == 0:
            self._empty.set()

    def released(self) -> None:
        """Note that a lease ended; a drained link closes once it has none."""
        self._note_empty()

    async def _close_when_empty(self, stream: Stream) -> None:
        await self._empty.wait()
        await stream.done_writing()

    def _fail_pending(self, reason: str) -> None:
        self._outbox = None
        self.dead = True
        self.reason = reason
        if self._sweeper is not None:
            self._sweeper.cancel()
        pending, self._pending = self._pending, {}
        error: MeshError = StageUnavailable(f"lost {self.address}: {reason}")
        for entry in pending.values():
            if not entry.future.done():
                entry.future.set_exception(error)
        self.drained.set()
        self._changed()
        if self._slots is not None:
            self._slots.close()
            # Should the owner have died, nobody else removes its file; it may still be dying.
            asyncio.get_running_loop().call_later(ORPHAN_S, remove_orphans)


def _hello(session: str, *, control: bool) -> Envelope:
    return Envelope(hello=Hello(session=session, control=control, wire_version=WIRE_VERSION))


def _shared(lending: Lending, session: str) -> Slots | None:
    try:
        return Slots(lending, session)
    except (OSError, ValueError):
        return None  # the replica is on another machine, or does not share its memory


def _put(outbox: Outbox, key: int, request: Request, trace: bytes) -> None:
    size = len(request.payload) + len(request.context) + len(request.parameters) + HEADER_BYTES
    if size > MAX_ITEM_BYTES:
        raise InvalidInput(f"a request of {size} bytes came, wanted at most {MAX_ITEM_BYTES}")
    item = Item() if size > WHOLE_ITEM_BYTES else outbox.item(size)
    item.id = key
    item.target = request.target
    item.payload = request.payload
    if request.deadline != math.inf:
        item.time_left_us = max(1, int((request.deadline - time.monotonic()) * 1e6))
    if trace:
        item.trace = trace
    if request.parameters:
        item.parameters = request.parameters
    if request.context:
        item.context = request.context
    if request.slot is not None:
        item.slot.CopyFrom(request.slot)
    if request.caller:
        item.caller = crc32(request.caller.encode())
    if size > WHOLE_ITEM_BYTES:
        outbox.put_large(item)
