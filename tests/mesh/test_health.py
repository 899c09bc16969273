"""Health is told to who asks and to everyone who watches, until the process leaves."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.host import Host
from tests.conftest import eventually
from tests.mesh.test_host import SERVICE, health, running_host

UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Watcher:
    """Collects what a health stream says."""

    def __init__(self, channel: grpc.aio.Channel, service: str) -> None:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        self.seen: list[int] = []
        self._call = stub.Watch(health_pb2.HealthCheckRequest(service=service))
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for answer in self._call:
            self.seen.append(answer.status)

    async def stop(self) -> None:
        self._call.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_health_goes_from_not_serving_to_serving_to_the_end(bind: str) -> None:
    drained = asyncio.Event()
    async with grpc.aio.insecure_channel(bind) as channel:
        host = Host(bind)
        await host.start()
        watcher = Watcher(channel, "")
        await eventually(lambda: watcher.seen == [NOT_SERVING])
        host.set_health("", True)
        await eventually(lambda: watcher.seen == [NOT_SERVING, SERVING])

        async def drain() -> None:
            await drained.wait()

        stopping = asyncio.create_task(host.stop(drain, 0))
        await eventually(lambda: watcher.seen == [NOT_SERVING, SERVING, NOT_SERVING])
        host.set_health("", True)  # too late: who goes away does not come back
        assert await health(channel) == NOT_SERVING
        drained.set()
        await stopping
        await watcher.stop()
        assert watcher.seen == [NOT_SERVING, SERVING, NOT_SERVING]


async def test_health_of_a_service_is_its_own(bind: str) -> None:
    async with running_host(bind) as host, grpc.aio.insecure_channel(bind) as channel:
        host.set_health(SERVICE, True)
        assert [await health(channel), await health(channel, SERVICE)] == [NOT_SERVING, SERVING]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(channel, "nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_service_that_comes_later_is_unknown_until_then(bind: str) -> None:
    async with running_host(bind) as host, grpc.aio.insecure_channel(bind) as channel:
        watcher = Watcher(channel, "digits-detect")
        await eventually(lambda: watcher.seen == [UNKNOWN])
        host.set_health("digits-detect", True)
        await eventually(lambda: watcher.seen == [UNKNOWN, SERVING])
        await watcher.stop()


async def test_one_that_stops_watching_leaves_the_others_their_news(bind: str) -> None:
    async with running_host(bind) as host, grpc.aio.insecure_channel(bind) as channel:
        watchers = [Watcher(channel, "") for _ in range(3)]
        await eventually(lambda: all(watcher.seen == [NOT_SERVING] for watcher in watchers))
        await watchers.pop().stop()
        await health(channel)  # one more turn, so that the server has seen the end
        host.set_health("", True)
        await eventually(lambda: all(w.seen == [NOT_SERVING, SERVING] for w in watchers))
        for watcher in watchers:
            await watcher.stop()
