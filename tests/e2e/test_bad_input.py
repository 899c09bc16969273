"""Each bad input gets the right status and a useful text, and the next request succeeds."""

import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import pytest

from mesh.tensor import bytes_tensor, to_proto
from protos.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from protos.mesh.v1.tensor_pb2 import Tensor, Tensors
from tests.e2e.conftest import ROOT, Mesh, free_port, start_mesh, stop_mesh
from tests.e2e.test_answers import DIGIT, PAGE

Code = grpc.StatusCode
Stub: Any = mesh_pb2_grpc.MeshStub


def huge_png() -> bytes:
    """A PNG that says it is 20,000 x 20,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


def detect(image: bytes) -> Callable[[Any], object]:
    return lambda stub: stub.Detect(mesh_pb2.DetectRequest(images=[image]), timeout=20)


def classify_text(text: str) -> Callable[[Any], object]:
    return lambda stub: stub.ClassifyText(mesh_pb2.ClassifyTextRequest(texts=[text]), timeout=20)


def run(pipeline: str, tensors: Tensors) -> Callable[[Any], object]:
    request = mesh_pb2.RunRequest(pipeline=pipeline, inputs=[tensors])
    return lambda stub: stub.Run(request, timeout=20)


WRONG_TYPE = Tensors(tensors=[Tensor(name="image", dtype="FP32", shape=[1], raw=bytes(4))])
WRONG_BYTES = Tensors(tensors=[Tensor(name="image", dtype="FP32", shape=[9], raw=bytes(4))])
NO_DTYPE = Tensors(tensors=[Tensor(name="image", dtype="FLOAT", shape=[1], raw=bytes(4))])

REFUSED = [
    pytest.param(detect(b""), Code.INVALID_ARGUMENT, "empty", id="empty_image"),
    pytest.param(
        detect(PAGE.read_bytes()[:5000]), Code.INVALID_ARGUMENT, "cut off", id="truncated"
    ),
    pytest.param(detect(b"plain text"), Code.INVALID_ARGUMENT, "JPEG", id="not_an_image"),
    pytest.param(detect(b"GIF89a" + bytes(50)), Code.INVALID_ARGUMENT, "GIF", id="gif"),
    pytest.param(detect(huge_png()), Code.INVALID_ARGUMENT, "20000", id="huge_png_header"),
    pytest.param(
        detect(b"\xff\xd8\xff" + bytes(30 * 1024**2)), Code.INVALID_ARGUMENT, "bytes", id="30_MB"
    ),
    pytest.param(classify_text(""), Code.INVALID_ARGUMENT, "empty", id="empty_text"),
    pytest.param(classify_text(" \n\t"), Code.INVALID_ARGUMENT, "empty", id="blank_text"),
    pytest.param(
        run("language", to_proto({"text": bytes_tensor(b"\xff\xfe")})),
        Code.INVALID_ARGUMENT, "UTF-8", id="invalid_utf8",
    ),
    pytest.param(
        run("language", to_proto({"texts": bytes_tensor(b"x")})),
        Code.INVALID_ARGUMENT, "text: BYTES", id="wrong_tensor_name",
    ),
    pytest.param(
        run("digits-detect", WRONG_TYPE),
        Code.INVALID_ARGUMENT, "wanted BYTES", id="wrong_dtype",
    ),
    pytest.param(
        run("digits-detect", to_proto({"image": np.array([[b"x"]], object)})),
        Code.INVALID_ARGUMENT, r"wanted BYTES\[1\]", id="wrong_shape",
    ),
    pytest.param(
        run("digits-detect", WRONG_BYTES),
        Code.INVALID_ARGUMENT, "4 bytes came, wanted 36", id="wrong_byte_count",
    ),
    pytest.param(
        run("digits-detect", NO_DTYPE),
        Code.INVALID_ARGUMENT, "wanted one of", id="unknown_dtype",
    ),
    pytest.param(
        run("digits", to_proto({})), Code.NOT_FOUND, "digits-detect", id="unknown_pipeline"
    ),
    pytest.param(
        lambda stub: stub.Detect(mesh_pb2.DetectRequest(pipeline="language", images=[b"x"])),
        Code.INVALID_ARGUMENT, "use Run", id="pipeline_of_another_task",
    ),
    pytest.param(
        lambda stub: stub.Detect(mesh_pb2.DetectRequest()),
        Code.INVALID_ARGUMENT, "0 items came .*wanted 1 to 512", id="no_images",
    ),
    pytest.param(
        lambda stub: stub.Detect(
            mesh_pb2.DetectRequest(images=[PAGE.read_bytes(), b"x", PAGE.read_bytes()])
        ),
        Code.INVALID_ARGUMENT, "item 1", id="one_bad_of_three",
    ),
    pytest.param(
        lambda stub: stub.Detect(mesh_pb2.DetectRequest(images=[bytes(70 * 1024**2)])),
        Code.RESOURCE_EXHAUSTED, "larger than max", id="message_over_the_limit",
    ),
    pytest.param(
        lambda stub: stub.Detect(
            mesh_pb2.DetectRequest(images=[PAGE.read_bytes()] * 8), timeout=0.002
        ),
        Code.DEADLINE_EXCEEDED, ".", id="expired_deadline",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "code", "text"), REFUSED)
def test_bad_request_is_refused_and_the_next_one_succeeds(
    channel: grpc.Channel, call: Callable[[Any], object], code: grpc.StatusCode, text: str
) -> None:
    stub = Stub(channel)
    with pytest.raises(grpc.RpcError, match=text) as caught:
        call(stub)
    assert caught.value.code() is code, caught.value.details()
    good = stub.Classify(mesh_pb2.ClassifyRequest(images=[DIGIT.read_bytes()]), timeout=20)
    assert good.results[0].categories[0].label == "7"


def test_garbage_in_place_of_a_message_is_refused(channel: grpc.Channel) -> None:
    call: Any = channel.unary_unary("/mesh.v1.Mesh/Detect")
    with pytest.raises(grpc.RpcError, match="DetectRequest") as caught:
        call(b"\xff\xff\xff garbage")
    assert caught.value.code() is Code.INVALID_ARGUMENT


def test_picture_of_one_pixel_has_an_answer(channel: grpc.Channel) -> None:
    _, png = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))
    response = Stub(channel).Detect(mesh_pb2.DetectRequest(images=[png.tobytes()]), timeout=20)
    assert len(response.results) == 1


def test_megabyte_of_text_has_an_answer_soon(channel: grpc.Channel) -> None:
    text = "Guten Morgen, wie geht es Ihnen heute? " * 27_000
    started = time.monotonic()
    request = mesh_pb2.ClassifyTextRequest(texts=[text])
    response = Stub(channel).ClassifyText(request, timeout=20)
    assert response.results[0].categories[0].label == "German"
    assert time.monotonic() - started < 2


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh whose repository has one good model and everything that can be wrong with others."""
    root = tmp_path_factory.mktemp("models")
    for name in ("digits-classify", "language"):
        (root / name).symlink_to(ROOT / "models" / name)
    good = (ROOT / "models/digits-classify/pipeline.yaml").read_text()
    pipelines = {
        "misfit": good.replace("size: [32, 32], resize: 32", "size: [48, 48], resize: 48"),
        "wrong-op": good.replace("center_crop", "centre_crop"),
        "wrong-parameter": good.replace("resize:", "resise:"),
        "no-model": good.replace("model: digits-classify", "model: digits"),
        "broken-config": good.replace("model: digits-classify", "model: broken-config"),
        "outside": good.replace("digits-classify/labels.txt", "../../../etc/passwd"),
        "no-yaml": "task: [",
        "unknown-key": good + "\ncolour: red\n",
    }
    for name, text in pipelines.items():
        (root / name).mkdir()
        (root / name / "pipeline.yaml").write_text(text)
    version = root / "broken-config/1"
    version.mkdir()
    (version / "model.onnx").write_bytes(
        (ROOT / "models/digits-classify/1/model.onnx").read_bytes()
    )
    (root / "broken-config/config.pbtxt").write_text("max_batch_size: many")
    running = start_mesh(tmp_path_factory.mktemp("broken") / "log", models=root)
    yield running
    stop_mesh(running)


