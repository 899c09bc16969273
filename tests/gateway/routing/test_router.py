"""Which version a request gets, and what is counted."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.routing.router import MOST_SHADOWS, Router
from gateway.routing.routes import Route
from mesh.errors import EngineError, InvalidInput, MeshError
from mesh.item import Reply, Request

SERVED = ("1", "2", "3")


class Model:
    """Answers with its version, unless it is to fail."""

    def __init__(self, **failures: MeshError) -> None:
        self.failures = failures
        self.asked: list[str] = []
        self.pause: Callable[[], Awaitable[None]] | None = None

    async def ask(self, version: str) -> Reply:
        self.asked.append(version)
        if self.pause is not None and version == "3":
            await self.pause()
        if f"v{version}" in self.failures:
            raise self.failures[f"v{version}"]
        return Reply(version.encode(), version=version)


def request(**metadata: str) -> Request:
    return Request("m", b"", metadata=[(k.replace("_", "-"), v) for k, v in metadata.items()])


def figures(router: Router) -> dict[str, tuple[int, int]]:
    return {key[2]: (one.requests, one.errors) for key, one in router.drain().items()}


async def run(
    router: Router, model: Model, route: Route, times: int = 1, **metadata: str
) -> list[str]:
    return [
        (await router.run(route, SERVED, request(**metadata), model.ask)).version
        for _ in range(times)
    ]


async def test_each_arm_has_its_share_and_is_counted() -> None:
    router, model = Router(), Model()
    route = Route(pipeline="m", stable="1", canary="2", weight=50)
    said = await run(router, model, route, 200)
    assert 60 < said.count("2") < 140
    found = figures(router)
    assert found == {"stable": (said.count("1"), 0), "canary": (said.count("2"), 0)}
    assert figures(router) == {}


async def test_sticky_requests_stay_with_their_version() -> None:
    router, model = Router(), Model()
    route = Route(pipeline="m", stable="1", canary="2", weight=50, sticky="X-User")
    for user in range(20):
        assert len({*await run(router, model, route, 10, x_user=str(user))}) == 1
    assert len({*await run(router, model, route, 100)}) == 2  # without the key: chance


async def test_stable_version_answers_what_the_canary_fails() -> None:
    router, model = Router(), Model(v2=EngineError("broken"))
    route = Route(pipeline="m", stable="1", canary="2", weight=100)
    assert await run(router, model, route, 5) == ["1"] * 5
    assert figures(router) == {"canary": (5, 5), "stable": (5, 0)}


async def test_callers_fault_is_no_fault_of_the_canary() -> None:
    router, model = Router(), Model(v2=InvalidInput("shape"))
    route = Route(pipeline="m", stable="1", canary="2", weight=100)
    with pytest.raises(InvalidInput):
        await run(router, model, route)
    assert model.asked == ["2"]
    assert figures(router) == {}


async def test_failure_of_the_stable_version_is_told() -> None:
    router, model = Router(), Model(v1=EngineError("broken"))
    with pytest.raises(EngineError):
        await run(router, model, Route(pipeline="m", stable="1"))
    assert figures(router) == {"stable": (1, 1)}


async def test_versions_that_are_not_served_are_not_asked() -> None:
    router, model = Router(), Model()
    route = Route(pipeline="m", stable="8", canary="9", weight=100, shadow="7")
    await router.run(route, SERVED, request(), model.ask)
    assert model.asked == [""]  # the newest


async def test_shadow_gets_copies_and_is_compared() -> None:
    router, model = Router(), Model()
    route = Route(pipeline="m", stable="1", shadow="3")
    assert await run(router, model, route, 4) == ["1"] * 4
    await asyncio.sleep(0.01)
    ((_, one),) = [(key, one) for key, one in router.drain().items() if key[2] == "shadow"]
    assert (one.requests, one.errors, one.same) == (4, 0, 0)

    async def alike(version: str) -> Reply:
        return Reply(b"same", version=version)

    await router.run(route, SERVED, request(), alike)
    await asyncio.sleep(0.01)
    assert router.drain()["m", "3", "shadow"].same == 1


async def test_shadow_that_fails_or_hangs_is_nobodys_concern() -> None:
    router, model = Router(), Model(v3=EngineError("broken"))
    route = Route(pipeline="m", stable="1", shadow="3")
    assert await run(router, model, route) == ["1"]
    await asyncio.sleep(0.01)
    model = Model()
    hang = asyncio.Event()

    async def pause() -> None:
        await hang.wait()

    model.pause = pause
    assert len(await run(router, model, route, 2 * MOST_SHADOWS)) == 2 * MOST_SHADOWS
    await asyncio.sleep(0)
    assert model.asked.count("3") == MOST_SHADOWS
    hang.set()
    await asyncio.sleep(0.01)
    model = Model(v1=EngineError("broken"))
    with pytest.raises(EngineError):
        await run(router, model, route)


async def test_routes_are_taken_whole() -> None:
    router = Router()
    route = Route(pipeline="m", stable="1")
    router.take([route])
    assert router.of("m") == route
    router.take([])
    assert router.of("m") is None
