"""Turns tokens of many generations into text by few calls: one item carries all that wait."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

from mesh.client import StageClient
from mesh.errors import InvalidInput, MeshError
from mesh.item import Request
from mesh.layers import NO_TRACE
from mesh.status import public
from mesh.tensor import Array, Tensors, TensorSpec, bytes_tensor, pack, unpack
from protos.mesh.v1.stage_pb2 import Target

log = logging.getLogger(__name__)

MOST = 2
"""Items under way: while one is at a replica that is slow, others' tokens do not wait for it."""
INPUTS = (
    TensorSpec("tail_ids", "INT64", (-1,)),
    TensorSpec("tail_counts", "INT32", (-1,)),
    TensorSpec("read_offset", "INT32", (-1,)),
    TensorSpec("new_ids", "INT64", (-1,)),
    TensorSpec("new_counts", "INT32", (-1,)),
    TensorSpec("stop", "BYTES", (-1,)),
    TensorSpec("stop_counts", "INT32", (-1,)),
    TensorSpec("final", "BOOL", (-1,)),
)
"""What the op has to take: those of `detokenize`."""
_NO_IDS = np.zeros(0, np.int64)


class Text:
    """One generation's text.

    Args:
        stop: texts that end it.
        tell: called with each new piece of it.
        deadline: on the clock of `time.monotonic`.
    """

    def __init__(
        self, stop: Sequence[str], tell: Callable[[str], None], deadline: float = math.inf
    ) -> None:
        self.deadline = deadline
        self.stop = [word.encode() for word in stop]
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Its end: whether a stop string came."""
        self._tell = tell
        self._new: list[int] = []
        self._final = False
        self._tail: Array = _NO_IDS
        self._read_offset = 0
        self.items = 0
        """That carried its tokens."""
        self.waited_s = 0.0
        """For the answers to them."""
        self._asked = 0.0

    def take(self) -> tuple[Array, int, list[int], bool]:
        """Return tail, read_offset, the ids that came since the last call, and whether all came."""
        self.items += 1
        self._asked = time.monotonic()
        new, self._new = self._new, []
        return self._tail, self._read_offset, new, self._final

    def add(self, token: int) -> None:
        """Note a token."""
        self._new.append(token)

    def end(self) -> None:
        """Note that no token follows."""
        self._final = True

    @property
    def waits(self) -> bool:
        """Tell whether there is something to be read."""
        return not self.done.done() and (bool(self._new) or self._final)

    def grow(self, piece: str, tail: Array, read_offset: int, *, stopped: bool, all_: bool) -> None:
        """Note what the ids of the last `take` brought."""
        self.waited_s += time.monotonic() - self._asked
        if self.done.done():
            return
        self._tail, self._read_offset = tail, read_offset
        if piece:
            self._tell(piece)
        if stopped or all_:
            self.done.set_result(stopped)

    def fail(self, error: Exception) -> None:
        """Note that it cannot be read any more."""
        if not self.done.done():
            self.done.set_exception(error)


class Detokenizer:
    """The postprocess stage's op `detokenize`, for all generations of a pipeline in this process.

    Args:
        stage: client of the postprocess stage.
        target: the op with its parameters.
    """

    def __init__(self, stage: StageClient, target: Target) -> None:
        self._stage = stage
        self._target = target
        self._waiting: dict[Text, None] = {}
        self._reading: set[Text] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def push(self, text: Text) -> None:
        """Read what a text has that is new, as soon as an item may be sent."""
        self._waiting[text] = None
        if len(self._tasks) < MOST and text not in self._reading:
            task = asyncio.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self) -> None:
        while texts := [text for text in self._waiting if text not in self._reading]:
            for text in texts:
                del self._waiting[text]
            texts = [text for text in texts if text.waits]
            self._reading.update(texts)
            try:
                if texts:
                    await self._read([(text, *text.take()) for text in texts])
            finally:
                self._reading.difference_update(texts)

    async def _read(self, rows: "list[Row]") -> None:
        try:
            _grow(rows, await self._ask(rows))
        except InvalidInput as err:
            # One that cannot be read must not end the others.
            if len(rows) == 1:
                rows[0][0].fail(err)
            else:
                await asyncio.gather(*(self._read([row]) for row in rows))
        except MeshError as err:
            for text, *_ in rows:
                text.fail(type(err)(str(err)))  # one raised twice keeps every traceback
        except Exception as err:  # the task's boundary: nobody may wait for ever
            log.exception("tokens cannot be read")
            for text, *_ in rows:
                text.fail(public(err))

    async def _ask(self, rows: "list[Row]") -> Tensors:
        payload = pack({
            "tail_ids": np.concatenate([tail for _, tail, *_ in rows]),
            "tail_counts": np.array([len(tail) for _, tail, *_ in rows], np.int32),
            "read_offset": np.array([offset for _, _, offset, *_ in rows], np.int32),
            "new_ids": np.array([*chain.from_iterable(new for *_, new, _ in rows)], np.int64),
            "new_counts": np.array([len(new) for *_, new, _ in rows], np.int32),
            "stop": bytes_tensor(*chain.from_iterable(text.stop for text, *_ in rows)),
            "stop_counts": np.array([len(text.stop) for text, *_ in rows], np.int32),
            "final": np.array([all_ for *_, all_ in rows], bool),
        })  # fmt: skip
        deadline = max(text.deadline for text, *_ in rows)
        target = self._target
        # It is of many traces, and thousands a second: of none.
        request = Request(target.name, payload, target.parameters, b"", deadline, NO_TRACE)
        reply = await self._stage.call(request)
        reply.check()
        return unpack(reply.payload)


Row = tuple[Text, Array, int, list[int], bool]
"""A text and what its `take` returned."""


def _grow(rows: Sequence[Row], answer: Tensors) -> None:
    """Give each text what an answer has for it."""
    tails = np.split(answer["tail_ids"], np.cumsum(answer["tail_counts"])[:-1])
    columns = zip(
        rows, answer["text"], tails, answer["read_offset"], answer["stopped"], strict=True
    )
    for (text, *_, all_), piece, tail, offset, stopped in columns:
        text.grow(piece.decode(), tail, int(offset), stopped=bool(stopped), all_=all_)
