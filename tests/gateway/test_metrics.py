"""Every request is counted once with its status, and gauges tell the stages as they are."""

import asyncio
import math

import pytest
from prometheus_client import REGISTRY

from gateway.metrics import metering, watch_stages
from mesh.errors import InvalidInput, NotFound, Overloaded
from mesh.item import Handler, Reply, Request
from mesh.layers import errors, stack
from mesh.server import Limits
from tests.conftest import eventually
from tests.gateway.stages import running_mesh


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0


def counted(pipeline: str, code: str) -> float:
    return value("mesh_gateway_requests_total", pipeline=pipeline, code=code)


def timed(pipeline: str) -> float:
    return value("mesh_gateway_request_duration_seconds_count", pipeline=pipeline)


def metered(handler: Handler) -> Handler:
    return stack(handler, [metering(), errors])


async def ok(request: Request) -> Reply:
    assert value("mesh_gateway_inflight") >= 1
    return Reply()


async def test_request_is_counted_and_timed_by_pipeline() -> None:
    before, times = counted("digits", "OK"), timed("digits")
    for _ in range(3):
        await metered(ok)(Request("digits", b""))
    assert counted("digits", "OK") == before + 3
    assert timed("digits") == times + 3
    assert value("mesh_gateway_inflight") == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput("no"), "INVALID_ARGUMENT"),
        (Overloaded("no"), "RESOURCE_EXHAUSTED"),
        (ZeroDivisionError(), "INTERNAL"),
    ],
    ids=["invalid", "overloaded", "unexpected"],
)
async def test_failure_is_counted_with_its_code(error: Exception, code: str) -> None:
    async def fail(request: Request) -> Reply:
        raise error

    before = counted("digits", code)
    await metered(fail)(Request("digits", b""))
    assert counted("digits", code) == before + 1
    assert value("mesh_gateway_inflight") == 0


async def test_names_that_callers_make_up_share_one_label() -> None:
    """Else anybody could fill the memory of the gateway and of Prometheus."""

    async def unknown(request: Request) -> Reply:
        raise NotFound("no pipeline")

    before = counted("unknown", "NOT_FOUND")
    for number in range(5):
        await metered(unknown)(Request(f"made-up-{number}", b""))
    assert counted("unknown", "NOT_FOUND") == before + 5
    assert counted("made-up-1", "NOT_FOUND") == 0
    assert timed("made-up-1") == 0


async def test_caller_that_gives_up_is_counted() -> None:
    async def hang(request: Request) -> Reply:
        await asyncio.Event().wait()
        return Reply()

    before = counted("digits", "CANCELLED")
    task = asyncio.ensure_future(metered(hang)(Request("digits", b"")))
    await eventually(lambda: value("mesh_gateway_inflight") == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert counted("digits", "CANCELLED") == before + 1
    assert value("mesh_gateway_inflight") == 0


async def test_gauges_tell_replicas_waiting_and_retries_of_each_stage() -> None:
    async with running_mesh(Limits(max_items=1)) as mesh:
        watch_stages(mesh.stages)
        for client in mesh.stages.all():
            assert value("mesh_stage_replicas", stage=client.stage) == 1
            assert value("mesh_stage_waiting", stage=client.stage) == 0
            assert value("mesh_stage_retries", stage=client.stage) == 0
        infer = mesh.stages.infer
        lease = await infer.reserve(1, math.inf)
        waiting = asyncio.create_task(infer.reserve(1, math.inf))
        await eventually(lambda: value("mesh_stage_waiting", stage=infer.stage) == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        lease.release()
        assert value("mesh_stage_waiting", stage=infer.stage) == 0
        infer.retries = 3
        assert value("mesh_stage_retries", stage=infer.stage) == 3
        await mesh.infer.kill()
        await eventually(lambda: value("mesh_stage_replicas", stage=infer.stage) == 0)
