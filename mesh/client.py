"""Calls a stage: chooses a replica, spends its credits, retries what is safe to retry."""

import asyncio
import itertools
import logging
import math
import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from opentelemetry.trace import NoOpTracer, SpanKind, Tracer

from mesh.directory import Directory
from mesh.errors import (
    DeadlineExceeded,
    MeshError,
    Overloaded,
    ReplicaFull,
    StageUnavailable,
)
from mesh.fair_queue import FairQueue
from mesh.hop import send_noted
from mesh.item import Reply, Request
from mesh.lease import Lease
from mesh.link import Link
from mesh.status import to_status
from mesh.telemetry import ATTEMPT, child_of, is_sampled, rpc_attributes, write_rpc_span
from mesh.unary import ask
from protos.mesh.v1.stage_pb2 import DescribeRequest, DescribeResponse, Target

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClientLimits:
    """How patient a client of a stage is."""

    max_waiting: int = 4096
    """Requests that wait for a replica's credit; one more is answered `Overloaded` at once."""
    no_replica_s: float = 30.0
    """How long a request without a deadline waits while no replica can be reached."""
    resolve_every_s: float = 3.0
    """How often the addresses are looked up again."""
    retry_ratio: float = 0.1
    """Retries that each call pays for, so that retries cannot multiply an overload."""
    retry_burst: float = 20.0
    """Retries that may be saved up."""
    max_losses: int = 3
    """Replicas that may go away with the same request under way: it may be what ends them."""
    backoff_s: float = 0.1
    """First pause before a lost replica is asked again; doubles up to 32 times that, jittered."""
    eject_after: int = 3
    """UNAVAILABLE replies in a row after which a replica is left alone for a while."""


