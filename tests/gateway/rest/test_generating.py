"""Texts that are generated, over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import eventually
from tests.gateway import generating
from tests.gateway.rest.serving import Http, speaking


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[Http]:
    async with speaking(tmp_path) as one:
        yield one


async def events(http: Http, path: str, body: Any) -> list[Any]:
    """Return the events of a stream; `[DONE]` as it is."""
    async with http.session.post(http.url + path, json=body) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        lines = (await answer.read()).decode().split("\n\n")
    texts = [line.removeprefix("data: ") for line in lines if line]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


async def test_text_is_told_whole(http: Http) -> None:
    body = {"text_input": "Hello!", "max_tokens": 9, "parameters": {"temperature": 0.5}, "id": "r"}
    status, answer = await http.post("/v2/models/speller/generate", body)
    assert status == 200
    assert answer == {
        "model_name": "speller", "text_output": "Hello!", "id": "r", "finish_reason": "length",
        "prompt_tokens": 6, "completion_tokens": 6,
    }  # fmt: skip
    parameters = json.loads(http.mesh.infer.requests[-1].parameters)
    assert (parameters["max_tokens"], parameters["temperature"]) == (9, 0.5)


async def test_text_is_told_bit_by_bit(http: Http) -> None:
    told = await events(http, "/v2/models/speller/generate_stream", {"text_input": "Hello!"})
    assert "".join(one["text_output"] for one in told) == "Hello!"
    assert [one.get("finish_reason") for one in told] == [None] * (len(told) - 1) + ["length"]
    assert len(told) > 1


async def test_openai_completion(http: Http) -> None:
    body = {"model": "speller", "prompt": ["ab", "cde"], "stop": "zz", "seed": 3, "echo": True}
    status, answer = await http.post("/v1/completions", body)
    assert status == 200
    assert answer["object"] == "text_completion"
    assert [(one["index"], one["text"]) for one in answer["choices"]] == [
        (0, "abab"), (1, "cdecde"),
    ]  # fmt: skip
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    assert (await http.get("/v1/models"))[1]["data"][0]["id"] == "speller"


async def test_openai_completion_as_a_stream(http: Http) -> None:
    body = {
        "model": "speller", "prompt": "abc", "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    told = await events(http, "/v1/completions", body)
    assert told[-1] == "[DONE]"
    assert told[-2]["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    choices = [one["choices"][0] for one in told[:-2]]
    assert "".join(one["text"] for one in choices) == "abc"
    assert choices[-1]["finish_reason"] == "length"
    assert len({one["id"] for one in told[:-1]}) == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "part"),
    [
        ("/v2/models/none/generate", {"text_input": "x"}, 404, "'none' is not known"),
        ("/v2/models/speller/generate", {"text": "x"}, 400, "text_input"),
        ("/v2/models/speller/generate", {"text_input": "x", "best": 1}, 400, "'best'"),
        ("/v2/models/speller/generate", {"text_input": "x", "seed": -1}, 400, "'seed' is -1"),
        ("/v2/models/speller/generate_stream", {"text_input": "bad"}, 400, "'bad' came"),
        ("/v1/completions", {"model": "none", "prompt": "x"}, 404, "'none' is not known"),
        ("/v1/completions", {"model": "speller", "prompt": []}, 400, "0 prompts"),
        ("/v1/completions", {"model": "speller", "prompt": "x", "n": 2}, 400, "n:"),
        (
            "/v1/completions", {"model": "speller", "prompt": "x", "stream": True, "echo": True},
            400, "echo",
        ),
        ("/v1/completions", {"model": "speller", "prompt": "bad", "stream": True}, 400, "'bad'"),
    ],
)  # fmt: skip
async def test_bad_request_is_told_before_any_event(
    http: Http, path: str, body: Any, status: int, part: str
) -> None:
    found, answer = await http.post(path, body)
    error = answer["error"]
    text = error["message"] if isinstance(error, dict) else error
    assert (found, part in text) == (status, True)


async def test_failure_in_the_middle_is_an_event(http: Http) -> None:
    told = await events(http, "/v2/models/speller/generate_stream", {"text_input": "ab\0"})
    assert "0 came" in told[-1]["error"]


@pytest.mark.parametrize("path", ["generate", "generate_stream"])
async def test_generation_ends_when_its_client_leaves(http: Http, path: str) -> None:
    http.mesh.infer.answer = partial(generating.spell, pause_s=0.05)
    running: set[asyncio.Task[Any]] = set()
    spell = http.mesh.infer.answer

    async def note(request: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            return await spell(request)
        finally:
            running.discard(task)

    http.mesh.infer.answer = note
    asking = asyncio.create_task(
        http.post(f"/v2/models/speller/{path}", {"text_input": "x" * 1000})
    )
    await eventually(lambda: len(running) == 1)
    await asyncio.sleep(0.2)
    asking.cancel()
    await eventually(lambda: not running)
