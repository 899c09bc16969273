"""Routes for people with curl."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from mesh.item import Reply, Request
from mesh.tensor import bytes_tensor, pack
from tests.gateway.rest.serving import Http, serving


async def ranking(request: Request) -> Reply:
    """Postprocess: two categories, as `top_k` has them."""
    return Reply(pack({
        "scores": np.array([[0.75, 0.25]], np.float32), "classes": np.array([[7, 2]], np.int32),
        "labels": bytes_tensor(b"seven", b"two").reshape(1, 2),
    }))  # fmt: skip


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[Http]:
    async with serving(tmp_path) as one:
        one.mesh.postprocess.answer = ranking
        yield one


def form(*files: bytes, field: str = "file") -> aiohttp.FormData:
    made = aiohttp.FormData()
    for number, content in enumerate(files):
        made.add_field(field, content, filename=f"{number}.png")
    return made


async def test_file_is_a_body_or_several_are_a_form(http: Http) -> None:
    status, answer = await http.post("/v1/classify", b"picture")
    assert status == 200
    assert answer["results"][0]["categories"][0] == {
        "score": 0.75, "class_id": 7, "label": "seven",
    }  # fmt: skip
    data = form(b"one", b"two", b"three")
    async with http.session.post(f"{http.url}/v1/classify?pipeline=digits", data=data) as found:
        assert len((await found.json())["results"]) == 3
    assert b"three" in b"".join(one.payload for one in http.mesh.preprocess.requests)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "part"),
    [
        ("/v1/classify", b"", {}, 400, "no file came"),
        ("/v1/classify?pipeline=none", b"x", {}, 404, "'none' is not known"),
        ("/v1/classify?pipeline=plain", b"x", {}, 400, "has the task 'custom'"),
        ("/v1/detect", b"x", {}, 404, "no pipeline has the task 'detect'"),
        ("/v1/classify", b"x", {"Content-Type": "multipart/form-data"}, 400, "form"),
        (
            "/v1/classify", b"--b\r\nbroken", {"Content-Type": "multipart/form-data; boundary=b"},
            400, "form",
        ),
        ("/v1/classify_text", b"{}", {}, 400, "texts: Field required"),
        ("/v1/classify_text", b'{"texts": ["x"]}', {}, 404, "no pipeline has the task"),
    ],
)  # fmt: skip
async def test_bad_request_is_told(
    http: Http, path: str, body: bytes, headers: dict[str, str], status: int, part: str
) -> None:
    found, answer = await http.post(path, body, headers=headers)
    assert (found, part in answer["error"]) == (status, True), answer


async def test_form_without_a_file_is_told(http: Http) -> None:
    data = aiohttp.FormData()
    data.add_field("file", "a text", content_type="text/plain")
    async with http.session.post(f"{http.url}/v1/classify", data=data) as found:
        assert found.status == 400


async def test_pipelines_are_listed(http: Http) -> None:
    _, answer = await http.get("/v1/pipelines")
    rows = {row["name"]: row for row in answer["pipelines"]}
    assert rows["digits"]["task"] == "classify"
    assert rows["digits"]["inputs"] == [{"name": "image", "dtype": "BYTES", "shape": [1]}]
