"""Runs the ops of preprocess_svc and postprocess_svc in threads, fairly and within deadlines."""

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from pathlib import Path

from mesh.arena import Writer
from mesh.errors import MeshError
from mesh.fair_queue import FairQueue
from mesh.item import Reply, Request, Timings
from mesh.op import Op, make_op
from mesh.status import to_status
from mesh.tensor import check_tensors, pack, unpack
from protos.mesh.v1.stage_pb2 import Target, TargetSpec

MAX_OPS = 256
"""Ops with their parameters that are kept ready; the one not used for longest goes first."""

HAND_BACK = 8
HAND_BACK_S = 0.04
HAND_BACK_WAITING = 4
"""While so many requests wait, up to 8 results are handed back together, after 40 ms at the latest:
with a queue, what counts is throughput, and eight replies in one message cost little more than one,
here and in every stage that follows."""

OpKey = tuple[str, bytes]
"""Name and parameters."""
Job = tuple[Request, asyncio.Future[Reply]]
Result = tuple[asyncio.Future[Reply], Reply | BaseException]


class OpHost:
    """The handler of a CPU stage.

    Args:
        table: ops by name.
        root: the model repository.
        threads: that run ops at a time; 0: ops run in the event loop, which saves two hand-overs
            between threads and is right for short ones that hold the GIL anyway.
    """

    def __init__(self, table: Mapping[str, type[Op]], root: Path, threads: int) -> None:
        self._table = table
        self._root = root
        self._ops: OrderedDict[OpKey, Op] = OrderedDict()
        self._making: dict[OpKey, threading.Lock] = {}
        self._ops_lock = threading.Lock()
        self._queue: FairQueue[Job] = FairQueue()
        self._ready = threading.Condition()
        self._closed = False
        self._writer = Writer()
        self._results: deque[Result] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"op-{index}", daemon=True)
            for index in range(threads)
        ]

    def __enter__(self) -> "OpHost":
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        for thread in self._threads:
            thread.join()

    async def __call__(self, request: Request) -> Reply:
        """Queue a request for a thread; a handler as in `mesh.item`."""
        if not self._threads:
            return self._run(request)
        future: asyncio.Future[Reply] = self._loop.create_future()
        job = (request, future)
        with self._ready:
            self._queue.push(request.client, job)
            self._ready.notify()
        try:
            return await future
        except asyncio.CancelledError:
            with self._ready:
                self._queue.remove(request.client, job)  # its payload waits for nobody
            raise

    def describe(self, targets: Iterable[Target]) -> list[TargetSpec]:
        """Return what each op with its parameters takes and makes; no targets: every op's name."""
        targets = list(targets)
        if not targets:
            return [TargetSpec(name=name) for name in sorted(self._table)]
        return [self._describe(target) for target in targets]

    def _describe(self, target: Target) -> TargetSpec:
        spec = TargetSpec(name=target.name)
        try:
            op = self._op(target.name, target.parameters)
        except MeshError as err:
            spec.status.CopyFrom(to_status(err))
            return spec
        spec.output_bytes = sum(tensor.row_bytes() for tensor in op.outputs)
        spec.inputs.extend(tensor.to_proto() for tensor in op.inputs)
        spec.outputs.extend(tensor.to_proto() for tensor in op.outputs)
        return spec

    def _op(self, name: str, parameters: bytes) -> Op:
        key = (name, parameters)
        if (op := self._kept(key)) is not None:
            return op
        with self._ops_lock:
            making = self._making.setdefault(key, threading.Lock())
        # Others go on meanwhile: the first tokenizer of a process takes seconds.
        with making:
            if (op := self._kept(key)) is not None:
                return op
            try:
                op = make_op(self._table, name, parameters, self._root)
                self._keep(key, op)
                return op
            finally:
                self._making.pop(key, None)

    def _keep(self, key: OpKey, op: Op) -> None:
        with self._ops_lock:
            self._ops[key] = op
            if len(self._ops) > MAX_OPS:
                self._ops.popitem(last=False)

    def _kept(self, key: OpKey) -> Op | None:
        with self._ops_lock:
            op = self._ops.get(key)
            if op is not None:
                self._ops.move_to_end(key)
            return op

    def _work(self) -> None:
        while (job := self._next()) is not None:
            request, future = job
            if future.done():
                continue  # the caller gave up
            self._results.append((future, self._outcome(request)))
            if len(self._results) >= HAND_BACK or len(self._queue) < HAND_BACK_WAITING:
                self._loop.call_soon_threadsafe(self._hand_back)
            elif not self._timed:
                self._timed = True
                self._loop.call_soon_threadsafe(self._hand_back_soon)

    def _next(self) -> Job | None:
        """Wait for a request; None: there will be no more."""
        with self._ready:
            while not self._queue and not self._closed:
                self._ready.wait()
            return None if self._closed else self._queue.pop()

    def _outcome(self, request: Request) -> Reply | BaseException:
        try:
            return self._run(request)
        except Exception as err:  # noqa: BLE001 the boundary; the errors layer logs it
            return err

    def _hand_back_soon(self) -> None:
        self._timer = self._loop.call_later(HAND_BACK_S, self._hand_back)

    def _hand_back(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timed = False  # before the loop: what a thread adds meanwhile is taken or timed
        while self._results:
            _settle(*self._results.popleft())

    def _run(self, request: Request) -> Reply:
        request.check_deadline()
        started = time.monotonic()
        op = self._op(request.target, request.parameters)
        tensors = unpack(request.payload)
        wanted = {spec.name for spec in op.inputs}
        # A model may have outputs that the op after it does not use.
        tensors = {name: tensors[name] for name in tensors if name in wanted} or tensors
        check_tensors(tensors, op.inputs)
        outcome = op(tensors, unpack(request.context))
        payload = self._writer.pack(outcome.tensors, request.slot)
        reply = Reply(payload, pack(outcome.context))
        reply.timings = Timings(started - request.received, 0.0, time.monotonic() - started)
        return reply


def _settle(future: asyncio.Future[Reply], result: Reply | BaseException) -> None:
    if future.done():
        return
    if isinstance(result, StopIteration):  # a future takes any error but this one
        result = RuntimeError(f"the op raised {result!r}")
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
