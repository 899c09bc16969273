"""Each attempt of a request is noted with its times and what came of it, where somebody asks."""

import asyncio
import time

import pytest

from mesh.client import StageClient
from mesh.errors import EngineError, StageUnavailable
from mesh.hop import send_noted
from mesh.item import Hop, Reply, Request, Timings
from tests.conftest import echo, eventually, running_client, running_replica
from tests.mesh.spans import UNSAMPLED

METHOD = "mesh.v1.Infer/Run"


def noted(hop: Hop) -> tuple[str, str, int, bool, str]:
    return hop.method, hop.target, hop.attempt, hop.answered, hop.status.kind if hop.status else ""


async def attempt(client: StageClient, hops: list[Hop] | None) -> Reply:
    request = Request("digits", b"x", trace=UNSAMPLED, hops=hops)
    return await send_noted(client.replicas[0], request, METHOD, 2)


async def test_reply_is_noted_with_its_times_and_timings() -> None:
    async def measure(_: Request) -> Reply:
        return Reply(b"answer", timings=Timings(0.25, 0.5, 1.0, 7))

    hops: list[Hop] = []
    async with running_replica(measure) as replica, running_client(replica) as client:
        before = time.monotonic()
        assert (await attempt(client, hops)).payload == b"answer"
        (hop,) = hops
        assert before <= hop.sent <= hop.ended <= time.monotonic()
    assert noted(hop) == (METHOD, "digits", 2, True, "")
    assert hop.address == replica.address
    assert hop.timings == Timings(0.25, 0.5, 1.0, 7)


async def test_error_that_was_answered_is_noted_as_an_answer() -> None:
    async def fail(_: Request) -> Reply:
        raise EngineError("why")

    hops: list[Hop] = []
    async with running_replica(fail) as replica, running_client(replica) as client:
        reply = await attempt(client, hops)
    assert isinstance(reply.error(), EngineError)
    assert noted(hops[0]) == (METHOD, "digits", 2, True, "EngineError")
    assert hops[0].status is not None
    assert hops[0].status.message == "why"


@pytest.mark.parametrize("end", ["lost", "cancelled"])
async def test_attempt_without_an_answer_is_noted_with_its_end(end: str) -> None:
    async def hang(_: Request) -> Reply:
        await asyncio.Event().wait()
        return Reply()

    hops: list[Hop] = []
    async with running_replica(hang) as replica, running_client(replica) as client:
        call = asyncio.ensure_future(attempt(client, hops))
        await eventually(lambda: replica.stage.depth == 1)
        if end == "lost":
            await replica.kill()
            with pytest.raises(StageUnavailable):
                await call
        else:
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
    kind = "StageUnavailable" if end == "lost" else "Cancelled"
    assert noted(hops[0]) == (METHOD, "digits", 2, False, kind)
    assert hops[0].ended >= hops[0].sent


async def test_client_notes_every_attempt_of_a_request() -> None:
    failures = iter([StageUnavailable("sick"), StageUnavailable("sick")])

    async def sick_at_first(_: Request) -> Reply:
        for failure in failures:
            raise failure
        return Reply(b"answer")

    hops: list[Hop] = []
    async with running_replica(sick_at_first) as replica, running_client(replica) as client:
        await client.call(Request("digits", b"x", hops=hops))
    assert [(hop.attempt, hop.status.kind if hop.status else "") for hop in hops] == [
        (0, "StageUnavailable"), (1, "StageUnavailable"), (2, "")
    ]  # fmt: skip


async def test_nothing_is_noted_unless_asked_for() -> None:
    async with running_replica(echo) as replica, running_client(replica) as client:
        assert (await attempt(client, None)).payload == b"x"