class StageClient:
    """Every replica of one stage, as one callable.

    Args:
        stage: full name of the gRPC service, as `mesh.v1.Preprocess`.
        targets: as `mesh.directory.Directory` takes them.
        method: its streaming method: `Run` of a stage, `Stream` of a gateway, which may be several
            processes at one address and gets one stream only.
        limits: bounds of waiting and retrying.
        tracer: makes a CLIENT span of each attempt of a sampled request; None: no spans.
    """

    def __init__(
        self,
        stage: str,
        targets: str,
        method: str = "Run",
        limits: ClientLimits = ClientLimits(),
        tracer: Tracer | None = None,
    ) -> None:
        self.stage = stage
        self.retries = 0
        self._directory = Directory(targets, stage)
        self._method = f"/{stage}/{method}"
        self._limits = limits
        self._tracer = None if isinstance(tracer, NoOpTracer) else tracer
        self._links: list[Link] = []
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._waiting: FairQueue[tuple[int, asyncio.Future[Lease]]] = FairQueue()
        self._budget = limits.retry_burst
        self._resolver: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._closed = False
        self._draining: set[asyncio.Task[None]] = set()
        self._lost: dict[str, str] = {}

    async def __aenter__(self) -> "StageClient":
        await self._refresh()
        self._resolver = asyncio.create_task(self._resolve_forever())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        tasks = [*self._keepers.values(), *self._draining]
        if self._resolver is not None:
            tasks.append(self._resolver)
        self._closed = True
        while self._waiting:
            _, future = self._waiting.pop()
            if not future.done():
                future.set_exception(StageUnavailable(f"the client of {self.stage} is closed"))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def replicas(self) -> list[Link]:
        """Replicas that take items now."""
        return [link for link in self._links if link.ready]

    @property
    def addresses(self) -> list[str]:
        """Every replica that there should be, whether it can be reached or not."""
        return sorted(self._keepers)

    @property
    def waiting(self) -> int:
        """Requests that wait for a replica's credit."""
        return len(self._waiting)

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until a replica takes items.

        Raises:
            StageUnavailable: none did in time.
        """
        end = time.monotonic() + timeout_s
        while not self.replicas:
            left = end - time.monotonic()
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), max(0.0, left))
            if left <= 0:
                raise self._no_replica()

    async def describe(
        self, targets: Iterable[Target], timeout_s: float = 10.0
    ) -> DescribeResponse:
        """Ask one replica what it has.

        Raises:
            MeshError: as the replica answered.
        """
        await self.wait_ready(timeout_s)
        service = self._method[1:].rpartition("/")[0]
        address = random.choice(self.replicas).address
        message = DescribeRequest(targets=targets).SerializeToString()
        answer = await ask(address, f"{service}/Describe", message, timeout_s)
        return DescribeResponse.FromString(answer)

    async def reserve(self, size: int, deadline: float, client: str = "") -> Lease:
        """Get the right to send an item, before the work that makes the item is done.

        Args:
            size: bytes of the item.
            deadline: when the caller stops waiting, on the clock of `time.monotonic`.
            client: whose request it is; waiting is fair between clients.

        Raises:
            Overloaded: too many wait already; told at once.
            DeadlineExceeded: no replica had room in time.
            StageUnavailable: no replica could be reached in time.
        """
        if not self._waiting:
            link = self._choose(size)
            if link is not None:
                return Lease(link, size, self.wake)
        return await self._wait(size, deadline, client)

    async def call(
        self,
        request: Request,
        lease: Lease | None = None,
        more: Callable[[Reply], None] | None = None,
    ) -> Reply:
        """Send one request and return its reply, whatever the reply's status is.

        Sent to another replica when the one it was at went away (once for free, then from the
        budget) or was full. A repeated execution is possible, a second answer is not: of a request
        with several replies, `Request.resume` tells the next replica what came.

        Raises:
            MeshError: no reply could be had.
        """
        self._budget = min(self._limits.retry_burst, self._budget + self._limits.retry_ratio)
        losses = 0
        for attempt in itertools.count():
            if lease is None or not lease.link.open:
                if lease is not None:
                    request.payload = lease.inline(request.payload)
                    lease.release()
                size = len(request.payload)
                lease = await self.reserve(size, request.deadline, request.client)
            link = lease.link
            try:
                reply = await self._send(link, request, attempt, more)
                if reply.status is None:
                    link.failures = 0
                    return reply
                error: MeshError | None = reply.error()
                if not self._may_repeat(error, link):
                    return reply
                request.payload = lease.inline(request.payload)
            except StageUnavailable as lost:
                losses += 1
                if losses == self._limits.max_losses:
                    text = f"{losses} replicas of {self.stage} went away with this request"
                    raise StageUnavailable(f"{text}; it is not tried again: {lost}") from lost
                if losses > 1 and not self._spend():
                    raise
                error = lost
                request.payload = lease.inline(request.payload)
            finally:
                lease.release()
            lease = None
            if request.resume is not None:
                request.context = request.resume()
            self.retries += 1
            log.debug("retry", extra={"stage": self.stage, "replica": link.address})
            if isinstance(error, ReplicaFull):
                await asyncio.sleep(random.uniform(0.001, 0.005))
        raise AssertionError("not reached: the attempts have no end")

    def wake(self) -> None:
        """Give credit that became free to those who wait."""
        while self._waiting:
            size, future = self._waiting.peek()
            if future.done():
                self._waiting.pop()
                continue
            link = self._choose(size)
            if link is None:
                return
            self._waiting.pop()
            future.set_result(Lease(link, size, self.wake))

    async def _send(
        self, link: Link, request: Request, attempt: int, more: Callable[[Reply], None] | None
    ) -> Reply:
        """Send an item, with a CLIENT span around it when its trace is sampled."""
        tracer, method = self._tracer, self._method[1:]
        if tracer is None or not is_sampled(request.trace):
            return await send_noted(link, request, method, attempt, more)
        trace, started = child_of(request.trace), time.monotonic()
        outcome = 1, "the caller gave up"
        try:
            reply = await link.send(request, trace, more)
            outcome = (reply.status.code, reply.status.message) if reply.status else (0, "")
            return reply
        except MeshError as err:
            outcome = (failed := to_status(err)).code, failed.message
            raise
        finally:
            write_rpc_span(
                tracer, method, trace, request.trace, SpanKind.CLIENT, outcome,
                started=started, ended=time.monotonic(),
                attributes={
                    **rpc_attributes(method, request.target),
                    "server.address": link.address, ATTEMPT: attempt,
                },
            )  # fmt: skip

    def _may_repeat(self, error: MeshError | None, link: Link) -> bool:
        if isinstance(error, ReplicaFull):
            return True
        if not isinstance(error, StageUnavailable):
            link.failures = 0
            return False
        link.failures += 1
        if link.failures >= self._limits.eject_after:
            link.ejected_until = time.monotonic() + random.uniform(0.5, 1.5)
        return self._spend()

    def _spend(self) -> bool:
        if self._budget < 1:
            return False
        self._budget -= 1
        return True

    def _choose(self, size: int) -> Link | None:
        """Return the less busy one of two replicas drawn at random, among those with room."""
        links = self._links
        if len(links) == 1:
            only = links[0]
            return only if only.ready and only.has_room(size) else None
        now = time.monotonic()
        open_links = [link for link in links if link.ready and link.has_room(size)]
        able = [link for link in open_links if link.ejected_until <= now] or open_links
        if len(able) > 2:
            able = random.sample(able, 2)
        return min(able, key=lambda link: link.load(now), default=None)

    async def _wait(self, size: int, deadline: float, client: str) -> Lease:
        if self._closed:
            raise StageUnavailable(f"the client of {self.stage} is closed")
        if len(self._waiting) >= self._limits.max_waiting:
            raise Overloaded(
                f"{self._limits.max_waiting} requests wait for {self.stage} already; "
                "try again in a moment, or add replicas"
            )
        left = deadline - time.monotonic()
        if math.isinf(left) and not self.replicas:
            left = self._limits.no_replica_s
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        entry = (size, future)
        self._waiting.push(client, entry)
        self.wake()
        try:
            # Not wait_for: that of Python 3.11 loses a cancel in the moment of the grant.
            async with asyncio.timeout(None if math.isinf(left) else max(0.0, left)):
                return await future
        except (TimeoutError, asyncio.CancelledError) as err:
            self._waiting.remove(client, entry)
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().release()
            self.wake()  # a smaller one behind it may fit
            if isinstance(err, asyncio.CancelledError):
                raise
            if not self.replicas:
                raise self._no_replica() from None
            raise DeadlineExceeded(
                f"no replica of {self.stage} had room before the deadline"
            ) from None

    async def _resolve_forever(self) -> None:
        while True:
            await asyncio.sleep(self._limits.resolve_every_s)
            await self._refresh()

    async def _refresh(self) -> None:
        try:
            wanted = await self._directory.find()
        except StageUnavailable as err:
            return log.warning("addresses stay as they are", extra={"error": str(err)})
        for address in wanted - self._keepers.keys():
            self._keepers[address] = asyncio.create_task(self._keep(address))
        for address in self._keepers.keys() - wanted:
            # A name that is gone is no reason to cut work: its streams finish what they have.
            self._keepers.pop(address).cancel()
            self._lost.pop(address, None)

    async def _keep(self, address: str) -> None:
        """Keep one link to an address; a drained one finishes its items beside the next."""
        pause = self._limits.backoff_s
        while True:
            control = self._method.endswith("/Run")
            link = Link(address, self._method, self._on_change, control=control)
            self._links.append(link)
            running = asyncio.create_task(self._run_link(link))
            self._draining.add(running)
            running.add_done_callback(self._draining.discard)
            started = time.monotonic()
            try:
                await link.drained.wait()
            finally:
                link.drained.set()
                link.released()
            if not link.dead:  # the next one opens while this one finishes
                pause = self._limits.backoff_s
                continue
            if time.monotonic() - started > 10:
                pause = self._limits.backoff_s
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, 32 * self._limits.backoff_s)

    async def _run_link(self, link: Link) -> None:
        try:
            await link.run()
        finally:
            self._links.remove(link)
            if self._lost.get(link.address) != link.reason:
                self._lost[link.address] = link.reason
                fields = {"stage": self.stage, "replica": link.address, "reason": link.reason}
                log.log(logging.INFO if link.met else logging.DEBUG, "link ended", extra=fields)
            self._on_change()

    def _no_replica(self) -> StageUnavailable:
        """Return the error that no replica takes items, with why each went away last."""
        reasons = "".join(f"; {address}: {reason}" for address, reason in self._lost.items())
        return StageUnavailable(
            f"no replica of {self.stage} at {self._directory.targets} could be reached in time"
            f"{reasons}"
        )

    def _on_change(self) -> None:
        self._changed.set()
        if self._waiting:
            self.wake()
