"""A step of a request has all that the request brought, and raises what its stage answered."""

import asyncio
import time

import pytest

from gateway.stage_call import call_stage
from mesh.errors import InvalidInput
from mesh.item import Hop, Reply, Request
from protos.mesh.v1.stage_pb2 import Target
from tests.gateway.stages import running_mesh


async def test_step_has_the_requests_time_trace_client_and_notes() -> None:
    hops: list[Hop] = []
    trace = bytes(range(24)) + b"\0"
    request = Request(
        "pipeline", b"came", b"not passed on", deadline=time.monotonic() + 5, trace=trace,
        client="c", hops=hops,
    )  # fmt: skip
    async with running_mesh() as mesh:
        target = Target(name="op", parameters=b"{}")
        reply = await call_stage(
            mesh.stages.preprocess, request, target, b"payload", context=b"context"
        )
        assert reply.payload == b"op(payload)"
        (seen,) = mesh.preprocess.requests
        assert (seen.target, seen.parameters, seen.context) == ("op", b"{}", b"context")
        assert seen.trace == trace
        assert seen.deadline - time.monotonic() < 5
        assert [hop.target for hop in hops] == ["op"]


async def test_replies_before_the_last_are_handed_on() -> None:
    async def talk(request: Request) -> Reply:
        for payload in (b"a", b"b"):
            assert request.emit is not None
            request.emit(Reply(payload, more=True))
        await asyncio.sleep(0)
        return Reply(b"c")

    async with running_mesh() as mesh:
        mesh.infer.answer = talk
        came: list[bytes] = []
        reply = await call_stage(
            mesh.stages.infer, Request("p", b""), Target(name="m"), b"",
            more=lambda reply: came.append(reply.payload),
        )  # fmt: skip
        assert (came, reply.payload) == ([b"a", b"b"], b"c")


async def test_failure_is_raised() -> None:
    async def refuse(_: Request) -> Reply:
        raise InvalidInput("no")

    async with running_mesh() as mesh:
        mesh.infer.answer = refuse
        with pytest.raises(InvalidInput, match="no"):
            await call_stage(mesh.stages.infer, Request("p", b""), Target(name="m"), b"")
