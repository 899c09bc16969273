"""A generation's way: token by token, to its end, and on where a replica went away."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.generation import read_options
from gateway.runner import PipelineRunner
from mesh.errors import DeadlineExceeded, EngineError, InvalidInput, Refused, StageUnavailable
from mesh.item import Reply, Request
from mesh.tensor import bytes_tensor, pack, unpack
from protos.mesh.v1.stage_pb2 import TargetSpec
from tests.conftest import eventually
from tests.gateway.generating import PIPELINE, generating_mesh, spell
from tests.gateway.stages import FakeMesh, repository

WORDS = "It was a bright cold day in April"


@asynccontextmanager
async def running(
    folder: Path, text: str = PIPELINE
) -> AsyncIterator[tuple[PipelineRunner, FakeMesh]]:
    root = repository(folder, speller=text)
    async with generating_mesh() as mesh:
        runner = PipelineRunner(root, mesh.stages)
        await runner.check()
        yield runner, mesh


class Call:
    """A request, and the text that its replies bring."""

    def __init__(self, text: str = WORDS, seconds: float = math.inf, **options: Any) -> None:
        self.pieces: list[str] = []
        payload = pack({"text": bytes_tensor(text.encode())})
        parameters = json.dumps(options).encode()
        deadline = time.monotonic() + seconds
        self.request = Request("speller", payload, parameters, deadline=deadline, emit=self._take)

    def _take(self, reply: Reply) -> None:
        assert reply.more
        self.pieces.append(bytes(unpack(reply.payload)["text"][0]).decode())

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def parts(reply: Reply) -> list[Any]:
    """Return text, reason, and the numbers of tokens."""
    return [array.tolist()[0] for array in unpack(reply.payload).values()]


async def test_text_comes_bit_by_bit_and_whole_at_last(tmp_path: Path) -> None:
    async with running(tmp_path) as (runner, mesh):
        mesh.infer.answer = partial(spell, pause_s=0.002)
        call = Call()
        reply = await runner(call.request)
        assert call.text == WORDS
        assert len(call.pieces) > 3
        assert parts(reply) == [WORDS.encode(), b"length", len(WORDS), len(WORDS)]
        assert reply.attributes is not None
        assert reply.attributes["gen_ai.usage.output_tokens"] == len(WORDS)
        assert mesh.leased() == (0, 0)


async def test_who_takes_one_reply_only_gets_the_whole(tmp_path: Path) -> None:
    async with running(tmp_path) as (runner, _):
        call = Call()
        call.request.emit = None
        assert parts(await runner(call.request))[0] == WORDS.encode()


async def test_stop_string_ends_the_generation_at_the_model_too(tmp_path: Path) -> None:
    async with running(tmp_path) as (runner, mesh):
        mesh.infer.answer = partial(spell, pause_s=0.002)
        call = Call(WORDS * 100, stop=["cold"])
        text, reason, _, made = parts(await runner(call.request))
        assert (text, reason) == (b"It was a bright ", b"stop")
        assert call.text == "It was a bright "
        assert made < 100
        await eventually(lambda: mesh.infer.stage.depth == 0)


async def test_generation_goes_on_where_a_replica_went_away(tmp_path: Path) -> None:
    """Every token comes once: the next replica is told which came."""
    fallen = 0

    async def fall(request: Request) -> Reply:
        nonlocal fallen
        if fallen < 2:
            fallen += 1
            begin = len(unpack(request.context).get("token_ids", ()))
            for token in WORDS.encode()[begin : begin + 7]:
                assert request.emit is not None
                one = np.array([token], np.int64)
                request.emit(Reply(pack({"token_ids": one}), more=True))
            await asyncio.sleep(0.01)
            raise StageUnavailable("this replica is going away")
        return await spell(request)

    async with running(tmp_path) as (runner, mesh):
        mesh.infer.answer = fall
        call = Call(seed=5)
        reply = await runner(call.request)
        assert call.text == WORDS
        assert parts(reply)[3] == len(WORDS)
        seen = [unpack(request.context) for request in mesh.infer.requests]
        assert [len(tensors.get("token_ids", ())) for tensors in seen] == [0, 7, 14]
        assert len({request.parameters for request in mesh.infer.requests}) == 1
        assert mesh.leased() == (0, 0)


async def test_who_gives_up_ends_it_at_the_model(tmp_path: Path) -> None:
    async with running(tmp_path) as (runner, mesh):
        mesh.infer.answer = partial(spell, pause_s=0.01)
        for _ in range(20):
            call = Call()
            task = asyncio.create_task(runner(call.request))
            await eventually(partial(bool, call.pieces))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await eventually(lambda: mesh.infer.stage.depth == 0)
        assert mesh.leased() == (0, 0)


async def test_time_that_is_over_ends_it(tmp_path: Path) -> None:
    async with running(tmp_path) as (runner, mesh):
        mesh.infer.answer = partial(spell, pause_s=0.05)
        with pytest.raises(DeadlineExceeded):
            await runner(Call(seconds=0.2).request)
        await eventually(lambda: mesh.infer.stage.depth == 0)
        assert mesh.leased() == (0, 0)


@pytest.mark.parametrize("stage", ["preprocess", "infer", "postprocess"])
async def test_error_of_any_stage_is_the_answer(tmp_path: Path, stage: str) -> None:
    async def fail(_: Request) -> Reply:
        raise EngineError(f"{stage} broke")

    async with running(tmp_path) as (runner, mesh):
        getattr(mesh, stage).answer = fail
        with pytest.raises(EngineError, match=f"{stage} broke"):
            await runner(Call().request)
        await eventually(lambda: mesh.infer.stage.depth == 0)
        assert mesh.leased() == (0, 0)


async def test_many_at_once_get_their_own_texts(tmp_path: Path) -> None:
    async with running(tmp_path) as (runner, mesh):
        texts = [f"{number} {WORDS[number % 20 :]}" for number in range(100)]
        replies = await asyncio.gather(*(runner(Call(text).request) for text in texts))
        assert [parts(reply)[0].decode() for reply in replies] == texts
        assert len(mesh.postprocess.requests) < 100 * len(WORDS) / 4


@pytest.mark.parametrize(
    ("decoupled", "pipeline", "match"),
    [
        (False, PIPELINE, "model 'speller' does not generate, the task is 'generate'"),
        (True, PIPELINE.replace("generate", "custom"), "model 'speller' generates, the task is"),
        (True, "task: generate\nmodel: speller", "an op before and one after it"),
        (True, PIPELINE.replace("detokenize", "tokenize"), "tokenize"),
    ],
)
async def test_pipeline_that_does_not_fit_is_refused(
    tmp_path: Path, decoupled: bool, pipeline: str, match: str
) -> None:
    async with running(tmp_path, pipeline) as (runner, mesh):
        target = TargetSpec()
        target.CopyFrom(mesh.infer.targets["speller"])
        target.decoupled = decoupled
        mesh.infer.targets["speller"] = target
        await runner.check()
        with pytest.raises(Refused, match=match):
            await runner(Call().request)


def test_stop_strings_stay_here_and_a_seed_is_chosen_once() -> None:
    stop, parameters = read_options(b'{"stop": ["a", "b"], "max_tokens": 3}')
    assert stop == ["a", "b"]
    assert json.loads(parameters).keys() == {"max_tokens", "seed"}
    assert read_options(b'{"stop": "x"}')[0] == ["x"]
    assert json.loads(read_options(b'{"seed": 7}')[1]) == {"seed": 7}
    assert read_options(b"")[1] != read_options(b"")[1]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"{", "no JSON"),
        (b"[]", "wanted a JSON object"),
        (b'{"stop": 3}', "stop 3 came"),
        (b'{"stop": [""]}', "wanted up to 16 texts"),
        (b'{"stop": ["\\ud800"]}', "wanted up to 16 texts"),
        (json.dumps({"stop": ["x"] * 17}).encode(), "wanted up to 16 texts"),
        (json.dumps({"stop": ["x" * 257]}).encode(), "256 characters"),
    ],
)
def test_options_that_cannot_be_used_are_named(text: bytes, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        read_options(text)
