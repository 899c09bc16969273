"""Routes in the control process: pushed to data workers, judged by what these count."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from gateway.routing.controller import RouteController
from gateway.routing.figures import Figures, Key, pack_figures
from gateway.routing.routes import Route, from_proto
from gateway.routing.store import RouteStore
from gateway.scrape import WORKER
from mesh.errors import InvalidInput, NotFound
from mesh.item import Reply, Request
from mesh.layers import errors
from mesh.unary import unary_method
from protos.mesh.v1 import routes_pb2
from tests.conftest import eventually
from tests.gateway.routing.test_figures import counted


class Worker:
    """A data worker: takes routes, and counts what the test says."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.figures: dict[Key, Figures] = {}
        self.server = grpc.aio.server()
        method = unary_method(errors(self._take), "Take")
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(WORKER, {"Take": method}),)
        )
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    async def _take(self, request: Request) -> Reply:
        snapshot = routes_pb2.Snapshot.FromString(request.payload)
        self.routes = {route.pipeline: from_proto(route) for route in snapshot.routes}
        found, self.figures = self.figures, {}
        return Reply(pack_figures(found).SerializeToString())


@pytest.fixture
async def workers() -> AsyncIterator[list[Worker]]:
    made = [Worker(), Worker()]
    for worker in made:
        await worker.server.start()
    yield made
    for worker in made:
        await worker.server.stop(None)


def controller(
    workers: list[Worker], store: RouteStore | None = None, file: Path | None = None
) -> RouteController:
    addresses = [worker.address for worker in workers]
    return RouteController(store or RouteStore(None), addresses, file)


def setting(**fields: object) -> routes_pb2.SetRouteRequest:
    rule = fields.pop("rule", None)
    route = routes_pb2.Route(pipeline="m", **fields)  # type: ignore[arg-type]
    if isinstance(rule, dict):
        route.rule.CopyFrom(routes_pb2.RouteRule(**rule))
    return routes_pb2.SetRouteRequest(route=route, by="me")


CANARY = {"stable": "1", "canary": "2", "weight": 10}


async def test_route_is_at_every_worker_before_it_is_answered(workers: list[Worker]) -> None:
    one = controller(workers)
    told = await one.set(setting(**CANARY))
    assert all(worker.routes["m"].canary == "2" for worker in workers)
    assert told.routes[0].route.canary == "2"
    assert told.changes[-1].by == "me"
    assert told.changes[-1].what == "none -> stable 1, canary 2 with 10 %"
    await one.set(routes_pb2.SetRouteRequest(route={"pipeline": "m"}, promote=True, by="me"))
    assert workers[1].routes["m"].versions == ["2"]
    told = await one.set(routes_pb2.SetRouteRequest(route={"pipeline": "m"}, remove=True))
    assert workers[0].routes == {}
    assert [change.what.partition(";")[0] for change in told.changes][1:] == [
        "version 2 is promoted", "removed",
    ]  # fmt: skip


async def test_what_cannot_be_is_told(workers: list[Worker]) -> None:
    one = controller(workers)
    for action in ("promote", "rollback", "remove"):
        with pytest.raises(NotFound, match="has no route"):
            request = routes_pb2.SetRouteRequest(route={"pipeline": "m"})
            setattr(request, action, True)
            await one.set(request)
    await one.set(setting(stable="1"))
    with pytest.raises(NotFound, match="has no canary"):
        await one.set(routes_pb2.SetRouteRequest(route={"pipeline": "m"}, rollback=True))
    with pytest.raises(InvalidInput, match="weight"):
        await one.set(setting(weight=7))


async def test_routes_are_as_before_after_a_restart(workers: list[Worker], tmp_path: Path) -> None:
    store = RouteStore(tmp_path / "state.db")
    await controller(workers, store).set(setting(**CANARY))
    store.close()
    workers[0].routes = {}  # it began anew, too
    again = controller(workers, RouteStore(tmp_path / "state.db"))
    await again.look()
    assert workers[0].routes["m"].canary == "2"


async def test_worker_that_is_away_gets_the_routes_when_it_is_back(workers: list[Worker]) -> None:
    await workers[1].server.stop(None)
    one = controller(workers)
    await one.set(setting(**CANARY))
    assert workers[0].routes.keys() == {"m"}


async def test_figures_of_all_workers_are_added_and_told(workers: list[Worker]) -> None:
    one = controller(workers)
    await one.set(setting(**CANARY, shadow="3"))
    for worker in workers:
        worker.figures = {
            ("m", "1", "stable"): counted(*[0.01] * 50, errors=1),
            ("m", "2", "canary"): counted(*[0.02] * 5),
            ("m", "3", "shadow"): Figures(requests=5, same=4),
        }
    await one.look()
    (state,) = one.get(routes_pb2.GetRoutesRequest()).routes
    found = {arm.arm: (arm.version, arm.requests, arm.errors, arm.same) for arm in state.arms}
    assert found == {
        "stable": ("1", 100, 2, 0), "canary": ("2", 10, 0, 0), "shadow": ("3", 10, 0, 8),
    }  # fmt: skip
    assert state.arms[1].p99_ms == pytest.approx(20, rel=0.06)
    assert one.get(routes_pb2.GetRoutesRequest(pipeline="other")).routes == []


async def test_canary_that_is_slow_is_rolled_back(workers: list[Worker]) -> None:
    one = controller(workers)
    await one.set(setting(**CANARY, rule={"min_samples": 20}))
    for _ in range(3):
        workers[0].figures = {
            ("m", "1", "stable"): counted(*[0.01] * 100),
            ("m", "2", "canary"): counted(*[0.02] * 20),
        }
        await one.look()
    await one.look()
    assert workers[1].routes["m"].versions == ["1"]
    change = one.get(routes_pb2.GetRoutesRequest()).changes[-1]
    assert change.by == "rule"
    assert "version 2 is rolled back: its p99 is" in change.what


async def test_figures_begin_anew_with_another_canary(workers: list[Worker]) -> None:
    one = controller(workers)
    await one.set(setting(**CANARY, rule={"min_samples": 20}))
    workers[0].figures = {("m", "2", "canary"): counted(*[0.01] * 40, errors=40)}
    await one.look()
    assert one.get(routes_pb2.GetRoutesRequest()).routes[0].route.canary == ""
    await one.set(setting(**CANARY, rule={"min_samples": 20}))  # it is mended
    await one.look()
    assert one.get(routes_pb2.GetRoutesRequest()).routes[0].route.canary == "2"


async def test_file_is_followed_and_is_the_only_place_for_its_routes(
    workers: list[Worker], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "routes.yaml"
    one = controller(workers, file=file)
    running = asyncio.create_task(one.run())
    await asyncio.sleep(0)
    file.write_text("routes: {m: {stable: '1'}}")
    await eventually(lambda: workers[0].routes.keys() == {"m"}, 5)
    with pytest.raises(InvalidInput, match=r"is in .*routes.yaml; change it there"):
        await one.set(setting(stable="2"))
    file.write_text("nonsense")
    await eventually(lambda: "routes stay as they are" in caplog.text, 5)
    assert workers[0].routes.keys() == {"m"}
    file.write_text("routes: {n: {stable: '1'}}")
    await eventually(lambda: workers[0].routes.keys() == {"n"}, 5)
    assert one.get(routes_pb2.GetRoutesRequest()).changes[-1].by == "file"
    running.cancel()
