"""`trtmesh generate` sends what it is given and shows the text as it comes."""

import asyncio
import io
import sys
from collections.abc import AsyncIterator

import grpc
import pytest

from mesh.cli import main
from mesh.errors import InvalidInput
from mesh.item import Reply, Request
from mesh.layers import errors
from mesh.sync_client import SERVICE
from mesh.unary import streaming_method
from protos.mesh.v1.mesh_pb2 import GenerateRequest, GenerateResponse

ADDRESS: list[str] = []
SENT: list[GenerateRequest] = []


async def tell(request: Request) -> Reply:
    SENT.append(message := GenerateRequest.FromString(request.payload))
    if message.text == "bad":
        raise InvalidInput("text: 'bad' came")
    if message.text == "late":
        assert request.emit is not None
        request.emit(Reply(GenerateResponse(text="2026").SerializeToString(), more=True))
        await asyncio.sleep(0.3)
        request.check_deadline()
    assert request.emit is not None
    for word in ("2026", "-11", "-27"):
        request.emit(Reply(GenerateResponse(text=word).SerializeToString(), more=True))
    end = GenerateResponse(finish_reason="stop", prompt_tokens=8, completion_tokens=10)
    return Reply(end.SerializeToString())


@pytest.fixture(autouse=True)
async def gateway() -> AsyncIterator[None]:
    server = grpc.aio.server()
    methods = {"Generate": streaming_method(errors(tell), "Generate")}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    ADDRESS[:] = [f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"]
    SENT.clear()
    await server.start()
    yield
    await server.stop(None)


async def run(*words: str) -> int:
    return await asyncio.to_thread(main, ["generate", *words, "--gateway", ADDRESS[0]])


async def test_text_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("27 novembre 2026") == 0
    assert capsys.readouterr().out == "2026-11-27\n"
    (sent,) = SENT
    assert sent == GenerateRequest(text="27 novembre 2026")


async def test_parameters_are_sent_where_they_are_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "--pipeline dates --max-tokens 9 --temperature 0 --top-k 5 --top-p 0.5 --seed 7"
    stops = ["--stop", "a b", "--stop", "."]
    assert await run("x", *words.split(), *stops, "--repetition-penalty", "1.5", "-v") == 0
    (sent,) = SENT
    assert sent == GenerateRequest(
        pipeline="dates", text="x", max_tokens=9, temperature=0, top_k=5, top_p=0.5, seed=7,
        stop=["a b", "."], repetition_penalty=1.5,
    )  # fmt: skip
    told = capsys.readouterr().out.splitlines()
    assert told[1] == "stop after 10 tokens; the text had 8"
    assert told[2].startswith("trace: ")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["bad"], "text: 'bad' came"),
        (["x", "--max-tokens", "-1"], "--max-tokens -1 cannot be sent"),
    ],
)
async def test_error_is_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], match: str
) -> None:
    assert await run(*words) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"trtmesh: {match}")
    assert captured.err.count("\n") == 1


async def test_time_that_is_over_is_told_below_what_came(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert await run("late", "--timeout", "0.2") == 1
    captured = capsys.readouterr()
    assert captured.out == "2026\n"
    assert captured.err.startswith("trtmesh: not finished in 0.2 s; see --timeout")


async def test_text_may_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a long text\n"))
    assert await run("-") == 0
    assert SENT[0].text == "a long text\n"


@pytest.mark.parametrize("words", [["-"], ["caf\udce9"]])
async def test_text_that_is_no_utf_8_is_named(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stdin)
    assert await run(*words) == 1
    assert "the text is no UTF-8" in capsys.readouterr().err
    assert SENT == []


async def test_reader_that_has_enough_ends_it_quietly() -> None:
    words = [sys.executable, "-m", "mesh.cli", "generate", "x", "--gateway", ADDRESS[0]]
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout._transport.close()  # type: ignore[attr-defined]
    _, errors_told = await process.communicate()
    assert errors_told == b""
    assert process.returncode == 141
