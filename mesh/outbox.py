"""Writes what was queued since the last write as one bounded envelope, and cuts large items."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from google.protobuf.message import DecodeError

from mesh.errors import InvalidInput
from protos.mesh.v1.stage_pb2 import Envelope, Fragment, Item

HEADER_BYTES = 200
"""About what an item has besides its payload, context and parameters."""
MAX_ITEMS = 20
"""While the receiver works on an envelope, the sender fills the next. Measured with 32 in flight:
in one envelope of all, both sides wait for each other in turn, 40,000/s; 16 to 24 an envelope,
50,000 to 75,000/s."""
MAX_BYTES = 1024 * 1024
"""Measured: behind 4.8 MB messages a small item waits 8.7 ms, idle 0.3;
six pictures of 224 x 224 in one message cost half of what they cost in six."""
WHOLE_ITEM_BYTES = MAX_BYTES
"""A larger item goes in fragments."""
FRAGMENT_BYTES = 256 * 1024
MAX_ITEM_BYTES = 64 * 1024 * 1024
"""A larger item is refused."""
MAX_OPEN = 4
"""Large items of a stream that go by turns; the receiver keeps the pieces of no more."""
CHANNEL_BYTES = WHOLE_ITEM_BYTES + MAX_BYTES + 64 * 1024
"""Largest message on a stream; both ends must set it, as gRPC's default is 4 MB."""


class Outbox:
    """The sending side of one stream.

    Queueing never waits; `run` writes as fast as the stream takes it. While a write is under way,
    new items gather in one envelope: no delay when idle, large envelopes under load.
    """

    def __init__(self, write: Callable[[Envelope], Awaitable[object]]) -> None:
        self._write = write
        self._open = Envelope()
        self._open_bytes = 0
        self._used = False
        self._full: deque[Envelope] = deque()
        self._large: deque[tuple[int, bytes, int]] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._closed = False

    def item(self, size: int) -> Item:
        """Return a new item of the next envelope, for the caller to fill before the next await.

        Args:
            size: bytes of the item, about; at most `WHOLE_ITEM_BYTES`.
        """
        if self._open_bytes + size > MAX_BYTES or len(self._open.items) >= MAX_ITEMS:
            self._turn()
        self._open_bytes += size
        self._used = True
        self._touch()
        return self._open.items.add()

    def put_large(self, item: Item) -> None:
        """Queue an item that is larger than `WHOLE_ITEM_BYTES`."""
        self._large.append((item.id, item.SerializeToString(), 0))
        self._touch()

    def control(self) -> Envelope:
        """Return the next envelope, for the caller to set a grant, a drain or cancels in it."""
        self._used = True
        self._touch()
        return self._open

    def close(self) -> None:
        """Let `run` return once everything queued is written."""
        self._closed = True
        self._touch()

    async def run(self) -> None:
        """Write until closed."""
        while True:
            if self._full:
                await self._write(self._full.popleft())
            elif self._used:
                self._turn()
                continue
            elif not self._large:
                if self._closed:
                    return
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
                continue
            if self._large:
                await self._write(self._next_fragment())

    def _turn(self) -> None:
        if self._used:
            self._full.append(self._open)
            self._open = Envelope()
            self._open_bytes = 0
            self._used = False

    def _touch(self) -> None:
        wake = self._wake
        if wake is not None and not wake.done():
            wake.set_result(None)

    def _next_fragment(self) -> Envelope:
        key, data, at = self._large.popleft()
        end = at + FRAGMENT_BYTES
        last = end >= len(data)
        fragment = Fragment(
            id=key, data=data[at:end], last=last, total_bytes=0 if at else len(data)
        )
        if not last:
            self._large.insert(MAX_OPEN - 1, (key, data, end))
        return Envelope(fragment=fragment)


class Assembler:
    """The receiving side of the fragments of one stream."""

    def __init__(self, max_bytes: int = MAX_OPEN * MAX_ITEM_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._parts: dict[int, list[bytes]] = {}
        self._left: dict[int, int] = {}

    def add(self, fragment: Fragment) -> Item | None:
        """Take a fragment; return the item if this was its last one.

        Raises:
            InvalidInput: the item is too large, or its fragments do not fit together.
        """
        parts = self._parts.get(fragment.id)
        if parts is None:
            parts = self._begin(fragment)
        parts.append(fragment.data)
        self._left[fragment.id] -= len(fragment.data)
        left = self._left[fragment.id]
        if left < 0 or (left == 0) != fragment.last:
            self._drop(fragment.id)
            raise InvalidInput(f"fragments of item {fragment.id} do not add up to its size")
        if not fragment.last:
            return None
        self._drop(fragment.id)
        try:
            return Item.FromString(b"".join(parts))
        except DecodeError as err:
            raise InvalidInput(f"fragments of item {fragment.id} are no item together") from err

    def _begin(self, fragment: Fragment) -> list[bytes]:
        total = fragment.total_bytes
        if not 0 < total <= MAX_ITEM_BYTES or self._bytes + total > self._max_bytes:
            raise InvalidInput(
                f"an item of {total} bytes came in fragments, wanted at most {MAX_ITEM_BYTES} "
                f"and {self._max_bytes} for all that are incomplete"
            )
        self._bytes += total
        self._left[fragment.id] = total
        return self._parts.setdefault(fragment.id, [])

    def _drop(self, key: int) -> None:
        parts = self._parts.pop(key)
        self._bytes -= sum(len(part) for part in parts) + self._left.pop(key)
