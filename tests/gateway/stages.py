"""Small stages that run in the test's process: they answer `Describe` and `Run` over real gRPC."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
from prometheus_client import Metric

from gateway.pipeline import Stages
from mesh import WIRE_VERSION
from mesh.client import ClientLimits, StageClient
from mesh.errors import MeshError, NotFound
from mesh.families import pack_families
from mesh.grpc_types import Context, Method
from mesh.host import SERVER_OPTIONS
from mesh.item import Handler, Reply, Request
from mesh.layers import errors
from mesh.oip.service import NAME as OIP
from mesh.server import Limits, StageServer
from mesh.status import abort, to_status
from mesh.tensor import TensorSpec
from protos.mesh.v1.stage_pb2 import (
    DescribeRequest,
    DescribeResponse,
    Envelope,
    MetricsRequest,
    MetricsResponse,
    Target,
    TargetSpec,
)
from tests.conftest import eventually

IMAGE = TensorSpec("image", "BYTES", (1,))
PIXELS = TensorSpec("pixels", "UINT8", (1, 4))
PIXELS_BATCH = TensorSpec("pixels", "UINT8", (-1, 4))
SCORES_BATCH = TensorSpec("scores", "FP32", (-1, 2))
CLASSES = TensorSpec("classes", "INT64", (1, 1))

PIPELINE = """
task: classify
preprocess: {op: center_crop, parameters: {size: 2}}
model: digits
postprocess: {op: top_k}
"""


def described(
    name: str, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec], version: str = ""
) -> TargetSpec:
    """Return what a stage tells of a target."""
    outputs = list(outputs)
    return TargetSpec(
        name=name,
        inputs=[spec.to_proto() for spec in inputs],
        outputs=[spec.to_proto() for spec in outputs],
        output_bytes=sum(spec.row_bytes() for spec in outputs),
        version=version,
        # What begins with a size of any kind is a batch.
        max_batch_size=8 if outputs and outputs[0].shape[:1] == (-1,) else 0,
        platform="onnxruntime_onnx" if version else "",
    )


CROP = described("center_crop", [IMAGE], [PIXELS])
DIGITS = described("digits", [PIXELS_BATCH], [SCORES_BATCH], version="3")
TOP_K = described("top_k", [SCORES_BATCH], [CLASSES])


class FakeStage:
    """A stage with one replica; records the requests that it got.

    Args:
        service: full name.
        targets: what it has.
        limits: bounds of the replica.
    """

    def __init__(self, service: str, *targets: TargetSpec, limits: Limits = Limits()) -> None:
        self.service = service
        self.targets = {target.name: target for target in targets}
        self.requests: list[Request] = []
        self.described: list[Target] = []
        self.failure: MeshError | None = None
        """Raised by `Describe` while it is set."""
        self.opened = asyncio.Event()
        """`Describe` waits for it."""
        self.opened.set()
        self.silent = False
        """`Describe` answers without the targets that it was asked for."""
        self.wire_version = WIRE_VERSION
        self.control: list[tuple[str, bytes]] = []
        """Calls of the Open Inference Protocol that came, by method."""
        self.told: dict[str, bytes] = {}
        """What is answered to them; nothing, where a method is not in it."""
        self.families: list[Metric] = []
        """What `Metrics` tells."""
        self._tells_all = False
        self.answer: Handler = self._name_it
        self.stage = StageServer(errors(self._note), limits)
        self.stage.open()
        self.server = grpc.aio.server(options=SERVER_OPTIONS)
        self.server.add_generic_rpc_handlers((
            grpc.method_handlers_generic_handler(service, {
                "Run": grpc.stream_stream_rpc_method_handler(
                    self.stage.run, Envelope.FromString, Envelope.SerializeToString
                ),
                "Metrics": grpc.unary_unary_rpc_method_handler(
                    self._metrics, MetricsRequest.FromString, MetricsResponse.SerializeToString
                ),
                "Describe": grpc.unary_unary_rpc_method_handler(
                    self._describe, DescribeRequest.FromString, DescribeResponse.SerializeToString
                ),
            }),
            grpc.method_handlers_generic_handler(OIP, {
                name: self._controlled(name)
                for name in (
                    "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload",
                    "ModelConfig",
                )
            }),
        ))  # fmt: skip
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    def _controlled(self, name: str) -> Method:
        async def answer(message: bytes, context: Context) -> bytes:
            self.control.append((name, message))
            if self.failure is not None:
                await abort(context, self.failure)
            return self.told.get(name, b"")

        return grpc.unary_unary_rpc_method_handler(answer)

    async def _note(self, request: Request) -> Reply:
        self.requests.append(request)
        return await self.answer(request)

    async def _name_it(self, request: Request) -> Reply:
        """Answer with the target and what came, and leave a context."""
        return Reply(
            request.target.encode() + b"(" + request.payload + b")",
            b"context of " + request.target.encode(),
        )

    async def _describe(self, request: DescribeRequest, context: Context) -> DescribeResponse:
        self.described.extend(request.targets)
        await self.opened.wait()
        if self.failure is not None:
            await abort(context, self.failure)
        asked = [] if self.silent else request.targets
        specs = [self.targets.get(target.name) or _unknown(target) for target in asked]
        if not request.targets and self._tells_all:
            specs = list(self.targets.values())
        return DescribeResponse(wire_version=self.wire_version, service=self.service, targets=specs)

    def tell_all(self) -> None:
        """Answer with all targets where none is named, as a stage does."""
        self._tells_all = True

    async def _metrics(self, _: MetricsRequest, __: Context) -> MetricsResponse:
        registry: Any = SimpleNamespace(collect=lambda: self.families)
        return pack_families(registry)

    async def kill(self) -> None:
        """End it without a word."""
        await self.server.stop(None)


def _unknown(target: Target) -> TargetSpec:
    return TargetSpec(name=target.name, status=to_status(NotFound(f"there is no {target.name!r}")))


class FakeMesh:
    """A replica of each stage, and the clients that the gateway has."""

    def __init__(self, infer: Limits = Limits()) -> None:
        self.preprocess = FakeStage("mesh.v1.Preprocess", CROP)
        self.infer = FakeStage("mesh.v1.Infer", DIGITS, limits=infer)
        self.postprocess = FakeStage("mesh.v1.Postprocess", TOP_K)
        self.stages: Stages

    @property
    def fakes(self) -> tuple[FakeStage, FakeStage, FakeStage]:
        """Return the stages in the order of a request's way."""
        return self.preprocess, self.infer, self.postprocess

    def leased(self) -> tuple[int, int]:
        """Return the items and bytes that have a lease at any stage."""
        links = [link for client in self.stages.all() for link in client.replicas]
        return sum(link.items for link in links), sum(link.bytes for link in links)


@asynccontextmanager
async def running_mesh(
    infer: Limits = Limits(), prepare: Callable[[FakeMesh], None] = lambda mesh: None
) -> AsyncIterator[FakeMesh]:
    """Start the stages, once they are prepared, and connect to them."""
    mesh = FakeMesh(infer)
    prepare(mesh)
    limits = ClientLimits(backoff_s=0.02, retry_burst=2, retry_ratio=0)
    async with AsyncExitStack() as stack:
        clients = []
        for fake in mesh.fakes:
            await fake.server.start()
            stack.push_async_callback(fake.kill)
        for fake in mesh.fakes:
            client = StageClient(fake.service, fake.address, limits=limits)
            clients.append(await stack.enter_async_context(client))
        mesh.stages = Stages(*clients)
        await eventually(lambda: all(client.replicas for client in clients))
        yield mesh


def repository(folder: Path, **pipelines: str) -> Path:
    """Write a model repository with the text of each `pipeline.yaml`."""
    for name, text in pipelines.items():
        (folder / name).mkdir()
        (folder / name / "pipeline.yaml").write_text(text)
    return folder
