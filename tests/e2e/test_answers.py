import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from mesh.client import StageClient
from mesh.errors import InvalidInput
from mesh.item import Request
from mesh.tensor import bytes_tensor, pack, to_proto, unpack
from protos.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from tests.e2e.conftest import ROOT, Mesh

PAGE = ROOT / "models/digits-detect/samples/page.jpg"
ROTATED = ROOT / "models/digits-detect/samples/rotated.jpg"
DIGIT = ROOT / "models/digits-classify/samples/digit.png"
TEXTS = {
    "Guten Morgen, wie geht es Ihnen?": "German",
    "Where is the railway station, please?": "English",
    "Bonjour, comment allez-vous ?": "French",
}


def test_detect_finds_every_digit_of_the_page(channel: grpc.Channel) -> None:
    request = mesh_pb2.DetectRequest(images=[PAGE.read_bytes()])
    response = mesh_pb2_grpc.MeshStub(channel).Detect(request)
    found = response.results[0].detections
    assert sorted(d.label for d in found) == list("023456789")
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)
    assert all(0 <= d.x1 < d.x2 <= 1280 and 0 <= d.y1 < d.y2 <= 960 for d in found)


def test_detect_gives_boxes_of_the_upright_picture(channel: grpc.Channel) -> None:
    images = [PAGE.read_bytes(), ROTATED.read_bytes()]
    response = mesh_pb2_grpc.MeshStub(channel).Detect(mesh_pb2.DetectRequest(images=images))
    straight, turned = (
        {d.label: (d.x1, d.y1, d.x2, d.y2) for d in result.detections}
        for result in response.results
    )
    assert straight.keys() == turned.keys()
    for label, box in straight.items():
        assert np.allclose(box, turned[label], atol=8), label


def test_classify_says_which_digit_it_is(channel: grpc.Channel) -> None:
    request = mesh_pb2.ClassifyRequest(images=[DIGIT.read_bytes()])
    ranking = mesh_pb2_grpc.MeshStub(channel).Classify(request).results[0].categories
    assert ranking[0].label == "7"
    assert len(ranking) == 5
    assert sum(category.score for category in ranking) <= 1 + 1e-5


def test_classify_text_tells_languages_in_the_order_of_the_request(channel: grpc.Channel) -> None:
    request = mesh_pb2.ClassifyTextRequest(texts=TEXTS)
    response = mesh_pb2_grpc.MeshStub(channel).ClassifyText(request)
    assert [r.categories[0].label for r in response.results] == list(TEXTS.values())


def test_run_takes_and_gives_tensors_by_name(channel: grpc.Channel) -> None:
    inputs = [to_proto({"text": bytes_tensor(text.encode())}) for text in TEXTS]
    request = mesh_pb2.RunRequest(pipeline="language", inputs=inputs)
    outputs = mesh_pb2_grpc.MeshStub(channel).Run(request).outputs
    labels = [unpack(tensors.SerializeToString())["labels"][0, 0] for tensors in outputs]
    assert [label.decode() for label in labels] == list(TEXTS.values())


async def test_stream_answers_many_requests_of_several_pipelines(mesh: Mesh) -> None:
    image = pack({"image": bytes_tensor(DIGIT.read_bytes())})
    text = pack({"text": bytes_tensor(b"Where is the railway station, please?")})
    requests = [
        Request("digits-classify", image) if n % 2 else Request("language", text)
        for n in range(200)
    ]
    async with StageClient("mesh.v1.Mesh", mesh.gateway, "Stream") as client:
        replies = await asyncio.gather(*map(client.call, requests))
    labels = {unpack(reply.payload)["labels"][0, 0] for reply in replies[1::2]}
    assert labels == {b"7"}
    assert {unpack(reply.payload)["labels"][0, 0] for reply in replies[::2]} == {b"English"}


async def test_stream_tells_errors_item_by_item(mesh: Mesh) -> None:
    good = pack({"image": bytes_tensor(DIGIT.read_bytes())})
    bad = pack({"image": bytes_tensor(b"no picture")})
    async with StageClient("mesh.v1.Mesh", mesh.gateway, "Stream") as client:
        replies = await asyncio.gather(
            *(client.call(Request("digits-classify", payload)) for payload in (good, bad, good))
        )
    assert [type(reply.error()) for reply in replies] == [type(None), InvalidInput, type(None)]


def test_reflection_lists_and_describes_the_public_service(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert "mesh.v1.Mesh" in database.get_services()
    service = DescriptorPool(database).FindServiceByName("mesh.v1.Mesh")
    assert {"Detect", "Classify", "ClassifyText", "Run", "Stream"} <= set(service.methods_by_name)


@pytest.mark.parametrize("service", ["", "digits-detect", "digits-classify", "language"])
def test_health_is_serving_overall_and_for_each_pipeline(
    channel: grpc.Channel, service: str
) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    assert stub.Check(request).status == health_pb2.HealthCheckResponse.SERVING
    watch = stub.Watch(request)
    assert next(iter(watch)).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_many_callers_at_once_each_get_their_own_answer(channel: grpc.Channel) -> None:
    stub = mesh_pb2_grpc.MeshStub(channel)
    wrong: list[str] = []

    def ask(text: str, language: str) -> None:
        for _ in range(20):
            response = stub.ClassifyText(mesh_pb2.ClassifyTextRequest(texts=[text]))
            if response.results[0].categories[0].label != language:
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=pair) for pair in TEXTS.items() for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_command_line_detects_and_draws(mesh: Mesh, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    done = mesh.cli("detect", str(PAGE), "--save", str(out))
    assert done.returncode == 0, done.stderr
    assert "9 found" in done.stdout
    drawn, page = (np.asarray(cv2.imread(str(path))) for path in (out, PAGE))
    assert drawn.shape == page.shape
    assert bool((drawn != page).any())


def test_command_line_classifies_and_lists(mesh: Mesh) -> None:
    assert re.search(r"7\s+0\.", mesh.cli("classify", str(DIGIT)).stdout)
    assert "English" in mesh.cli("language", "Where is the railway station, please?").stdout
    listed = mesh.cli("models").stdout
    assert all(name in listed for name in ("digits-detect", "digits-classify", "language"))
