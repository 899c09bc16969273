"""Triton's HTTP client, and plain HTTP, against the gateway."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.http import InferInput, InferRequestedOutput
from tritonclient.http.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from mesh.errors import EngineError, MeshError, Overloaded, StageUnavailable
from mesh.item import Reply, Request
from mesh.tensor import bytes_tensor
from tests.gateway.rest.serving import Http, serving
from tests.mesh.spans import TRACE_ID


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[Http]:
    async with serving(tmp_path) as one:
        yield one


@pytest.fixture
async def client(http: Http) -> AsyncIterator[InferenceServerClient]:
    async with InferenceServerClient(http.url.removeprefix("http://")) as one:
        yield one


def given(name: str, array: Any, dtype: str, *, binary: bool = True) -> InferInput:
    made = InferInput(name, list(array.shape), dtype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def kinds(*, binary: bool) -> dict[str, tuple[InferInput, Any]]:
    arrays = {
        "FP32": np.array([[1, 0.5]], np.float32), "INT64": np.array([[7, -(2**62)]], np.int64),
        "BOOL": np.array([[True, False]]), "BYTES": bytes_tensor(b"a", b"").reshape(1, 2),
        "FP16": np.array([[1, -0.5]], np.float16),
    }  # fmt: skip
    return {
        name: (given(name, array, name, binary=binary or name == "FP16"), array)
        for name, array in arrays.items()
    }


async def test_server_and_models_tell_of_themselves(client: InferenceServerClient) -> None:
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert (await client.get_server_metadata())["name"] == "trtmesh"
    assert await client.is_model_ready("digits")
    assert not await client.is_model_ready("digits", "9")
    assert not await client.is_model_ready("none")
    told = await client.get_model_metadata("digits", "3")
    assert told["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert (await client.get_model_config("digits"))["input"][0]["data_type"] == "TYPE_STRING"
    stats = await client.get_inference_statistics("digits")
    assert stats["model_stats"][0]["inference_stats"]["success"] == {"count": 0, "ns": 0}
    told = await client.get_inference_statistics()
    assert {one["name"] for one in told["model_stats"]} >= {"digits", "digits.model", "plain"}


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
async def test_tensors_of_every_kind_come_back(
    client: InferenceServerClient, binary_in: bool, binary_out: bool
) -> None:
    both = kinds(binary=binary_in)
    outputs = [
        InferRequestedOutput(name, binary_data=binary_out or name == "FP16") for name in both
    ]
    result = await client.infer("kinds", [one for one, _ in both.values()], outputs=outputs)
    for name, (_, array) in both.items():
        found = result.as_numpy(name)
        assert found.dtype == array.dtype
        # As JSON, bytes are text for Triton's client.
        text = name == "BYTES" and not binary_out
        assert found.tolist() == ([["a", ""]] if text else array.tolist())
    assert result.get_response()["model_version"] == "1"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_bodies_may_be_packed(client: InferenceServerClient, algorithm: str) -> None:
    both = kinds(binary=True)
    result = await client.infer(
        "kinds", [one for one, _ in both.values()], request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )  # fmt: skip
    assert result.as_numpy("INT64").tolist() == both["INT64"][1].tolist()


async def test_files_are_one_batch_with_all_that_a_request_may_say(
    client: InferenceServerClient, http: Http
) -> None:
    files = given("image", bytes_tensor(b"123", b"1"), "BYTES")
    outputs = [InferRequestedOutput("classes")]
    result = await client.infer(
        "digits", [files], outputs=outputs, request_id="r7", priority=2, timeout=5000,
        parameters={"mine": 1},
    )  # fmt: skip
    assert result.as_numpy("classes").tolist() == [[3], [1]]
    assert result.get_response()["id"] == "r7"
    assert http.mesh.infer.requests[-1].parameters == b'{"priority":2,"timeout":5000}'
    best = [InferRequestedOutput("scores", class_count=1)]
    pixels = given("pixels", np.arange(4, dtype=np.uint8)[None], "UINT8")
    result = await client.infer("plain", [pixels], outputs=best)
    assert result.as_numpy("scores").tolist() == [[b"1.000000:1"]]


async def test_curl_may_send_json_or_only_a_file(http: Http) -> None:
    text = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["abcd"]}
    status, answer = await http.post("/v2/models/digits/infer", {"inputs": [text]})
    assert status == 200
    assert answer == {
        "model_name": "digits", "model_version": "3",
        "outputs": [{"name": "classes", "datatype": "INT64", "shape": [1, 1], "data": [4]}],
    }  # fmt: skip
    head = {"Inference-Header-Content-Length": "0"}
    async with http.session.post(
        f"{http.url}/v2/models/digits/versions/3/infer", data=b"file!", headers=head
    ) as response:
        body = await response.read()
        size = int(response.headers["Inference-Header-Content-Length"])
    told = json.loads(body[:size])["outputs"][0]
    assert told["parameters"] == {"binary_data_size": 8}
    assert np.frombuffer(body[size:], np.int64).tolist() == [5]
    status, answer = await http.post("/v2/models/kinds/infer", b"x", headers=head)
    assert status == 400
    assert "'kinds' has 5" in answer["error"]


@pytest.mark.parametrize(
    ("path", "body", "status", "part"),
    [
        ("/v2/models/none/infer", {"inputs": []}, 404, "'none' is not known"),
        ("/v2/models/digits/versions/9/infer", {"inputs": []}, 404, "version '9'"),
        ("/v2/models/digits/infer", {"inputs": []}, 400, "wanted image"),
        ("/v2/models/digits/infer", b"{", 400, "no inference"),
        ("/v2/models/digits/infer", b"", 400, "no inference"),
        ("/v2/nothing", {}, 404, "there is no POST /v2/nothing"),
        ("/v2/health/live", {}, 405, "there is no POST"),
        ("/v2/repository/index", {"ready": 7}, 400, "ready"),
        ("/v2/repository/models/digits/load", {"parameters": {"file:1/x": "§"}}, 400, "base64"),
        ("/v2/repository/models/digits/load", {"more": 1}, 400, "more"),
    ],
)
async def test_bad_request_has_its_status_and_the_next_one_is_answered(
    http: Http, path: str, body: Any, status: int, part: str
) -> None:
    found, answer = await http.post(path, body)
    assert (found, part in answer["error"]) == (status, True)
    assert (await http.get("/v2/health/live"))[0] == 200


async def test_health_is_json_as_the_client_of_kserve_reads_it(http: Http) -> None:
    assert await http.get("/v2/health/live") == (200, {"live": True})
    assert await http.get("/v2/health/ready") == (200, {"ready": True})
    ready = {"name": "digits", "ready": True}
    assert await http.get("/v2/models/digits/ready") == (200, ready)


@pytest.mark.parametrize(
    ("error", "status"),
    [(Overloaded("full"), 503), (StageUnavailable("away"), 503), (EngineError("broke"), 500)],
)
async def test_failure_of_a_stage_has_its_status(
    http: Http, client: InferenceServerClient, error: MeshError, status: int
) -> None:
    async def fail(_: Request) -> Reply:
        raise error

    http.mesh.infer.answer = fail
    with pytest.raises(InferenceServerException) as caught:
        await client.infer("digits", [given("image", bytes_tensor(b"x"), "BYTES")])
    assert caught.value.status() == str(status)


async def test_repository_is_controlled(http: Http, client: InferenceServerClient) -> None:
    index = await client.get_model_repository_index()
    assert {one["name"] for one in index} >= {"digits", "plain", "kinds"}
    await client.load_model("digits", config="{}", files={"file:1/model.onnx": b"\x00\xff"})
    await client.unload_model("digits", unload_dependents=True)
    methods = [name for name, _ in http.mesh.infer.control]
    assert methods[-2:] == ["RepositoryModelLoad", "RepositoryModelUnload"]
    assert b"\x00\xff" in http.mesh.infer.control[-2][1]


async def test_request_is_part_of_its_callers_trace(http: Http) -> None:
    text = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["abcd"]}
    traceparent = f"00-{TRACE_ID.hex()}-{bytes(range(1, 9)).hex()}-01"
    await http.post(
        "/v2/models/digits/infer", {"inputs": [text]}, headers={"traceparent": traceparent}
    )
    span = http.spans.one("inference.GRPCInferenceService/ModelInfer")
    assert span.context.trace_id == int(TRACE_ID.hex(), 16)
