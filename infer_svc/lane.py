"""One batch at a time: a thread with an execution context of its own."""

import asyncio
import queue
import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from infer_svc.backends import Engine
from infer_svc.backends.batch import NO_TIMES, RunTimes
from infer_svc.backends.errors import DeviceLost
from infer_svc.golden import Golden
from mesh.errors import EngineError
from mesh.tensor import Tensors, pack, pack_rows


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
    times: RunTimes = NO_TIMES
    """As the context measured them."""
    began: float = 0.0
    """When the lane's thread began, on the clock of `time.monotonic`."""
    ended: float = 0.0
    """When it had an answer or an error."""


StandIn = Callable[[BaseException], "Lane | None"]
"""Returns a free lane for a batch that failed so; asked in the thread of the lane where it did."""


class Lane:
    """Runs batches on one context, each handed over and back between two threads once.

    Args:
        name: for people.
        engine: that opens the context, in the calling thread.
        loop: of whoever submits.

    Raises:
        EngineError: no context can be opened.
    """

    def __init__(self, name: str, engine: Engine, loop: AbstractEventLoop) -> None:
        self.name = name
        self.engine = engine
        self.busy_since = 0.0
        """When the batch that runs now began, on the clock of `time.monotonic`; 0: none does."""
        self.idle_since = time.monotonic()
        """When the last batch ended."""
        self.pass_on: Callable[[Lane], bool] = lambda lane: False
        """Asked in the lane's thread after a batch that went well: gives the lane at once to
        somebody who waits for one, and tells whether it did."""
        self._context = engine.open()
        self.loop = loop
        """Of whoever submits."""
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(
        self,
        batch: Batch,
        done: Callable[["list[Run]"], None],
        stand_in: StandIn = lambda error: None,
    ) -> None:
        """Run a batch, and should it fail, at once again on the lane that stands in, if one does.

        Args:
            batch: to run.
            done: called in the event loop with the one run, or with both.
            stand_in: asked when it failed. The second run is made in this lane's thread: the loop,
                or a thread that has to be woken, would begin it milliseconds later under load.
        """

        def job() -> None:
            self.busy_since = time.monotonic()
            result = self.run(batch)
            if result.error is None:
                runs = [Run(self, result, passed_on=self.pass_on(self))]
            elif (lane := stand_in(result.error)) is None:
                runs = [Run(self, result)]
            else:
                runs = [Run(self, result), Run(lane, lane.run(batch))]
                lane.idle_since = time.monotonic()
            self.idle_since = time.monotonic()
            self.busy_since = 0.0
            self.loop.call_soon_threadsafe(done, runs)

        self._work.put(job)

    async def check(self, golden: Golden | None) -> str:
        """Run a batch with a known answer; return what is wrong with the lane's, or nothing."""

        def work() -> str:
            self.busy_since = time.monotonic()
            try:
                return golden.compare(self.answer) if golden is not None else ""
            finally:
                self.idle_since = time.monotonic()
                self.busy_since = 0.0

        return await self._do(work)

    async def rebuild(self) -> str:
        """Make the context anew; return why that failed, or nothing."""
        return await self._do(self._context.rebuild)

    async def release(self) -> str:
        """Close the context, so that the engine can be loaded anew; return why that failed."""
        return await self._do(self._context.close)

    async def reopen(self) -> str:
        """Open a context after `release`; return why that failed, or nothing."""

        def work() -> None:
            self._context = self.engine.open()

        return await self._do(work)

    def close(self) -> None:
        """Finish what was submitted and end the thread."""
        self._work.put(None)
        self._thread.join()

    def run(self, batch: Batch) -> BatchResult:
        """Run a batch in the calling thread, while the lane's own thread runs nothing."""
        result = BatchResult(began=time.monotonic())
        try:
            outputs = self._context.run(batch.parts)
            result.run_s = time.monotonic() - result.began
            result.times = self._context.times
            result.payloads = _split(outputs, batch)
        except Exception as err:  # noqa: BLE001 the batch loop; recovery decides what comes of it
            result.error = err
        result.ended = time.monotonic()
        result.around_s = max(0.0, result.ended - batch.formed - result.run_s)
        return result

    def answer(self, inputs: Tensors) -> Tensors:
        """Return outputs that stay, in the calling thread; as `run`, with its errors.

        Raises:
            EngineError, InvalidInput: as `infer_svc.backends.Context.run`.
        """
        return {name: array.copy() for name, array in self._context.run([inputs]).items()}

    async def _do(self, work: Callable[[], str | None]) -> str:
        """Run something in the lane's thread; return what went wrong, or nothing.

        Raises:
            DeviceLost: the lane's GPU is; no other lane and no new context helps.
        """
        done: asyncio.Future[str] = self.loop.create_future()

        def finish(text: str, lost: DeviceLost | None = None) -> None:
            if done.done():
                return
            if lost is not None:
                done.set_exception(lost)
            else:
                done.set_result(text)

        def job() -> None:
            result: tuple[str, DeviceLost | None]
            try:
                result = work() or "", None
            except DeviceLost as err:
                result = "", err
            except Exception as err:  # noqa: BLE001 the lane's loop; recovery decides
                result = f"{type(err).__name__}: {err}", None
            self.loop.call_soon_threadsafe(finish, *result)

        self._work.put(job)
        return await done

    def _run_forever(self) -> None:
        while (job := self._work.get()) is not None:
            job()
        self._context.close()


@dataclass(frozen=True)
class Run:
    """A batch's run on a lane."""

    lane: Lane
    result: BatchResult
    passed_on: bool = False
    """The lane is lent to somebody else already."""


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
    return pack_rows(outputs, batch.rows)