@pytest.mark.parametrize(
    ("pipeline", "text"),
    [
        ("misfit", r"wants pixels: UINT8\[-1,32,32,3\].*gives pixels: UINT8\[1,48,48,3\]"),
        ("wrong-op", "'centre_crop' is not known.*center_crop"),
        ("wrong-parameter", "resise"),
        ("no-model", "'digits' is not in the repository.*digits-classify"),
        ("broken-config", "config.pbtxt is no ModelConfig.*1:17"),
        ("outside", "outside the model repository"),
        ("no-yaml", "pipeline.yaml is no pipeline"),
        ("unknown-key", "colour"),
    ],
)
def test_pipeline_that_does_not_fit_is_refused_by_name_and_others_serve(
    broken: Mesh, pipeline: str, text: str
) -> None:
    with grpc.insecure_channel(broken.gateway) as channel:
        stub = Stub(channel)
        with pytest.raises(grpc.RpcError, match=text) as caught:
            stub.Run(mesh_pb2.RunRequest(pipeline=pipeline, inputs=[to_proto({})]), timeout=20)
        assert caught.value.code() is Code.FAILED_PRECONDITION
        request = mesh_pb2.ClassifyRequest(pipeline="digits-classify", images=[DIGIT.read_bytes()])
        assert stub.Classify(request, timeout=20).results[0].categories[0].label == "7"
    assert f"{pipeline} " in broken.cli("models").stdout


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--models", "/nowhere"], "is no folder"),
        (["--workers", "preprocess=many"], "SERVICE=N"),
        (["--workers", "gateways=2"], "SERVICE=N"),
    ],
    ids=["no_repository", "bad_number", "unknown_service"],
)
def test_up_that_cannot_start_says_why(words: list[str], text: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mesh.cli", "up", *words], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_port_in_use_is_named_and_nothing_is_left_running(mesh: Mesh, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mesh.cli", "up", "--bind", mesh.gateway]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 1
    assert f"cannot listen at {mesh.gateway}" in done.stderr
    assert "ready" not in done.stderr


@pytest.mark.parametrize("words", [["models"], ["health"], ["trace"], ["language", "a"]])
def test_command_line_without_a_gateway_says_so_in_one_line(words: list[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mesh.cli", *words, "--gateway", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"trtmesh: nobody answers at {address}; start a mesh with `trtmesh up`")
