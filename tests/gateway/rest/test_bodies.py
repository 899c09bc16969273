"""Bodies are bounded before they are read, and watched."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.rest.bodies import packed
from mesh.item import Reply, Request
from tests.conftest import eventually
from tests.gateway.rest.serving import MOST_BYTES, Http, serving

PATH = "/v1/classify"


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[Http]:
    async with serving(tmp_path) as one:
        one.mesh.preprocess.answer = _size
        yield one


async def _size(request: Request) -> Reply:
    raise AssertionError


async def test_body_that_is_too_large_is_refused_before_it_is_read(http: Http) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 10_000
            yield bytes(10_000)

    status, answer = await http.post(PATH, bytes(MOST_BYTES + 1))
    assert status == 413
    assert "wanted at most" in answer["error"]
    async with http.session.post(http.url + PATH, data=endless()) as response:
        assert response.status == 413
    assert read < 50_000_000  # sockets buffer some
    assert http.mesh.preprocess.requests == []


@pytest.mark.parametrize(
    ("encoding", "body", "status", "part"),
    [
        ("gzip", gzip.compress(bytes(MOST_BYTES + 1)), 413, "gzip of more"),
        ("gzip", b"no gzip", 400, "no gzip"),
        ("gzip", gzip.compress(b"x" * 100)[:-9], 400, "not one whole piece"),
        ("deflate", zlib.compress(b"x") + b"more", 400, "not one whole piece"),
        ("br", b"x", 400, "'br' came"),
    ],
)
async def test_packed_body_that_cannot_be_is_refused(
    http: Http, encoding: str, body: bytes, status: int, part: str
) -> None:
    found, answer = await http.post(PATH, body, headers={"Content-Encoding": encoding})
    assert found == status
    assert part in answer["error"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_packed_body_is_unpacked(http: Http, encoding: str) -> None:
    seen: list[bytes] = []

    async def note(request: Request) -> Reply:
        seen.append(request.payload)
        return Reply(request.payload)

    http.mesh.preprocess.answer = note
    body = gzip.compress(b"picture") if encoding == "gzip" else zlib.compress(b"picture")
    await http.post(PATH, body, headers={"Content-Encoding": encoding})
    assert b"picture" in seen[0]


def test_answer_is_packed_as_it_is_accepted() -> None:
    for accepted in ("gzip, br", "GZIP;q=1"):
        body, encoding = packed(b"x" * 100, accepted)
        assert (encoding, gzip.decompress(body)) == ("gzip", b"x" * 100)
    body, encoding = packed(b"x", "deflate")
    assert (encoding, zlib.decompress(body)) == ("deflate", b"x")
    for accepted in ("br", "", "gzip;q=0", "gzip;q=x", "identity"):
        assert packed(b"x", accepted) == (b"x", "")
    assert packed(b"x", "gzip;q=0.5, deflate; q=0.8")[1] == "deflate"


async def test_work_ends_when_its_client_leaves(http: Http) -> None:
    under_way = 0

    async def hang(_: Request) -> Reply:
        nonlocal under_way
        under_way += 1
        try:
            await asyncio.Event().wait()
        finally:
            under_way -= 1
        return Reply()

    http.mesh.preprocess.answer = hang
    asking = asyncio.create_task(http.post(PATH, b"picture"))
    await eventually(lambda: under_way == 1)
    asking.cancel()
    await eventually(lambda: under_way == 0)
    await eventually(lambda: http.mesh.leased() == (0, 0))
