"""The HTTP application over small stages, at a port."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from gateway.idempotency import Calls
from gateway.rest.app import make_app
from gateway.rest.server import HttpServer
from gateway.runner import PipelineRunner
from gateway.service import CONTROL, MeshService
from mesh.item import Reply, Request
from mesh.oip.regions import Regions
from mesh.oip.settings import Settings, SettingsOwner
from mesh.port import free_ports
from mesh.server import Limits
from mesh.tensor import TensorSpec
from tests.gateway import generating
from tests.gateway.stages import PIPELINE, FakeMesh, described, repository, running_mesh
from tests.gateway.test_catalog import best, crop, score
from tests.mesh.spans import Spans

MOST_BYTES = 100_000
PIPELINES = {"digits": PIPELINE, "plain": "model: digits", "kinds": "model: kinds"}
KINDS = {
    name: TensorSpec(name, name, (-1, 2)) for name in ("FP16", "FP32", "INT64", "BOOL", "BYTES")
}


@dataclass
class Http:
    """A client, and what is behind the server."""

    url: str
    session: aiohttp.ClientSession
    mesh: FakeMesh
    spans: Spans

    async def get(self, path: str, **options: Any) -> tuple[int, Any]:
        return await self._ask("GET", path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        if isinstance(body, bytes):
            return await self._ask("POST", path, data=body, **options)
        return await self._ask("POST", path, json=body, **options)

    async def _ask(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        async with self.session.request(method, self.url + path, **options) as answer:
            if answer.content_type == "application/json":
                return answer.status, await answer.json() if await answer.read() else None
            return answer.status, await answer.read()


async def same(request: Request) -> Reply:
    """Infer: every input, as it came."""
    if request.target.startswith("kinds"):
        return Reply(request.payload, version="1")
    return await score(request)


async def _unused(_: Request) -> Reply:
    return Reply()


@asynccontextmanager
async def application(folder: Path, mesh: FakeMesh, **pipelines: str) -> AsyncIterator[Http]:
    spans = Spans()
    runner = PipelineRunner(repository(folder, **pipelines), mesh.stages)
    await runner.check()
    service = MeshService(
        runner, spans.tracer, Limits(), {**dict.fromkeys(CONTROL, _unused), **Calls().handlers()}
    )
    regions = Regions()

    async def changed(settings: Settings) -> None:
        regions.take(settings.regions, settings.cuda)

    owner = SettingsOwner(Settings(), changed, "INFO", 0.01, system_memory=True)
    protocol = service.oip(runner.refresh, owner.handlers(), regions)
    app = make_app(service, protocol, MOST_BYTES)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    server = HttpServer(app, address)
    await server.start()
    async with aiohttp.ClientSession(auto_decompress=True) as session:
        yield Http(f"http://{address}", session, mesh, spans)
    await server.stop(1)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Http]:
    """Serve pictures, and a model that returns what it gets."""
    kinds = described("kinds", KINDS.values(), KINDS.values(), version="1")

    def prepare(mesh: FakeMesh) -> None:
        mesh.infer.targets["kinds"] = kinds
        mesh.infer.tell_all()

    async with running_mesh(prepare=prepare) as mesh:
        mesh.preprocess.answer, mesh.infer.answer, mesh.postprocess.answer = crop, same, best
        async with application(folder, mesh, **PIPELINES) as http:
            yield http


@asynccontextmanager
async def speaking(folder: Path) -> AsyncIterator[Http]:
    """Serve a pipeline that spells."""
    async with (
        generating.generating_mesh() as mesh,
        application(folder, mesh, speller=generating.PIPELINE) as http,
    ):
        yield http
