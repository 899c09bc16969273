"""The life of models: versions come and go under load, and no request is lost."""

import asyncio
import gc
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from opentelemetry.trace import NoOpTracer
from prometheus_client import CollectorRegistry

from infer_svc.backends.machine import Machine
from infer_svc.families import InferMetrics
from infer_svc.models import Models
from infer_svc.service import InferHandler
from mesh.arena import Lender
from mesh.errors import MeshError, NotFound, Refused, StageUnavailable
from mesh.item import Request
from mesh.status import from_status
from mesh.tensor import Tensors, pack, unpack
from protos.mesh.v1.stage_pb2 import Target
from tests.conftest import eventually, running_client, running_replica
from tests.infer_svc import graphs
from tests.infer_svc.graphs import write_model

ROWS = np.ones((1, 4), np.float32)
DYNAMIC = "max_batch_size: 8 dynamic_batching { }"
ALL = f"{DYNAMIC} version_policy {{ all {{ }} }}"


def times(factor: float, dims: graphs.Dims = ("n", 4)) -> bytes:
    """x → y, so many times as much: each version answers differently."""
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    constant = helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])
    return graphs.model(
        [node], [graphs.value("x", dims=dims)], [graphs.value("y", dims=dims)], [constant]
    )


def put(root: Path, version: int, content: bytes | None = None, name: str = "m") -> None:
    """Write a version into a repository in one step, as who copies one in should."""
    write_model(root / ".new", name, content or times(version), versions=(str(version),))
    (root / name).mkdir(exist_ok=True)
    (root / ".new" / name / str(version)).rename(root / name / str(version))
    shutil.rmtree(root / ".new")


@dataclass
class Open:
    """A handler, and what it told."""

    handler: InferHandler
    registry: CollectorRegistry
    changes: list[None] = field(default_factory=list)
    health: list[tuple[str, bool]] = field(default_factory=list)

    @property
    def models(self) -> Models:
        return self.handler.models

    async def ask(self, target: str = "m", rows: np.ndarray = ROWS) -> Tensors:
        reply = await self.handler(Request(target, pack({"x": rows})))
        outputs = unpack(reply.payload)
        outputs["version"] = np.array(int(reply.version))
        return outputs

    async def says(self, target: str = "m") -> tuple[float, int]:
        """Return by how much a model multiplies, and its version as it reports it."""
        outputs = await self.ask(target)
        return float(outputs["y"][0, 0]), int(outputs["version"])

    def index(self, name: str = "m") -> list[tuple[str, str]]:
        return [(one.version, one.state) for one in self.models.index() if one.name == name]

    def reason(self, version: str, name: str = "m") -> str:
        found = [one for one in self.models.index() if (one.name, one.version) == (name, version)]
        return found[0].reason


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[Open]:
    registry = CollectorRegistry()
    handler = InferHandler(root, Machine(), NoOpTracer(), Lender(0), InferMetrics(registry))
    one = Open(handler, registry)
    handler.on_change = lambda: one.changes.append(None)
    handler.on_health = lambda name, serving: one.health.append((name, serving))
    await handler.load()
    try:
        yield one
    finally:
        await handler.stop_loading()
        handler.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_model(tmp_path, "m", times(1), DYNAMIC)
    return tmp_path


async def test_new_version_serves_and_the_old_one_ends(root: Path) -> None:
    async with opened(root) as one:
        assert await one.says() == (1, 1)
        put(root, 2)
        changes = len(one.changes)
        await one.models.load("m")
        assert await one.says() == (2, 2)
        assert len(one.changes) == changes + 1
        await one.models.drain()
        assert one.index() == [("1", "UNAVAILABLE"), ("2", "READY")]
        assert not [t.name for t in threading.enumerate() if t.name == "m-0" and not t.is_alive()]
        labels = {"model": "m", "version": "1"}
        assert one.registry.get_sample_value("nv_inference_count", labels) is None
        assert one.health == [("m", True)]


async def test_what_is_served_from_the_same_files_is_left_alone(root: Path) -> None:
    async with opened(root) as one:
        before = one.models.find("m")
        await one.models.load("m")
        assert one.models.find("m") is before
        put(root, 2)
        await one.models.load("m")
        after = one.models.find("m")
        await one.models.load("m")
        assert one.models.find("m") is after


async def test_version_whose_files_are_changed_is_loaded_anew(root: Path) -> None:
    async with opened(root) as one:
        (root / "m/1/model.onnx").write_bytes(times(7))
        await one.models.load("m")
        assert await one.says() == (7, 1)
        (root / "m/config.pbtxt").write_text("max_batch_size: 2 dynamic_batching { }")
        await one.models.load("m")
        assert one.models.find("m").model.config.max_rows == 2
        await one.models.drain()
        assert one.index() == [("1", "READY")]
        labels = {"model": "m", "version": "1"}
        assert one.registry.get_sample_value("nv_inference_count", labels) is not None


