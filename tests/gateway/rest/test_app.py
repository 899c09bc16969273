"""The whole application: its page, and errors that nobody expected."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.rest.serving import Http, serving


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[Http]:
    async with serving(tmp_path) as one:
        yield one


async def test_page_tells_of_all_routes_and_needs_no_other_host(http: Http) -> None:
    status, page = await http.get("/docs")
    assert status == 200
    text = page.decode()
    assert "https://" not in text
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"):
        assert f"/docs/assets/{name}" in text
        assert (await http.get(f"/docs/assets/{name}"))[0] == 200
    _, described = await http.get("/openapi.json")
    paths = described["paths"]
    assert paths.keys() >= {
        "/v2/models/{model}/infer", "/v2/models/{model}/generate_stream", "/v1/completions",
        "/v1/detect", "/v2/repository/models/{model}/load",
    }  # fmt: skip
    body = paths["/v2/models/{model}/infer"]["post"]["requestBody"]
    assert "inputs" in body["content"]["application/json"]["schema"]["properties"]


async def test_error_that_nobody_expected_tells_nothing_and_the_next_request_is_answered(
    http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    with monkeypatch.context() as patched:
        patched.setattr("gateway.rest.inference.plain", broken)
        status, answer = await http.get("/v2")
    assert (status, "secret" in str(answer)) == (500, False)
    assert (await http.get("/v2"))[0] == 200
