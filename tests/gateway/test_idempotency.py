"""A call with a key is run once, whichever data worker it comes to."""

import asyncio
import time
from typing import Any

import pytest

from gateway.idempotency import KEY, MOST_KEY, Calls, idempotent
from mesh.errors import EngineError, InvalidInput
from mesh.item import Handler, Reply, Request
from mesh.layers import errors, stack
from protos.mesh.v1 import routes_pb2


class Worker:
    """A data worker with a handler that counts its runs."""

    def __init__(self, calls: Calls, method: str = "m") -> None:
        self.runs = 0
        self.fails = False
        self.hold = asyncio.Event()
        self.hold.set()
        self._handler: Handler = stack(
            self._run, [errors, idempotent(calls.handlers(), method), errors]
        )

    async def _run(self, request: Request) -> Reply:
        self.runs += 1
        await self.hold.wait()
        if self.fails:
            raise EngineError("broken")
        return Reply(request.payload + str(self.runs).encode())

    async def ask(self, payload: bytes = b"x", key: str | bytes = "k", **options: Any) -> Reply:
        metadata = [(KEY.title(), key)] if key else []
        return await self._handler(Request("m", payload, metadata=metadata, **options))


async def test_retry_at_another_worker_gets_the_first_answer() -> None:
    calls = Calls()
    one, other = Worker(calls), Worker(calls)
    assert (await one.ask()).payload == b"x1"
    assert (await other.ask()).payload == b"x1"
    assert (await other.ask(key=b"k")).payload == b"x1"
    assert (one.runs, other.runs) == (1, 0)


async def test_without_a_key_each_call_is_run() -> None:
    worker = Worker(Calls())
    for _ in range(3):
        await worker.ask(key="")
    assert worker.runs == 3


async def test_retry_while_it_runs_waits_for_the_answer() -> None:
    calls = Calls()
    one, other = Worker(calls), Worker(calls)
    one.hold.clear()
    asked = [asyncio.create_task(worker.ask()) for worker in (one, other, other)]
    await asyncio.sleep(0.02)
    one.hold.set()
    assert [reply.payload for reply in await asyncio.gather(*asked)] == [b"x1"] * 3
    assert (one.runs, other.runs) == (1, 0)


async def test_what_failed_is_run_again() -> None:
    worker = Worker(Calls())
    worker.fails = True
    assert isinstance((await worker.ask()).error(), EngineError)
    worker.fails = False
    assert (await worker.ask()).payload == b"x2"
    assert (await worker.ask()).payload == b"x2"


async def test_key_of_another_call_is_refused() -> None:
    calls = Calls()
    worker = Worker(calls)
    await worker.ask()
    error = (await worker.ask(b"another")).error()
    assert isinstance(error, InvalidInput)
    assert "'k' came with another call before" in str(error)
    assert (await Worker(calls, "n").ask()).error() is not None  # the same body, another method
    assert (await worker.ask(key="x" * (MOST_KEY + 1))).error() is not None
    assert (await worker.ask()).payload == b"x1"


async def test_caller_that_leaves_lets_its_retry_run() -> None:
    calls = Calls()
    one, other = Worker(calls), Worker(calls)
    one.hold.clear()
    asked = asyncio.create_task(one.ask())
    await asyncio.sleep(0.02)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert (await other.ask()).payload == b"x1"
    assert other.runs == 1


async def test_worker_that_died_lets_the_retry_run_after_its_lease() -> None:
    calls = Calls()
    claim = routes_pb2.ClaimRequest(key="k", digest=b"d", lease_s=0.1)
    assert (await calls.claim(claim)).run
    began = time.monotonic()
    told = await asyncio.gather(calls.claim(claim), _later(calls, claim))
    assert told[0].run
    assert 0.05 < time.monotonic() - began < 1
    assert told[1].reply == b"answer"


async def _later(calls: Calls, claim: routes_pb2.ClaimRequest) -> routes_pb2.ClaimResponse:
    """Ask a third time, and let the second one be answered."""
    await asyncio.sleep(0.15)
    asked = asyncio.create_task(calls.claim(claim))
    await asyncio.sleep(0)
    calls.complete(routes_pb2.CompleteRequest(key="k", digest=b"d", reply=b"answer"))
    return await asked


async def test_answers_are_kept_for_a_while_and_bounded() -> None:
    worker = Worker(Calls(kept_s=0.05))
    await worker.ask()
    await asyncio.sleep(0.1)
    assert (await worker.ask()).payload == b"x2"
    small = Worker(Calls(most_bytes=1000))
    for number in range(10):
        await small.ask(bytes(300), key=str(number))
    await small.ask(bytes(300), key="9")
    assert small.runs == 10
    await small.ask(bytes(300), key="0")
    assert small.runs == 11


async def test_word_that_comes_too_late_changes_nothing() -> None:
    calls = Calls()
    calls.complete(routes_pb2.CompleteRequest(key="none", digest=b"d", reply=b"x"))
    claim = routes_pb2.ClaimRequest(key="k", digest=b"d", lease_s=10)
    await calls.claim(claim)
    calls.complete(routes_pb2.CompleteRequest(key="k", digest=b"other", reply=b"wrong"))
    calls.complete(routes_pb2.CompleteRequest(key="k", digest=b"d", reply=b"right"))
    calls.complete(routes_pb2.CompleteRequest(key="k", digest=b"d", reply=b"late"))
    with pytest.raises(InvalidInput):
        await calls.claim(routes_pb2.ClaimRequest(key="k", digest=b"other", lease_s=1))
    assert (await calls.claim(claim)).reply == b"right"
