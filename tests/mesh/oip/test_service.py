"""The protocol over a catalog that says what the test wants; through gRPC, by Triton's client."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.trace import NoOpTracer
from tritonclient.grpc import InferInput
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from mesh.errors import NotFound
from mesh.item import Reply, Request
from mesh.oip.catalog import Entry, Model
from mesh.oip.regions import Regions
from mesh.oip.service import NAME, SWAPS, oip_methods
from mesh.tensor import TensorSpec, bytes_tensor, pack, unpack

TEXT, SIZE = TensorSpec("text", "BYTES", (1,)), TensorSpec("size", "INT64", (1,))


class Fake:
    """A catalog with one model, that tells the size of texts."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, Mapping[str, Any]]] = []
        self.unloaded: list[tuple[str, bool]] = []
        self.versions: list[str] = []
        """Of the next answers; none: always 3."""
        self.targets: list[str] = []

    def is_ready(self) -> bool:
        return True

    def find(self, name: str, version: str) -> Model:
        if name != "sizes" or version not in ("", "2", "3"):
            raise NotFound(f"{name} {version}")
        target = f"{name}/{version}" if version else name
        return Model(
            name, version or "3", ("2", "3"), "none", (TEXT,), (SIZE,), target, splits=True
        )

    def serves(self, model: Model) -> bool:
        return model.version == "3"

    async def config(self, model: Model) -> Any:
        raise NotFound("it has none")

    async def statistics(self, name: str, version: str) -> list[Any]:
        return []

    async def index(self) -> list[Entry]:
        return [Entry("sizes", "3", "READY"), Entry("sizes", "4", "UNAVAILABLE", "it is broken")]

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        self.loaded.append((name, parameters))

    async def unload(self, name: str, *, parts: bool) -> None:
        self.unloaded.append((name, parts))

    async def answer(self, request: Request) -> Reply:
        self.targets.append(request.target)
        size = len(unpack(request.payload)["text"][0])
        version = self.versions.pop(0) if self.versions else "3"
        return Reply(pack({"size": np.array([size])}), version=version)


@pytest.fixture
async def served() -> AsyncIterator[tuple[InferenceServerClient, Fake]]:
    fake = Fake()
    server = grpc.aio.server()
    methods = oip_methods(fake, fake.answer, NoOpTracer(), {}, Regions())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, methods),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with InferenceServerClient(address) as client:
        yield client, fake
    await server.stop(None)


def texts(*elements: bytes) -> list[InferInput]:
    made = InferInput("text", [len(elements)], "BYTES")
    made.set_data_from_numpy(bytes_tensor(*elements))
    return [made]


async def test_answer_tells_the_version_that_made_it(
    served: tuple[InferenceServerClient, Fake],
) -> None:
    client, fake = served
    fake.versions = ["7"]
    result = await client.infer("sizes", texts(b"abc"))
    assert result.get_response().model_version == "7"
    await client.infer("sizes", texts(b"abc"), model_version="2")
    assert fake.targets == ["sizes", "sizes/2"]


async def test_texts_of_one_request_are_answered_by_one_version(
    served: tuple[InferenceServerClient, Fake],
) -> None:
    client, fake = served
    fake.versions = ["3", "4", "4", "4"]
    result = await client.infer("sizes", texts(b"a", b"bc"))
    assert result.get_response().model_version == "4"
    assert result.as_numpy("size").tolist() == [1, 2]
    fake.versions = ["3", "4"] * SWAPS
    with pytest.raises(InferenceServerException, match="changed 3 times during one request"):
        await client.infer("sizes", texts(b"a", b"bc"))


async def test_models_tell_of_all_versions(served: tuple[InferenceServerClient, Fake]) -> None:
    client, _ = served
    told = await client.get_model_metadata("sizes")
    assert (list(told.versions), told.platform) == (["2", "3"], "none")
    assert [list(tensor.shape) for tensor in told.inputs] == [[-1]]
    assert await client.is_model_ready("sizes")
    assert not await client.is_model_ready("sizes", "2")
    assert not await client.is_model_ready("sizes", "9")


async def test_index_may_be_asked_for_what_is_ready(
    served: tuple[InferenceServerClient, Fake],
) -> None:
    client, _ = served
    everything = (await client.get_model_repository_index()).models
    assert [(one.version, one.state, one.reason) for one in everything] == [
        ("3", "READY", ""), ("4", "UNAVAILABLE", "it is broken"),
    ]  # fmt: skip
    response = await client._client_stub.RepositoryIndex(oip.RepositoryIndexRequest(ready=True))
    assert [one.version for one in response.models] == ["3"]


async def test_models_are_loaded_and_unloaded_with_their_parameters(
    served: tuple[InferenceServerClient, Fake],
) -> None:
    client, fake = served
    await client.load_model("sizes")
    await client.load_model("sizes", config="{}", files={"file:1/model.onnx": b"\x00\xff"})
    assert fake.loaded == [
        ("sizes", {}), ("sizes", {"config": "{}", "file:1/model.onnx": b"\x00\xff"}),
    ]  # fmt: skip
    await client.unload_model("sizes")
    await client.unload_model("sizes", unload_dependents=True)
    assert fake.unloaded == [("sizes", False), ("sizes", True)]
