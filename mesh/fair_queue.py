"""A queue that serves clients in turn, so that a heavy one cannot starve the others."""

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """First in, first out for each client; clients take turns."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[T]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, client: str, item: T) -> None:
        """Queue an item of a client."""
        queue = self._queues.get(client)
        if queue is None:
            queue = self._queues[client] = deque()
        queue.append(item)
        self._size += 1

    def peek(self) -> T:
        """Return the next item without taking it.

        Raises:
            IndexError: the queue is empty.
        """
        if not self._size:
            raise IndexError("the queue is empty")
        return next(iter(self._queues.values()))[0]

    def pop(self) -> T:
        """Take the next item; its client goes to the end of the line.

        Raises:
            IndexError: the queue is empty.
        """
        item = self.peek()
        client, queue = next(iter(self._queues.items()))
        queue.popleft()
        self._size -= 1
        if queue:
            self._queues.move_to_end(client)
        else:
            del self._queues[client]
        return item

    def remove(self, client: str, item: T) -> None:
        """Take this very item out before its turn; does nothing if it is gone."""
        queue = self._queues.get(client, ())
        for index, waiting in enumerate(queue):
            if waiting is item:
                del self._queues[client][index]
                self._size -= 1
                break
        if client in self._queues and not self._queues[client]:
            del self._queues[client]
