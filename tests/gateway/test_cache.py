"""Answers that are given again, and never those of another version."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY

from gateway.cache import ENTRY_BYTES, ResponseCache, key_of
from gateway.routing.routes import Route
from gateway.runner import PipelineRunner
from mesh.errors import EngineError
from mesh.item import Reply, Request
from mesh.status import to_status
from mesh.tensor import pack
from protos.mesh.v1.stage_pb2 import TargetSpec
from tests.conftest import eventually
from tests.gateway.stages import FakeMesh, repository, running_mesh

CACHED = "model: digits\ncache_mbytes: 1\n"


def test_key_is_of_content_parameters_and_version() -> None:
    keys = {
        key_of(Request("m", payload, parameters), version)
        for payload, parameters, version in (
            (b"ab", b"", "1"), (b"b", b"a", "1"), (b"ab", b"", "2"), (b"", b"ab", "1"),
        )
    }  # fmt: skip
    assert len(keys) == 4
    assert key_of(Request("m", b"x"), "1") == key_of(Request("n", b"x", client="other"), "1")


def test_bytes_are_bounded_and_the_oldest_goes_first() -> None:
    size = 1000 + ENTRY_BYTES
    cache = ResponseCache("bounded", 3 * size)
    for name in b"abc":
        cache.put(("1", bytes([name])), Reply(bytes(1000), version="1"))
    assert cache.get(("1", b"a")) is not None
    cache.put(("1", b"d"), Reply(bytes(1000), version="1"))
    found = {name for name in "abcd" if cache.get(("1", name.encode())) is not None}
    assert found == {"a", "c", "d"}
    assert cache.bytes == 3 * size
    cache.put(("1", b"large"), Reply(bytes(4 * size), version="1"))
    assert cache.get(("1", b"large")) is None
    cache.put(("1", b"a"), Reply(bytes(1000), version="1"))
    assert cache.bytes == 3 * size
    cache.clear()
    assert (cache.bytes, cache.get(("1", b"a"))) == (0, None)


def test_failures_and_answers_of_another_version_are_not_kept() -> None:
    cache = ResponseCache("careful", 10_000)
    cache.put(("1", b"a"), Reply(status=to_status(EngineError("broken"))))
    cache.put(("1", b"a"), Reply(b"x", version="2"))
    assert cache.get(("1", b"a")) is None


class Cached:
    """A runner with a cached pipeline, and its model."""

    def __init__(self, mesh: FakeMesh, runner: PipelineRunner) -> None:
        self.mesh, self.runner = mesh, runner
        self.version = "3"
        mesh.infer.answer = self._answer

    async def _answer(self, request: Request) -> Reply:
        return Reply(self.version.encode() + request.payload, version=self.version)

    async def ask(self, number: int = 1, target: str = "cached") -> str:
        """Return the version that answered."""
        payload = pack({"pixels": np.full((1, 4), number, np.uint8)})
        reply = await self.runner(Request(target, payload))
        assert reply.payload == reply.version.encode() + payload
        return reply.version

    async def swap(self, version: str) -> None:
        """Serve another version, as an infer does."""
        spec = TargetSpec.FromString(self.mesh.infer.targets["digits"].SerializeToString())
        spec.version = self.version = version
        self.mesh.infer.targets["digits"] = spec
        link = self.mesh.stages.infer.replicas[0]
        edition = link.edition
        self.mesh.infer.stage.announce()
        await eventually(lambda: link.edition > edition)

    @property
    def runs(self) -> int:
        return len(self.mesh.infer.requests)


@pytest.fixture
async def cached(tmp_path: Path) -> AsyncIterator[Cached]:
    async with running_mesh() as mesh:
        runner = PipelineRunner(
            repository(tmp_path, cached=CACHED, plain="model: digits"), mesh.stages
        )
        await runner.check()
        yield Cached(mesh, runner)


async def test_same_request_is_run_once(cached: Cached) -> None:
    assert [await cached.ask(number) for number in (1, 1, 2, 1)] == ["3"] * 4
    assert cached.runs == 2
    labels = {"pipeline": "cached"}
    assert REGISTRY.get_sample_value("mesh_gateway_cache_hits_total", labels) == 2
    assert REGISTRY.get_sample_value("mesh_gateway_cache_misses_total", labels) == 2
    assert (REGISTRY.get_sample_value("mesh_gateway_cache_bytes", labels) or 0) > 2 * ENTRY_BYTES


async def test_without_a_size_nothing_is_kept(cached: Cached) -> None:
    for _ in range(3):
        await cached.ask(target="plain")
    assert cached.runs == 3


async def test_answer_of_an_old_version_is_never_given_again(cached: Cached) -> None:
    assert await cached.ask() == "3"
    await cached.swap("4")
    assert await cached.ask() == "4"  # before anybody has looked what is served now
    await cached.runner.refresh()
    assert [await cached.ask() for _ in range(3)] == ["4"] * 3
    assert cached.runs == 3
    await cached.swap("3")
    await cached.runner.refresh()
    assert await cached.ask() == "3"
    assert cached.runs == 3  # the first answer was that of this version


async def test_version_that_is_named_has_its_own_answers(cached: Cached) -> None:
    await cached.ask()
    await cached.ask(target="cached/3")
    assert cached.runs == 1


async def test_nothing_is_cached_while_versions_are_compared(cached: Cached) -> None:
    route = Route(pipeline="cached", stable="3", canary="9", weight=10)
    cached.runner.router.take([route])
    for _ in range(3):
        await cached.ask()
    assert cached.runs == 3
    cached.runner.router.take([route.rolled_back()])
    for _ in range(3):
        await cached.ask()
    assert cached.runs == 4


async def test_many_at_once_get_their_own_answers(cached: Cached) -> None:
    await asyncio.gather(*(cached.ask(number % 7) for number in range(200)))