@pytest.mark.parametrize("content", [b"garbage", times(2, dims=(3, 4))])
async def test_broken_version_leaves_the_old_one_serving_and_says_why(
    root: Path, content: bytes
) -> None:
    async with opened(root) as one:
        put(root, 2, content)
        with pytest.raises(MeshError, match=r"cannot load|no batch dimension"):
            await one.models.load("m")
        assert await one.says() == (1, 1)
        assert one.index() == [("1", "READY"), ("2", "UNAVAILABLE")]
        assert "m" in one.reason("2")
        with pytest.raises(Refused):
            await one.ask("m/2")
        shutil.rmtree(root / "m/2")
        put(root, 3)
        await one.models.load("m")
        assert await one.says() == (3, 3)


async def test_broken_config_leaves_all_versions_serving_and_says_why(root: Path) -> None:
    async with opened(root) as one:
        (root / "m/config.pbtxt").write_text("max_batch_size: x")
        with pytest.raises(MeshError, match="no ModelConfig"):
            await one.models.load("m")
        assert await one.says() == (1, 1)
        assert ("", "UNAVAILABLE") in one.index()
        (root / "m/config.pbtxt").write_text(DYNAMIC)
        await one.models.load("m")
        assert one.index() == [("1", "READY")]


async def test_policy_all_serves_each_version_by_its_number(tmp_path: Path) -> None:
    write_model(tmp_path, "m", times(1), ALL)
    put(tmp_path, 3)
    async with opened(tmp_path) as one:
        assert await one.says() == (3, 3)
        assert [await one.says(f"m/{number}") for number in (1, 3)] == [(1, 1), (3, 3)]
        (spec,) = one.handler.describe([Target(name="m/1")])
        assert (spec.version, list(spec.versions)) == ("1", ["1", "3"])
        with pytest.raises(NotFound, match=r"'m' has no version '2'; there are \[1, 3\]"):
            await one.ask("m/2")
        with pytest.raises(NotFound, match="no version 'x'"):
            await one.ask("m/x")
        (tmp_path / "m/config.pbtxt").write_text(
            f"{DYNAMIC} version_policy {{ specific {{ versions: 1 }} }}"
        )
        await one.models.load("m")
        assert await one.says() == (1, 1)


async def test_unloaded_model_answers_what_it_had_and_can_be_loaded_again(root: Path) -> None:
    async with opened(root) as one:
        asked = [asyncio.create_task(one.ask()) for _ in range(20)]
        await asyncio.sleep(0)
        await one.models.unload("m")
        assert len(await asyncio.gather(*asked)) == 20
        with pytest.raises(StageUnavailable, match="'m' is unloaded; load it"):
            await one.ask()
        (spec,) = one.handler.describe([Target(name="m")])
        assert isinstance(from_status(spec.status), Refused)  # a gateway does not wait for it
        await one.models.drain()
        assert one.index() == [("1", "UNAVAILABLE")]
        assert one.reason("1") == "unloaded"
        await one.models.load("m")
        assert await one.says() == (1, 1)
        assert one.health == [("m", True), ("m", False), ("m", True)]


async def test_model_that_is_not_there_is_not_found(root: Path) -> None:
    async with opened(root) as one:
        with pytest.raises(NotFound, match="'none' is not in the repository"):
            await one.models.load("none")
        with pytest.raises(NotFound, match=r"'none' is not known; there are \['m'\]"):
            await one.models.unload("none")


STEPS = """
platform: "ensemble" max_batch_size: 8
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ 4 ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ 4 ] }} ]
ensemble_scheduling {{ step [ {{
  model_name: "m" model_version: {} input_map {{ key: "x" value: "x" }}
  output_map {{ key: "y" value: "y" }}
}} ] }}
"""


async def test_ensemble_takes_the_new_version_of_its_part(root: Path) -> None:
    write_model(root, "e", None, STEPS.format(-1))
    async with opened(root) as one:
        assert await one.says("e") == (1, 1)
        put(root, 2)
        await one.models.load("m")
        assert await one.says("e") == (2, 1)


async def test_ensemble_that_names_a_version_has_that_one(tmp_path: Path) -> None:
    write_model(tmp_path, "m", times(1), ALL)
    put(tmp_path, 2)
    write_model(tmp_path, "e", None, STEPS.format(1))
    async with opened(tmp_path) as one:
        assert await one.says("e") == (1, 1)
        assert await one.says("m") == (2, 2)


