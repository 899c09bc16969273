"""The commands send what they are given, print the answers, and tell errors in one line."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import cv2
import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

from gateway.trace_store import TraceStore, trace_service
from mesh.cli import main
from mesh.errors import InvalidInput
from mesh.item import Reply, Request
from mesh.layers import errors
from mesh.sync_client import SERVICE
from mesh.unary import unary_method
from protos.mesh.v1 import mesh_pb2

Command = Callable[..., Awaitable[tuple[int, str, str]]]

RANKING = {"categories": [{"score": 0.75, "class_id": 2, "label": "two"}, {"class_id": 9}]}
BOX = {"x1": 1, "y1": 2, "x2": 13, "y2": 14, "score": 0.5, "class_id": 7, "label": "seven"}
ANSWERS: Mapping[str, Message] = {
    "Detect": mesh_pb2.DetectResponse(results=[{"detections": [BOX]}]),
    "Classify": mesh_pb2.ClassifyResponse(results=[RANKING, RANKING]),
    "ClassifyText": mesh_pb2.ClassifyTextResponse(results=[RANKING]),
    "ListPipelines": mesh_pb2.ListPipelinesResponse(
        pipelines=[
            {
                "name": "digits", "task": "detect", "model": "m", "model_version": "3",
                "inputs": [{"name": "image", "dtype": "BYTES", "shape": [1]}],
                "outputs": [{"name": "boxes", "dtype": "FP32", "shape": [1, -1, 4]}],
            },
            {"name": "broken", "refused": "model 'm' wants FP32"},
        ]
    ),
}  # fmt: skip


class Gateway:
    """Answers every method with what `ANSWERS` has."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.server = grpc.aio.server()
        methods = {name: unary_method(errors(self._answer), name) for name in ANSWERS}
        for name, table in ((SERVICE, methods), trace_service(TraceStore())):
            self.server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(name, table),)
            )
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    async def _answer(self, request: Request) -> Reply:
        self.requests.append(request)
        if b"nope" in request.payload:
            raise InvalidInput("pipeline 'nope' is not known")
        return Reply(ANSWERS[request.target].SerializeToString())


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    found = Gateway()
    await found.server.start()
    yield found
    await found.server.stop(None)


@pytest.fixture
def trtmesh(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command at the gateway; return its status, stdout and stderr."""

    async def run(*words: object) -> tuple[int, str, str]:
        argv = [*map(str, words), "--gateway", gateway.address]
        status = await asyncio.to_thread(main, argv)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "page.png"
    _, png = cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))
    path.write_bytes(png.tobytes())
    return path


async def test_detect_prints_boxes_and_the_trace(
    trtmesh: Command, gateway: Gateway, picture: Path
) -> None:
    status, out, _ = await trtmesh("detect", picture, "--pipeline", "digits")
    assert status == 0
    first, second, third = out.splitlines()
    assert first == f"{picture}: 1 found"
    assert second.split() == ["seven", "0.500", "[", "1.0", "2.0", "13.0", "14.0", "]"]
    assert third == f"trace: {gateway.requests[0].trace[:16].hex()}"
    sent = mesh_pb2.DetectRequest.FromString(gateway.requests[0].payload)
    assert (sent.pipeline, list(sent.images)) == ("digits", [picture.read_bytes()])


async def test_detect_saves_the_picture_with_its_boxes(
    trtmesh: Command, picture: Path, tmp_path: Path
) -> None:
    status, out, _ = await trtmesh("detect", picture, "--save", tmp_path / "boxes.png")
    assert status == 0
    assert f"drawn: {tmp_path}/boxes.png" in out
    assert np.any(cv2.imread(str(tmp_path / "boxes.png")))


async def test_classify_prints_each_picture_and_the_id_where_there_is_no_label(
    trtmesh: Command, picture: Path
) -> None:
    status, out, _ = await trtmesh("classify", picture, picture)
    assert status == 0
    assert out.splitlines()[:3] == [
        str(picture), f"  {'two':<24} 0.750", f"  {'9':<24} 0.000"
    ]  # fmt: skip


async def test_language_sends_the_texts(trtmesh: Command, gateway: Gateway) -> None:
    status, out, _ = await trtmesh("language", "Où est la gare ?")
    assert (status, out.splitlines()[0]) == (0, "Où est la gare ?")
    sent = mesh_pb2.ClassifyTextRequest.FromString(gateway.requests[0].payload)
    assert list(sent.texts) == ["Où est la gare ?"]


async def test_models_tells_what_is_served_and_what_is_refused(
    trtmesh: Command, gateway: Gateway
) -> None:
    status, out, _ = await trtmesh("models")
    assert status == 0
    assert [line.split(maxsplit=1) for line in out.splitlines()] == [
        ["digits", "detect         model m version 3"],
        ["image", "BYTES[1]  ->  boxes FP32[1, -1, 4]"],
        ["broken", "refused: model 'm' wants FP32"],
    ]
    assert gateway.requests[0].trace == b""  # looking makes no trace


async def test_error_of_the_gateway_is_one_line_and_status_1(
    trtmesh: Command, picture: Path
) -> None:
    status, out, err = await trtmesh("detect", picture, "--pipeline", "nope")
    assert (status, out, err) == (1, "", "trtmesh: pipeline 'nope' is not known\n")


@pytest.mark.parametrize("command", ["detect", "classify"])
async def test_file_that_is_not_there_is_told_before_anything_is_sent(
    command: str, trtmesh: Command, gateway: Gateway, picture: Path
) -> None:
    status, _, err = await trtmesh(command, picture, "no.jpg")
    assert (status, err) == (1, "trtmesh: cannot read no.jpg: No such file or directory\n")
    assert not gateway.requests


async def test_save_of_two_pictures_is_refused(
    trtmesh: Command, gateway: Gateway, picture: Path
) -> None:
    status, _, err = await trtmesh("detect", picture, picture, "--save", "x.png")
    assert (status, err) == (1, "trtmesh: --save takes one picture at a time\n")
    assert not gateway.requests


def test_gateway_that_is_away_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--gateway", "127.0.0.1:1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("trtmesh: ")
    assert "127.0.0.1:1" in line


@pytest.mark.parametrize(
    "argv",
    [[], ["nope"], ["detect"], ["models", "--timeout", "x"]],
    ids=" ".join,
)
def test_command_line_that_cannot_be_read_ends_with_status_2(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: trtmesh" in capsys.readouterr().err
