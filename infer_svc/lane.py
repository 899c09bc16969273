"""One batch at a time: a thread with an execution context of its own."""

import queue
import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from infer_svc.backends import Context
from mesh.errors import EngineError
from mesh.tensor import Tensors, pack


@dataclass(eq=False)
class Batch:
    """Requests that run together."""

    parts: Sequence[Tensors]
    """Inputs of each request; all have the same names, dtypes and shapes beyond the first axis."""
    rows: Sequence[int]
    """Rows of each request along the first axis; 1 for a model without a batch dimension."""
    formed: float = field(default_factory=time.monotonic)
    """When the requests were taken from the queue."""


@dataclass(eq=False)
class BatchResult:
    """What came of a batch."""

    payloads: Sequence[bytes] = ()
    """Serialized outputs of each request, in the order of the batch."""
    error: BaseException | None = None
    """Why there are none."""
    run_s: float = 0.0
    """Time in the engine, with joining the inputs and moving them there and back."""
    around_s: float = 0.0
    """Time to wait for the thread and split outputs."""


class Lane:
    """Runs batches on one context, each handed over and back between two threads once."""

    def __init__(self, name: str, context: Context, loop: AbstractEventLoop) -> None:
        self.name = name
        self._context = context
        self._loop = loop
        self._work: queue.SimpleQueue[tuple[Batch, Callable[[BatchResult], None]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, batch: Batch, done: Callable[[BatchResult], None]) -> None:
        """Run a batch; `done` is called in the event loop."""
        self._work.put((batch, done))

    def close(self) -> None:
        """Finish what was submitted and end the thread."""
        self._work.put(None)
        self._thread.join()

    def run(self, batch: Batch) -> BatchResult:
        """Run a batch in the calling thread; only for the lane's own thread and for warm-up."""
        result = BatchResult()
        try:
            started = time.monotonic()
            outputs = self._context.run(batch.parts)
            result.run_s = time.monotonic() - started
            result.payloads = _split(outputs, batch)
        except Exception as err:  # noqa: BLE001 the batch loop; each request's errors layer logs it
            result.error = err
        result.around_s = max(0.0, time.monotonic() - batch.formed - result.run_s)
        return result

    def _run_forever(self) -> None:
        while (job := self._work.get()) is not None:
            batch, done = job
            self._loop.call_soon_threadsafe(done, self.run(batch))
        self._context.close()


def _split(outputs: Tensors, batch: Batch) -> list[bytes]:
    if len(batch.parts) == 1:
        return [pack(outputs)]
    wanted = sum(batch.rows)
    for name, array in outputs.items():
        if len(array) != wanted:
            raise EngineError(
                f"output {name!r} has {len(array)} rows for a batch of {wanted}; "
                "set max_batch_size to 0 if the model has no batch dimension"
            )
    payloads = []
    at = 0
    for rows in batch.rows:
        payloads.append(pack({name: array[at : at + rows] for name, array in outputs.items()}))
        at += rows
    return payloads