async def test_ensemble_that_does_not_fit_its_part_any_more_is_refused_until_it_does(
    root: Path,
) -> None:
    write_model(root, "e", None, STEPS.format(-1))
    async with opened(root) as one:
        put(root, 2, times(2, dims=("n", 5)))
        await one.models.load("m")
        with pytest.raises(Refused, match="ensemble 'e': tensor 'x' is"):
            await one.ask("e")
        put(root, 3)
        await one.models.load("m")
        assert await one.says("e") == (3, 1)
        await one.models.unload("m")
        with pytest.raises(Refused, match="ensemble 'e'"):
            await one.ask("e")


async def test_ensemble_is_loaded_with_its_parts_and_unloaded_with_them(root: Path) -> None:
    write_model(root, "e", None, STEPS.format(-1))
    async with opened(root) as one:
        await one.models.unload("e", parts=True)
        for name in ("e", "m"):
            with pytest.raises(StageUnavailable, match="unloaded"):
                await one.ask(name)
        await one.models.load("m")
        with pytest.raises(StageUnavailable, match="unloaded"):
            await one.ask("e")
        await one.models.unload("m")
        await one.models.load_with_parts("e")
        assert await one.says("e") == (1, 1)


async def test_request_that_runs_is_answered_before_its_version_ends(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(root) as one:
        old = one.models.find("m")
        with old.busy():
            put(root, 2)
            await one.models.load("m")
            await asyncio.sleep(0.05)
            assert one.index() == [("1", "UNLOADING"), ("2", "READY")]
        await one.models.drain()
        assert one.index() == [("1", "UNAVAILABLE"), ("2", "READY")]
        monkeypatch.setattr("infer_svc.models.DRAIN_S", 0.05)
        with one.models.find("m").busy():  # for ever
            put(root, 3)
            await one.models.load("m")
            await one.models.drain()
        assert ("2", "UNAVAILABLE") in one.index()


async def test_no_request_fails_while_versions_are_swapped_and_each_tells_its_own(
    root: Path,
) -> None:
    """As behind a gateway: many at once, through the wire."""
    async with (
        opened(root) as one,
        running_replica(one.handler) as replica,
        running_client(replica) as client,
    ):
        done = asyncio.Event()
        answers: list[tuple[float, str]] = []

        async def ask() -> None:
            while not done.is_set():
                reply = await client.call(Request("m", pack({"x": ROWS})))
                reply.check()
                answers.append((float(unpack(reply.payload)["y"][0, 0]), reply.version))

        asking = [asyncio.create_task(ask()) for _ in range(16)]
        for version in range(2, 22):
            put(root, version)
            shutil.rmtree(root / f"m/{version - 1}")
            await one.models.load("m")
        done.set()
        await asyncio.gather(*asking)
        await one.models.drain()
        assert {version for _, version in answers} >= {"1", "20"}
        assert all(factor == int(version) for factor, version in answers)
        assert one.index() == [("21", "READY")]


async def test_versions_that_came_and_went_leave_nothing(root: Path) -> None:
    async with opened(root) as one:
        threads = threading.active_count()
        version = 1

        async def swap(times_: int) -> None:
            nonlocal version
            for _ in range(times_):
                version += 1
                put(root, version)
                shutil.rmtree(root / f"m/{version - 1}")
                await one.models.load("m")
                await one.says()
            await one.models.drain()

        await swap(3)
        gc.collect()
        objects = len(gc.get_objects())
        await swap(20)
        gc.collect()
        assert len(gc.get_objects()) - objects < 200
        assert threading.active_count() <= threads + 1


async def test_two_loads_of_one_model_at_a_time_load_it_once(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(root) as one:
        put(root, 2)
        caplog.set_level("INFO")
        await asyncio.gather(one.models.load("m"), one.models.load("m"))
        ready = [record for record in caplog.records if record.getMessage() == "model ready"]
        assert len(ready) == 1


async def test_clients_are_told_that_there_is_something_new(root: Path) -> None:
    async with (
        opened(root) as one,
        running_replica(one.handler) as replica,
        running_client(replica) as client,
    ):
        (link,) = client.replicas
        assert link.edition == 0
        replica.stage.announce()
        await eventually(lambda: link.edition == 1)


async def test_number_of_lanes_is_changed_while_it_serves(root: Path) -> None:
    async with opened(root) as one:
        served = one.models.find("m")
        assert served.pool is not None
        for count in (3, 1, 2):
            (root / "m/config.pbtxt").write_text(
                f"{DYNAMIC} instance_group [ {{ count: {count} }} ]"
            )
            asked = [asyncio.create_task(one.ask()) for _ in range(50)]
            await one.models.load("m")
            await asyncio.gather(*asked)
            assert one.models.find("m") is served
            assert served.pool.size == count
            alive = [t.name for t in threading.enumerate() if t.name.startswith("m-")]
            assert len(alive) == count + 1  # and the spare
            assert await one.says() == (1, 1)
        (root / "m/config.pbtxt").write_text("max_batch_size: 4 instance_group [ { count: 2 } ]")
        await one.models.load("m")
        assert one.models.find("m") is not served
