"""Triton's own client against the gateway: pipelines are models."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client.core import UnknownMetricFamily
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from gateway.catalog import PipelineCatalog
from gateway.runner import PipelineRunner
from mesh import __version__
from mesh.errors import EngineError, MeshError, NotFound, Overloaded, Refused
from mesh.item import Reply, Request
from mesh.layers import errors, stack, standard_layers
from mesh.oip.regions import Regions
from mesh.oip.service import NAME, OipService
from mesh.status import to_status
from mesh.tensor import bytes_tensor, pack, unpack
from protos.mesh.v1.stage_pb2 import TargetSpec
from tests.gateway import generating
from tests.gateway.stages import PIPELINE, FakeMesh, repository, running_mesh
from tests.mesh.spans import Spans

PIPELINES = {"digits": PIPELINE, "plain": "model: digits", "misfit": "model: other"}


async def crop(request: Request) -> Reply:
    """Preprocess: four pixels of the number of bytes."""
    size = len(unpack(request.payload)["image"][0])
    return Reply(pack({"pixels": np.full((1, 4), size, np.uint8)}))


async def score(request: Request) -> Reply:
    """Infer: the first two pixels of each row."""
    return Reply(pack({"scores": unpack(request.payload)["pixels"][:, :2].astype(np.float32)}))


async def best(request: Request) -> Reply:
    """Postprocess: the first score as the class."""
    scores = unpack(request.payload)["scores"]
    return Reply(pack({"classes": scores[:, :1].astype(np.int64)}))


@asynccontextmanager
async def serving(
    folder: Path, mesh: FakeMesh, **pipelines: str
) -> AsyncIterator[InferenceServerClient]:
    runner = PipelineRunner(repository(folder, **pipelines), mesh.stages)
    await runner.check()
    tracer = Spans().tracer
    service = OipService(
        PipelineCatalog(runner, runner.refresh),
        stack(runner, [errors]),
        lambda method: standard_layers(tracer, method),
        {},
        Regions(),
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(NAME, service.methods()),)
    )
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with InferenceServerClient(address) as client:
        yield client
    await server.stop(None)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[InferenceServerClient, FakeMesh]]:
    async with running_mesh(prepare=lambda mesh: mesh.infer.tell_all()) as mesh:
        mesh.preprocess.answer, mesh.infer.answer, mesh.postprocess.answer = crop, score, best
        async with serving(tmp_path, mesh, **PIPELINES) as client:
            yield client, mesh


def given(name: str, array: Any, dtype: str) -> InferInput:
    made = InferInput(name, list(array.shape), dtype)
    made.set_data_from_numpy(array)
    return made


def images(*files: bytes) -> InferInput:
    return given("image", bytes_tensor(*files), "BYTES")


async def test_server_tells_what_it_is(served: tuple[InferenceServerClient, FakeMesh]) -> None:
    client, _ = served
    assert await client.is_server_live()
    assert await client.is_server_ready()
    told = await client.get_server_metadata()
    assert (told.name, told.version) == ("trtmesh", __version__)
    assert "classification" in told.extensions


async def test_model_tells_what_it_takes(served: tuple[InferenceServerClient, FakeMesh]) -> None:
    client, _ = served
    assert await client.is_model_ready("digits")
    assert await client.is_model_ready("digits", "3")
    assert not await client.is_model_ready("digits", "4")
    assert not await client.is_model_ready("misfit")
    assert not await client.is_model_ready("nothing")
    told = await client.get_model_metadata("digits")
    assert list(told.versions) == ["3"]
    assert [(t.name, t.datatype, list(t.shape)) for t in told.inputs] == [("image", "BYTES", [-1])]
    assert [(t.name, t.datatype) for t in told.outputs] == [("classes", "INT64")]
    plain = await client.get_model_metadata("plain")
    assert [(t.name, list(t.shape)) for t in plain.inputs] == [("pixels", [-1, 4])]
    config = (await client.get_model_config("digits")).config
    assert (config.name, config.input[0].name) == ("digits", "image")
    assert not config.model_transaction_policy.decoupled


async def test_repository_tells_what_is_served_and_why_not(
    served: tuple[InferenceServerClient, FakeMesh],
) -> None:
    client, mesh = served
    told = oip.RepositoryIndexResponse()
    told.models.add(name="digits", version="3", state="READY")
    told.models.add(name="other", version="1", state="UNAVAILABLE", reason="it is broken")
    mesh.infer.told["RepositoryIndex"] = told.SerializeToString()
    index = (await client.get_model_repository_index()).models
    found = {model.name: (model.state, model.reason) for model in index}
    assert found["digits"] == found["digits.model"] == ("READY", "")
    assert found["other"] == ("UNAVAILABLE", "it is broken")
    assert found["misfit"][0] == "UNAVAILABLE"
    assert "other" in found["misfit"][1]


@pytest.mark.parametrize("name", ["digits", "digits.model"])
async def test_model_of_a_pipeline_is_loaded_and_unloaded_at_infer(
    served: tuple[InferenceServerClient, FakeMesh], name: str
) -> None:
    client, mesh = served
    config = TargetSpec.FromString(mesh.infer.targets["digits"].SerializeToString())
    config.version = "4"
    mesh.infer.targets["digits"] = config
    await client.load_model(name, config="{}")
    ((method, message),) = mesh.infer.control
    assert method == "RepositoryModelLoad"
    request = oip.RepositoryModelLoadRequest.FromString(message)
    assert (request.model_name, request.parameters["config"].string_param) == ("digits", "{}")
    assert (await client.get_model_metadata("digits")).versions == ["4"]  # known at once
    mesh.infer.targets["digits"] = TargetSpec(
        name="digits", status=to_status(Refused("it is unloaded"))
    )
    await client.unload_model(name)
    assert mesh.infer.control[-1][0] == "RepositoryModelUnload"
    assert not await client.is_model_ready("digits")
    mesh.infer.failure = NotFound("no such model")
    with pytest.raises(InferenceServerException, match="no such model") as caught:
        await client.load_model("nothing")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


async def test_config_of_a_model_alone_is_that_of_infer(
    served: tuple[InferenceServerClient, FakeMesh],
) -> None:
    client, mesh = served
    told = oip.ModelConfigResponse()
    told.config.max_batch_size = 7
    mesh.infer.told["ModelConfig"] = told.SerializeToString()
    assert (await client.get_model_config("digits.model")).config.max_batch_size == 7
    ((_, message),) = mesh.infer.control
    request = oip.ModelConfigRequest.FromString(message)
    assert (request.name, request.version) == ("digits", "3")


async def test_versions_are_asked_for_and_told(
    served: tuple[InferenceServerClient, FakeMesh],
) -> None:
    client, mesh = served
    both = TargetSpec.FromString(mesh.infer.targets["digits"].SerializeToString())
    both.versions.extend(["2", "3"])
    mesh.infer.targets["digits"] = both

    async def tell(request: Request) -> Reply:
        reply = await score(request)
        reply.version = request.target.partition("/")[2] or "3"
        return reply

    mesh.infer.answer = tell
    await client.load_model("digits")
    result = await client.infer("digits", [images(b"x")], model_version="2")
    assert result.get_response().model_version == "2"
    assert mesh.infer.requests[-1].target == "digits/2"
    result = await client.infer("digits", [images(b"x")])
    assert result.get_response().model_version == "3"
    assert mesh.infer.requests[-1].target == "digits"


async def test_files_of_a_request_are_one_batch(
    served: tuple[InferenceServerClient, FakeMesh],
) -> None:
    client, _ = served
    result = await client.infer("digits", [images(b"123", b"1", b"12345")], request_id="r7")
    assert result.as_numpy("classes").tolist() == [[3], [1], [5]]
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("r7", "digits", "3")


async def test_tensors_pass_as_they_are(served: tuple[InferenceServerClient, FakeMesh]) -> None:
    client, mesh = served
    pixels = given("pixels", np.arange(8, dtype=np.uint8).reshape(2, 4), "UINT8")
    outputs = [InferRequestedOutput("scores", class_count=1)]
    result = await client.infer("plain", [pixels], priority=2, timeout=5000, outputs=outputs)
    assert result.as_numpy("scores").tolist() == [[b"1.000000:1"], [b"5.000000:1"]]
    assert mesh.infer.requests[-1].parameters == b'{"priority":2,"timeout":5000}'


async def test_model_is_reached_without_its_pipeline(
    served: tuple[InferenceServerClient, FakeMesh],
) -> None:
    client, _ = served
    pixels = given("pixels", np.full((1, 4), 7, np.uint8), "UINT8")
    result = await client.infer("digits.model", [pixels])
    assert result.as_numpy("scores").tolist() == [[7, 7]]
    told = await client.get_model_metadata("digits.model")
    assert [t.name for t in told.inputs] == ["pixels"]


async def test_statistics_are_those_of_the_models(
    served: tuple[InferenceServerClient, FakeMesh],
) -> None:
    client, mesh = served
    labels = {"model": "digits", "version": "3"}
    for name, value in (
        ("nv_inference_count", 7), ("nv_inference_exec_count", 3),
        ("nv_inference_request_success", 5), ("nv_inference_request_duration_us", 1500),
        ("nv_inference_queue_duration_us", 200),
    ):  # fmt: skip
        family = UnknownMetricFamily(name, "", labels=list(labels))
        family.add_metric(list(labels.values()), value)
        mesh.infer.families.append(family)
    failures = UnknownMetricFamily("nv_inference_request_failure", "", labels=[*labels, "reason"])
    for reason, count in (("REJECTED", 2), ("BACKEND", 1)):
        failures.add_metric([*labels.values(), reason], count)
    mesh.infer.families.append(failures)
    (one,) = (await client.get_inference_statistics("digits")).model_stats
    assert (one.name, one.version, one.inference_count, one.execution_count) == (
        "digits",
        "3",
        7,
        3,
    )
    stats = one.inference_stats
    assert (stats.success.count, stats.success.ns, stats.queue.ns) == (5, 1_500_000, 200_000)
    assert stats.fail.count == 3
    everything = await client.get_inference_statistics()
    assert {one.name for one in everything.model_stats} == {"digits", "plain", "digits.model"}


async def test_typed_contents_are_taken_too(
    served: tuple[InferenceServerClient, FakeMesh],
) -> None:
    client, _ = served
    request = oip.ModelInferRequest(model_name="plain")
    one = request.inputs.add(name="pixels", datatype="UINT8", shape=[1, 4])
    one.contents.uint_contents.extend([7, 8, 9, 10])
    response = await client._client_stub.ModelInfer(request)
    assert np.frombuffer(response.raw_output_contents[0], np.float32).tolist() == [7, 8]


@pytest.mark.parametrize(
    ("model", "inputs", "options", "code", "part"),
    [
        ("nothing", [images(b"x")], {}, "NOT_FOUND", "'nothing' is not known"),
        ("digits", [images(b"x")], {"model_version": "9"}, "NOT_FOUND", "version '9'"),
        ("misfit", [images(b"x")], {}, "FAILED_PRECONDITION", "other"),
        ("digits", [given("x", bytes_tensor(b"x"), "BYTES")], {}, "INVALID_ARGUMENT", "image"),
        ("digits", [images()], {}, "INVALID_ARGUMENT", "at least one"),
        (
            "digits", [images(b"x")], {"outputs": [InferRequestedOutput("none")]},
            "INVALID_ARGUMENT", "['classes']",
        ),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
async def test_bad_request_has_its_status_and_the_next_one_is_answered(
    served: tuple[InferenceServerClient, FakeMesh],
    model: str,
    inputs: list[InferInput],
    options: dict[str, Any],
    code: str,
    part: str,
) -> None:
    client, _ = served
    with pytest.raises(InferenceServerException) as caught:
        await client.infer(model, inputs, **options)
    assert caught.value.status() == f"StatusCode.{code}"
    assert part in caught.value.message()
    assert (await client.infer("digits", [images(b"ab")])).as_numpy("classes").tolist() == [[2]]


@pytest.mark.parametrize(
    ("error", "code"), [(Overloaded("full"), "UNAVAILABLE"), (EngineError("broke"), "INTERNAL")]
)
async def test_failure_of_a_stage_has_tritons_status(
    served: tuple[InferenceServerClient, FakeMesh], error: MeshError, code: str
) -> None:
    async def fail(_: Request) -> Reply:
        raise error

    client, mesh = served
    mesh.infer.answer = fail
    with pytest.raises(InferenceServerException) as caught:
        await client.infer("digits", [images(b"x")])
    assert caught.value.status() == f"StatusCode.{code}"


async def test_stream_answers_in_order_and_failures_in_their_place(
    served: tuple[InferenceServerClient, FakeMesh],
) -> None:
    client, _ = served

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(1, 40):
            model = "nothing" if number == 20 else "digits"
            yield {
                "model_name": model, "inputs": [images(b"x" * number)], "request_id": str(number),
            }  # fmt: skip

    found = []
    async for result, error in client.stream_infer(requests()):
        found.append("failed" if error else result.as_numpy("classes").tolist()[0][0])
    assert found == [*range(1, 20), "failed", *range(21, 40)]


async def test_text_streams_bit_by_bit_and_its_end_is_told(tmp_path: Path) -> None:
    async with (
        generating.generating_mesh() as mesh,
        serving(tmp_path, mesh, speller=generating.PIPELINE) as client,
    ):

        async def requests() -> AsyncIterator[dict[str, Any]]:
            text = given("text", bytes_tensor(b"Hello!"), "BYTES")
            yield {
                "model_name": "speller", "inputs": [text], "parameters": {"max_tokens": 9},
                "enable_empty_final_response": True,
            }  # fmt: skip

        pieces, finals = [], []
        async for result, error in client.stream_infer(requests()):
            assert error is None
            pieces.append(result.as_numpy("text").tolist()[0])
            finals.append(result.get_response().parameters["triton_final_response"].bool_param)
        assert b"".join(pieces[:-1]) == b"Hello!"
        assert pieces[-1] == b""
        assert finals == [False] * (len(finals) - 1) + [True]
        assert b'"max_tokens":9' in mesh.infer.requests[0].parameters
        config = (await client.get_model_config("speller")).config
        assert config.model_transaction_policy.decoupled
        text = given("text", bytes_tensor(b"abc"), "BYTES")
        whole = await client.infer("speller", [text])
        assert whole.as_numpy("finish_reason").tolist() == [b"length"]
        assert whole.as_numpy("text").tolist() == [b"abc"]


async def test_stream_of_a_text_takes_one_and_what_it_is_asked_to_tell(tmp_path: Path) -> None:
    async with (
        generating.generating_mesh() as mesh,
        serving(tmp_path, mesh, speller=generating.PIPELINE) as client,
    ):
        one: dict[str, Any] = {
            "model_name": "speller",
            "inputs": [given("text", bytes_tensor(b"abc"), "BYTES")],
        }
        requests = [
            one | {"inputs": [given("text", bytes_tensor(b"a", b"b"), "BYTES")]},
            one | {"outputs": [InferRequestedOutput("none")]},
            one | {"outputs": [InferRequestedOutput("finish_reason")]},
            one | {"priority": 3, "timeout": 10**6},
        ]

        async def sent() -> AsyncIterator[dict[str, Any]]:
            for request in requests:
                yield request

        told = [(result, error) async for result, error in client.stream_infer(sent())]
        assert "2 texts came, wanted one" in str(told[0][1])
        assert "['none'] are asked for" in str(told[1][1])
        found = [output.name for output in told[2][0].get_response().outputs]
        assert found == ["finish_reason"]
        assert b"".join(result.as_numpy("text")[0] for result, _ in told[3:]) == b"abc"


async def test_who_leaves_a_stream_leaves_nothing_under_way(
    served: tuple[InferenceServerClient, FakeMesh],
) -> None:
    client, mesh = served
    under_way = 0

    async def hang(_: Request) -> Reply:
        nonlocal under_way
        under_way += 1
        try:
            await asyncio.Event().wait()
        finally:
            under_way -= 1
        return Reply()

    mesh.infer.answer = hang

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for _ in range(5):
            yield {"model_name": "digits", "inputs": [images(b"x")]}
        await asyncio.Event().wait()

    stream = client.stream_infer(requests())
    reading = asyncio.create_task(anext(aiter(stream)))
    while under_way < 5:
        await asyncio.sleep(0.01)
    stream.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    for _ in range(500):
        if not under_way:
            break
        await asyncio.sleep(0.01)
    assert under_way == 0
    assert mesh.leased() == (0, 0)
