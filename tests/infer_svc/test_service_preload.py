"""Models that are loaded in the background, once the others serve."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from opentelemetry.trace import NoOpTracer
from prometheus_client import CollectorRegistry

from infer_svc.backends import BACKENDS, Engine
from infer_svc.backends.machine import Machine
from infer_svc.backends.onnxruntime import load_onnxruntime
from infer_svc.build.builds import Builds
from infer_svc.config import ModelConfig, read_config
from infer_svc.families import InferMetrics
from infer_svc.service import InferHandler
from mesh.arena import Lender
from mesh.errors import Refused, SettingsError, StageUnavailable
from mesh.item import Request
from mesh.status import from_status
from mesh.tensor import Tensors, pack, unpack
from tests.conftest import eventually
from tests.infer_svc import graphs
from tests.infer_svc.graphs import write_model

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
PATIENCE_S = 20.0


class Gate:
    """A backend whose models are loaded one by one, when the test says so."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.let = threading.Semaphore(0)

    def __call__(
        self, path: Path, config: ModelConfig, gpu: int | None, machine: Machine
    ) -> Engine:
        self.asked.append(config.name)
        if not self.let.acquire(timeout=PATIENCE_S):
            raise TimeoutError("the test did not let the model be loaded")
        return load_onnxruntime(path, 1)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    made = Gate()
    monkeypatch.setitem(BACKENDS, "slow", made)
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two models that are loaded at once and three slow ones, one of them broken."""
    for name in ("a", "b"):
        write_model(tmp_path, name, graphs.identity(), "max_batch_size: 8")
    slow = 'max_batch_size: 8 backend: "slow"'
    for name in ("x", "z"):
        write_model(tmp_path, name, graphs.identity(), slow)
    write_model(tmp_path, "y", b"garbage", slow)
    return tmp_path


@asynccontextmanager
async def serving(
    root: Path, preload: Sequence[str], machine: Machine = Machine()
) -> AsyncIterator[InferHandler]:
    handler = InferHandler(
        root, machine, NoOpTracer(), Lender(0), InferMetrics(CollectorRegistry()), preload
    )
    await handler.load()
    try:
        yield handler
    finally:
        await handler.stop_loading()
        handler.close()


async def infer(handler: InferHandler, model: str) -> Tensors:
    return unpack((await handler(Request(model, pack({"x": ROWS})))).payload)


def states(handler: InferHandler) -> dict[str, str]:
    """Return what each model is described as."""
    return {
        spec.name: type(from_status(spec.status)).__name__ if spec.HasField("status") else "ready"
        for spec in handler.describe([])
    }


async def test_readiness_does_not_wait_for_models_that_are_preloaded(
    root: Path, gate: Gate
) -> None:
    async with serving(root, ("x", "y", "z")) as handler:
        np.testing.assert_array_equal((await infer(handler, "a"))["y"], ROWS)
        await eventually(lambda: gate.asked == ["x"])
        with pytest.raises(StageUnavailable, match="model 'x' is being loaded; try again"):
            await infer(handler, "x")
        waiting = dict.fromkeys("xyz", "StageUnavailable")
        assert states(handler) == {"a": "ready", "b": "ready"} | waiting
        gate.let.release(3)
        await eventually(lambda: states(handler)["z"] == "ready")
        np.testing.assert_array_equal((await infer(handler, "z"))["y"], ROWS)


async def test_models_are_preloaded_one_after_the_other_in_the_order_of_the_list(
    root: Path, gate: Gate
) -> None:
    async with serving(root, ("z", "x", "y")) as handler:
        await eventually(lambda: gate.asked == ["z"])
        gate.let.release()
        await eventually(lambda: gate.asked == ["z", "x"])
        assert (states(handler)["z"], states(handler)["x"]) == ("ready", "StageUnavailable")
        gate.let.release(2)
        await eventually(lambda: gate.asked == ["z", "x", "y"])


async def test_preloaded_model_that_cannot_be_loaded_is_refused_and_the_next_is_loaded(
    root: Path, gate: Gate
) -> None:
    gate.let.release(3)
    async with serving(root, ("y", "x", "z")) as handler:
        await eventually(lambda: states(handler)["z"] == "ready")
        with pytest.raises(Refused, match="ONNX Runtime cannot load"):
            await infer(handler, "y")


async def test_error_that_nobody_expected_leaves_the_next_model_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Engine:
        raise RuntimeError("a bug")

    monkeypatch.setitem(BACKENDS, "slow", broken)
    async with serving(root, ("x", "y", "z", "b")) as handler:
        await eventually(lambda: states(handler)["b"] == "ready")
        with pytest.raises(Refused, match="see the log"):
            await infer(handler, "x")


ENSEMBLE = """
platform: "ensemble" max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
ensemble_scheduling { step [ {
  model_name: "x" input_map { key: "x" value: "x" } output_map { key: "y" value: "y" }
} ] }
"""


async def test_ensemble_of_a_preloaded_model_comes_after_it(root: Path, gate: Gate) -> None:
    write_model(root, "e", None, ENSEMBLE)
    gate.let.release(3)
    async with serving(root, ("y", "x", "z")) as handler:
        assert states(handler)["e"] == "StageUnavailable"
        await eventually(lambda: states(handler)["e"] == "ready")
        np.testing.assert_array_equal((await infer(handler, "e"))["y"], ROWS)


async def test_star_stands_for_all_models(root: Path, gate: Gate) -> None:
    gate.let.release(3)
    async with serving(root, ("*",)) as handler:
        assert set(states(handler).values()) == {"StageUnavailable"}
        await eventually(lambda: states(handler)["z"] == "ready")
        assert states(handler)["a"] == "ready"


async def test_name_that_is_not_in_the_repository_stops_the_start(root: Path) -> None:
    with pytest.raises(SettingsError, match=r"INFER_PRELOAD names \['no'\], the repository has"):
        async with serving(root, ("a", "no")):
            pass


async def test_stopping_waits_for_the_model_that_is_being_loaded_and_begins_no_other(
    root: Path, gate: Gate
) -> None:
    async with serving(root, ("x", "y", "z")) as handler:
        await eventually(lambda: gate.asked == ["x"])
        stopping = asyncio.create_task(handler.stop_loading())
        await asyncio.sleep(0)
        assert not stopping.done()
        gate.let.release(3)
        await asyncio.wait_for(stopping, PATIENCE_S)
        assert gate.asked == ["x"]
        assert states(handler)["x"] == "ready"
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("x-")]


async def test_slots_are_large_enough_for_what_a_preloaded_model_declares(
    tmp_path: Path, gate: Gate
) -> None:
    opened: list[int] = []

    class Noting(Lender):
        def open(self, slot_bytes: int) -> None:
            opened.append(slot_bytes)

    write_model(tmp_path, "a", graphs.identity(), "max_batch_size: 8")
    declared = 'input [ { name: "x" data_type: TYPE_FP32 dims: [ 1000 ] } ]'
    content = graphs.identity(dims=("n", 1000))
    write_model(tmp_path, "x", content, f'max_batch_size: 8 backend: "slow" {declared}')
    gate.let.release()
    metrics = InferMetrics(CollectorRegistry())
    handler = InferHandler(tmp_path, Machine(), NoOpTracer(), Noting(0), metrics, ("x",))
    await handler.load()
    assert opened[0] >= 4000
    await handler.stop_loading()
    handler.close()


async def test_builds_end_with_the_process_and_know_that_it_serves(tmp_path: Path) -> None:
    class Noting(Builds):
        told: int = 0

        def serves(self, gpus: object) -> None:
            self.told += 1

    builds = Noting(tmp_path / "engines")
    for name in ("a", "b"):
        write_model(tmp_path / "models", name, graphs.identity(), "max_batch_size: 8")
    async with serving(tmp_path / "models", ("b",), Machine(builds=builds)) as handler:
        await eventually(lambda: states(handler)["b"] == "ready")
    assert builds.told == 2
    assert builds.closed


async def test_build_is_counted_for_its_model(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    write_model(tmp_path / "models", "a", graphs.identity(), "max_batch_size: 8")
    builds = Builds(tmp_path / "engines")
    machine = Machine(builds=builds)
    InferHandler(tmp_path / "models", machine, NoOpTracer(), Lender(0), InferMetrics(registry))
    builds.on_built(read_config(tmp_path / "models/a"), 1, "ok", 2.0)
    labels = {"model": "a", "version": "1", "result": "ok"}
    assert registry.get_sample_value("mesh_infer_engine_builds_total", labels) == 1
