"""A version is loaded with what it needs."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import NoOpTracer
from prometheus_client import CollectorRegistry

from infer_svc.backends.machine import Machine
from infer_svc.batcher import Batcher
from infer_svc.ensemble import Ensemble
from infer_svc.families import InferMetrics
from infer_svc.generation.generator import Generator
from infer_svc.opening import Opener
from infer_svc.repository import Model
from mesh.errors import NotFound, SettingsError
from tests.infer_svc import graphs
from tests.infer_svc.generation.test_generator import write_version
from tests.infer_svc.graphs import write_model
from tests.infer_svc.test_service_preload import ENSEMBLE


async def open_one(folder: Path, version: int, *parts: Model) -> Any:
    async def run(*_: Any) -> Any:
        raise AssertionError

    metrics = InferMetrics(CollectorRegistry())
    opener = Opener(Machine(), NoOpTracer(), metrics, run, pytest.fail)
    found = {part.config.name: part for part in parts}

    def find(name: str) -> Model:
        if name not in found:
            raise NotFound(f"model {name!r} is not in the repository")
        return found[name]

    loop = asyncio.get_running_loop()
    return await asyncio.to_thread(opener.open, folder, version, loop, find, lambda serving: None)


async def test_version_that_is_asked_for_is_opened(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m", graphs.identity(), "", versions=("1", "2"))
    served = await open_one(folder, 1)
    assert isinstance(served.batcher, Batcher)
    assert (served.model.version, served.metrics.version) == (1, 1)
    served.close()


async def test_model_that_generates_has_a_generator(tmp_path: Path) -> None:
    write_version(tmp_path / "m/1", "gpt2", {})
    (tmp_path / "m/config.pbtxt").write_text("model_transaction_policy { decoupled: true }")
    served = await open_one(tmp_path / "m", 1)
    assert isinstance(served.batcher, Generator)
    assert [spec.name for spec in served.model.config.inputs] == ["input_ids", "attention_mask"]
    served.close()


async def test_ensemble_is_compared_with_its_parts(tmp_path: Path) -> None:
    part = await open_one(write_model(tmp_path, "x", graphs.identity(), "max_batch_size: 8"), 1)
    folder = write_model(tmp_path, "e", None, ENSEMBLE)
    served = await open_one(folder, 1, part.model)
    assert isinstance(served.batcher, Ensemble)
    assert served.metrics.name == "e"
    with pytest.raises(SettingsError, match="its model 'x' is not in the repository"):
        await open_one(folder, 1)
    part.close()
