"""The right to use a replica for one item."""

from collections.abc import Callable

from mesh.link import Link
from protos.mesh.v1.tensor_pb2 import Slot


class Lease:
    """The right to have one item of so many bytes in flight at one replica.

    With it goes, where memory is shared, a slot for the item's tensors.
    """

    __slots__ = ("_released", "link", "size", "slot")

    def __init__(self, link: Link, size: int, released: Callable[[], None]) -> None:
        self._released: Callable[[], None] | None = released
        self.link = link
        self.size = size
        self.slot: Slot | None = None
        link.items += 1
        link.bytes += size

    def take_slot(self) -> Slot | None:
        """Lease a slot until the release; None: there is none."""
        self.slot = self.link.take_slot()
        return self.slot

    def inline(self, payload: bytes) -> bytes:
        """Return a payload that needs this lease's slot no more."""
        return payload if self.slot is None else self.link.inline(payload)

    def release(self) -> None:
        """Give the right back; a second time does nothing."""
        released, self._released = self._released, None
        if released is not None:
            if self.slot is not None:
                self.link.end_slot(self.slot)
            self.link.items -= 1
            self.link.bytes -= self.size
            self.link.released()
            released()
