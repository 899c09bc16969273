"""Settings and shared memory over HTTP."""

import base64
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh.oip.regions import FOLDER
from tests.gateway.rest.serving import Http, serving


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[Http]:
    async with serving(tmp_path) as one:
        yield one


@pytest.fixture
def key() -> Iterator[str]:
    path = FOLDER / f"test-{secrets.token_hex(8)}"
    path.write_bytes(np.array([1, 2, 3, 4, 0, 0, 0, 0], np.float32).tobytes())
    yield path.name
    path.unlink()


async def test_log_and_trace_settings(http: Http) -> None:
    assert (await http.post("/v2/logging", {"log_verbose_level": 1}))[1]["log_verbose_level"] == 1
    assert (await http.get("/v2/logging"))[1]["log_info"] is True
    _, told = await http.post("/v2/trace/setting", {"trace_rate": "7", "trace_level": ["OFF"]})
    assert (told["trace_rate"], told["trace_level"]) == ("7", ["OFF"])
    _, told = await http.post("/v2/trace/setting", {"trace_rate": None})
    assert told["trace_rate"] == "100"
    assert (await http.get("/v2/models/digits/trace/setting"))[0] == 200
    for path, body in (
        ("/v2/logging", {"log_info": [1]}), ("/v2/logging", b"{"), ("/v2/logging", b"[]"),
        ("/v2/logging", {"log_verbose_level": -1}), ("/v2/trace/setting", {"trace_rate": "x"}),
    ):  # fmt: skip
        status, answer = await http.post(path, body)
        assert (status, "error" in answer) == (400, True)


async def test_tensors_may_be_in_shared_memory(http: Http, key: str) -> None:
    body: dict[str, Any] = {"key": f"/{key}", "byte_size": 32}
    assert (await http.post("/v2/systemsharedmemory/region/r/register", body))[0] == 200
    _, told = await http.get("/v2/systemsharedmemory/status")
    assert told == [{"name": "r", "key": f"/{key}", "offset": 0, "byte_size": 32}]
    place = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    request = {
        "inputs": [
            {"name": "FP32", "datatype": "FP32", "shape": [1, 2], "parameters": place},
            {"name": "FP16", "datatype": "FP16", "shape": [1, 2],
             "parameters": {**place, "shared_memory_byte_size": 4}},
            {"name": "INT64", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]},
            {"name": "BOOL", "datatype": "BOOL", "shape": [1, 2], "data": [True, False]},
            {"name": "BYTES", "datatype": "BYTES", "shape": [1, 2], "data": ["a", "b"]},
        ],
        "outputs": [
            {"name": "FP32", "parameters": {**place, "shared_memory_offset": 16}},
            {"name": "INT64"},
        ],
    }  # fmt: skip
    status, answer = await http.post("/v2/models/kinds/infer", request)
    assert status == 200, answer
    first, second = answer["outputs"]
    assert first["parameters"] == {**place, "shared_memory_offset": 16}
    assert "data" not in first
    assert second["data"] == [1, 2]
    assert np.fromfile(FOLDER / key, np.float32).tolist() == [1, 2, 3, 4, 1, 2, 0, 0]
    assert (await http.post("/v2/systemsharedmemory/region/r/unregister"))[0] == 200
    status, answer = await http.post("/v2/models/kinds/infer", request)
    assert (status, "not registered" in answer["error"]) == (404, True)


@pytest.mark.parametrize(
    ("path", "body", "part"),
    [
        ("system/region/r/register", {"key": 7, "byte_size": 8}, "key is 7"),
        ("system/region/r/register", {"key": "/none", "byte_size": 8}, "cannot be opened"),
        ("system/region/r/register", {"key": "/x", "byte_size": -1}, "byte_size is -1"),
        ("system/region/r/register", {"key": "/x"}, "byte_size is None"),
        ("cuda/region/r/register", {"raw_handle": {"b64": "§"}, "byte_size": 8}, "base64"),
        (
            "cuda/region/r/register",
            {"raw_handle": {"b64": base64.b64encode(bytes(64)).decode()}, "byte_size": 8},
            "ask infer_svc itself",
        ),
    ],
)
async def test_region_that_cannot_be_is_told(
    http: Http, path: str, body: dict[str, Any], part: str
) -> None:
    kind, _, rest = path.partition("/")
    status, answer = await http.post(f"/v2/{kind}sharedmemory/{rest}", body)
    assert (status, part in answer["error"]) == (400, True), answer
    assert (await http.get(f"/v2/{kind}sharedmemory/status"))[1] == []
    assert (await http.post(f"/v2/{kind}sharedmemory/unregister"))[0] == 200
