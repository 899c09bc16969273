"""Versions that are tried out under load, and go or take over by themselves."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from tests.e2e.conftest import Mesh, start_mesh, stop_mesh
from tests.e2e.test_swaps import loading
from tests.infer_svc import graphs
from tests.infer_svc.graphs import write_model
from tests.infer_svc.test_models import ALL, put

WIDTH = 512


def slow_times(factor: float, rounds: int) -> bytes:
    """x → y, so many times as much, after as many matrix products as wanted."""
    zeros = helper.make_tensor("zeros", TensorProto.FLOAT, [WIDTH, WIDTH], [0.0] * WIDTH * WIDTH)
    spread = helper.make_tensor("spread", TensorProto.FLOAT, [4, WIDTH], [0.0] * 4 * WIDTH)
    back = helper.make_tensor("back", TensorProto.FLOAT, [WIDTH, 4], [0.0] * 4 * WIDTH)
    number = helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])
    nodes = [helper.make_node("MatMul", ["x", "spread"], ["h0"])]
    nodes += [
        helper.make_node("MatMul", [f"h{at}", "zeros"], [f"h{at + 1}"]) for at in range(rounds)
    ]
    nodes += [
        helper.make_node("MatMul", [f"h{rounds}", "back"], ["nothing"]),
        helper.make_node("Mul", ["x", "factor"], ["product"]),
        helper.make_node("Add", ["product", "nothing"], ["y"]),
    ]
    constants = [zeros, spread, back, number]
    return graphs.model(nodes, [graphs.value("x")], [graphs.value("y")], constants)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    root = tmp_path / "models"
    root.mkdir()
    write_model(root, "m", slow_times(1, 150), ALL)
    put(root, 2, slow_times(2, 150))
    put(root, 3, slow_times(3, 450))
    (root / "m/pipeline.yaml").write_text("model: m\n")
    state = tmp_path / "state.db"
    running = start_mesh(
        tmp_path / "log", "--workers", "gateway=2", models=root, GATEWAY_STATE=str(state),
        INFER_CPU_THREADS="1",
    )  # fmt: skip
    yield running
    assert stop_mesh(running) == 0
    assert "Traceback" not in running.log.read_text()


def route(mesh: Mesh, *words: str) -> str:
    done = mesh.cli("model", "route", "m", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def until(mesh: Mesh, text: str, limit_s: float) -> str:
    """Wait until the route tells something; return what it tells."""
    end = time.monotonic() + limit_s
    while text not in (shown := await asyncio.to_thread(route, mesh)):
        assert time.monotonic() < end, shown
        await asyncio.sleep(0.5)
    return shown


@pytest.mark.slow
async def test_canary_that_is_slow_is_rolled_back_and_one_that_is_not_takes_over(
    mesh: Mesh, tmp_path: Path
) -> None:
    route(mesh, "--stable", "1", "--canary", "3", "--weight", "20", "--samples", "30")
    async with loading(mesh, 4) as load:
        shown = await until(mesh, "version 3 is rolled back", 30)
        assert "its p99 is" in shown
        at = len(load.answers)
        await asyncio.sleep(1.5)
        assert {version for version, _ in load.answers[at + 8 :]} == {"1"}
        words = ("--canary", "2", "--weight", "30", "--samples", "30", "--p99", "4")
        route(mesh, *words, "--promote-after", "4")
        await until(mesh, "version 2 is promoted", 30)
        await asyncio.sleep(1.5)
        assert load.answers[-1][0] == "2"
    path = tmp_path / "routes.json"
    route(mesh, "--export", str(path))
    told = json.loads(path.read_text())
    assert [change["by"] for change in told["changes"]][1::2] == ["rule", "rule"]
    assert told["routes"][0]["arms"][0]["version"] == "2"


async def test_route_outlives_the_control_process(mesh: Mesh) -> None:
    route(mesh, "--stable", "1")
    (control,) = mesh.services("gateway.control")
    control.kill()
    async with loading(mesh, 2) as load:
        await until(mesh, "stable        1", 20)
        await asyncio.sleep(1.5)
    assert {version for version, _ in load.answers} == {"1"}
    route(mesh, "--remove")


def test_shadow_is_told_of_and_nobody_sees_it(mesh: Mesh) -> None:
    route(mesh, "--stable", "1", "--shadow", "2")

    async def ask() -> None:
        async with loading(mesh, 2) as load:
            await asyncio.sleep(2)
        assert {version for version, _ in load.answers} == {"1"}

    asyncio.run(ask())
    time.sleep(1.5)
    (line,) = [
        line for line in route(mesh).splitlines() if "shadow " in line and "requests" in line
    ]
    count = int(line.split("requests")[0].split()[-1])
    assert count > 10
    assert "0 answers the same" in line
