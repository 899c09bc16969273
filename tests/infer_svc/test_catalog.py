"""Triton's client against infer itself."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.trace import NoOpTracer
from prometheus_client import CollectorRegistry
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from infer_svc.agent import Agent, Mode
from infer_svc.backends.machine import Machine
from infer_svc.catalog import ModelCatalog
from infer_svc.families import InferMetrics
from infer_svc.service import InferHandler
from mesh.arena import Lender
from mesh.oip.regions import Regions
from mesh.oip.service import NAME, oip_methods
from mesh.oip.settings import Settings, SettingsOwner
from tests.infer_svc import graphs
from tests.infer_svc.graphs import write_model
from tests.infer_svc.test_models import ALL, DYNAMIC, STEPS, put, times


@asynccontextmanager
async def listening(
    root: Path, mode: Mode = "explicit", regions: Regions | None = None
) -> AsyncIterator[str]:
    """Serve a repository, and yield the address; with regions, clients may name memory."""
    metrics = InferMetrics(CollectorRegistry())
    handler = InferHandler(root, Machine(), NoOpTracer(), Lender(0), metrics)
    agent = Agent(handler.models, root, mode)
    await handler.load()
    server = grpc.aio.server()
    catalog = ModelCatalog(handler.models, agent, metrics)
    known = regions or Regions()

    async def changed(settings: Settings) -> None:
        known.take(settings.regions, settings.cuda)

    allowed = regions is not None
    owner = SettingsOwner(Settings(), changed, system_memory=allowed, cuda_memory=allowed)
    methods = oip_methods(catalog, handler, NoOpTracer(), owner.handlers(), known)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, methods),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield address
    await server.stop(None)
    await handler.stop_loading()
    handler.close()
    agent.close()
    known.close()


@asynccontextmanager
async def serving(root: Path, mode: Mode = "explicit") -> AsyncIterator[InferenceServerClient]:
    async with listening(root, mode) as address, InferenceServerClient(address) as client:
        yield client


def rows() -> list[InferInput]:
    made = InferInput("x", [2, 4], "FP32")
    made.set_data_from_numpy(np.ones((2, 4), np.float32))
    return [made]


async def says(client: InferenceServerClient, model: str = "m", version: str = "") -> list[float]:
    """Return by how much a model multiplies, and its version."""
    result = await client.infer(model, rows(), model_version=version)
    return [float(result.as_numpy("y")[0, 0]), float(result.get_response().model_version)]


async def test_versions_are_asked_for_by_number_and_told(tmp_path: Path) -> None:
    write_model(tmp_path, "m", times(1), ALL)
    put(tmp_path, 2)
    async with serving(tmp_path) as client:
        assert await says(client) == [2, 2]
        assert await says(client, version="1") == [1, 1]
        told = await client.get_model_metadata("m")
        assert (list(told.versions), told.platform) == (["1", "2"], "onnxruntime_onnx")
        config = (await client.get_model_config("m", "1")).config
        assert config.version_policy.HasField("all")
        counted = (await client.get_inference_statistics("m")).model_stats
        assert [(one.version, one.inference_count) for one in counted] == [("1", 2), ("2", 2)]
        with pytest.raises(InferenceServerException, match="has no version '9'") as caught:
            await says(client, version="9")
        assert caught.value.status() == "StatusCode.NOT_FOUND"


async def test_model_is_loaded_and_unloaded_while_others_serve(tmp_path: Path) -> None:
    write_model(tmp_path, "m", times(1), DYNAMIC)
    write_model(tmp_path, "e", None, STEPS.format(-1))
    async with serving(tmp_path) as client:
        assert await client.is_server_ready()
        assert await client.is_model_ready("e")
        assert await says(client, "e") == [1, 1]
        put(tmp_path, 2)
        await client.load_model("m")
        assert await says(client) == [2, 2]
        await client.unload_model("e", unload_dependents=True)
        assert not await client.is_model_ready("m")
        assert not await client.is_server_ready()
        with pytest.raises(InferenceServerException, match="unloaded") as caught:
            await says(client)
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        await client.load_model("e")
        assert await says(client, "e") == [2, 1]
        index = (await client.get_model_repository_index()).models
        assert ("m", "2", "READY") in {(one.name, one.version, one.state) for one in index}


async def test_model_may_come_with_the_request(tmp_path: Path) -> None:
    write_model(tmp_path, "m", times(1), DYNAMIC)
    async with serving(tmp_path) as client:
        config = json.dumps({"max_batch_size": 2, "backend": "onnxruntime"})
        await client.load_model("m", config=config)
        assert (await client.get_model_config("m")).config.max_batch_size == 2
        assert await says(client) == [1, 1]
        await client.load_model("m", config=config, files={"file:7/model.onnx": times(7)})
        assert await says(client) == [7, 7]
        await client.load_model("m")
        assert await says(client) == [1, 1]
        assert (await client.get_model_config("m")).config.max_batch_size == 8


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"files": {"file:1/model.onnx": b""}, "config": "no JSON"}, "no ModelConfig"),
        ({"files": {"file:../../x": b"x"}, "config": "{}"}, "wanted bytes for a path"),
        ({"config": '{"max_batch_size": -1}'}, "max_batch_size -1 came"),
        ({"files": {"file:1/model.onnx": b"x"}, "config": "{}"}, "cannot load"),
        ({"name": "../x", "files": {"file:1/x": b"x"}, "config": "{}"}, "the name of its folder"),
        ({"name": "", "config": "{}"}, "the name of its folder"),
        ({"name": ".hidden"}, "the name of its folder"),
        ({"name": "/tmp", "config": "{}"}, "the name of its folder"),
    ],
)
async def test_load_that_cannot_be_leaves_what_is_served(
    tmp_path: Path, options: dict[str, Any], match: str
) -> None:
    write_model(tmp_path, "m", times(1), DYNAMIC)
    async with serving(tmp_path) as client:
        with pytest.raises(InferenceServerException, match=match):
            await client.load_model(options.pop("name", "m"), **options)
        assert await says(client) == [1, 1]
        assert len((await client.get_model_repository_index()).models) == 1 or options
    assert not (tmp_path.parent / "x").exists()


async def test_mode_none_loads_and_unloads_nothing(tmp_path: Path) -> None:
    write_model(tmp_path, "m", times(1), DYNAMIC)
    async with serving(tmp_path, "none") as client:
        for ask in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="set INFER_MODEL_CONTROL"):
                await ask("m")
        assert await says(client) == [1, 1]


async def test_classes_have_the_labels_of_their_file(tmp_path: Path) -> None:
    text = f"""{DYNAMIC} output [ {{
        name: "y" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "labels.txt"
    }} ]"""
    folder = write_model(tmp_path, "m", times(1), text)
    (folder / "labels.txt").write_text("zero\none\ntwo\n")
    async with serving(tmp_path) as client:
        given = InferInput("x", [1, 4], "FP32")
        given.set_data_from_numpy(np.array([[0.5, 3, 1, 2]], np.float32))
        outputs = [InferRequestedOutput("y", class_count=3)]
        result = await client.infer("m", [given], outputs=outputs)
        assert result.as_numpy("y").tolist() == [
            [b"3.000000:1:one", b"2.000000:3", b"1.000000:2:two"]
        ]


async def test_text_that_is_none_fails_alone(tmp_path: Path) -> None:
    write_model(tmp_path, "kinds", graphs.identity("BYTES", ("n", 1)), "max_batch_size: 8")
    async with serving(tmp_path) as client:
        good, bad = (InferInput("x", [1, 1], "BYTES") for _ in range(2))
        good.set_data_from_numpy(np.array([[b"caf\xc3\xa9"]], object))
        bad.set_data_from_numpy(np.array([[b"\xff"]], object))
        with pytest.raises(InferenceServerException, match="no UTF-8") as caught:
            await client.infer("kinds", [bad])
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert (await client.infer("kinds", [good])).as_numpy("y")[0, 0] == b"caf\xc3\xa9"


async def test_ensemble_is_counted_too_and_the_last_answer_is_told(tmp_path: Path) -> None:
    write_model(tmp_path, "m", times(1), DYNAMIC)
    write_model(tmp_path, "e", None, STEPS.format(-1))
    async with serving(tmp_path) as client:
        before = time.time()
        await says(client, "e")
        for name in ("e", "m"):
            (one,) = (await client.get_inference_statistics(name)).model_stats
            assert (one.inference_count, one.inference_stats.success.count) == (2, 1)
            assert before - 1 < one.last_inference / 1e3 < time.time() + 1
