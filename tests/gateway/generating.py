"""Stages that generate: each token is a letter, and the text is what the letters spell."""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any

import numpy as np

from gateway.detokenizer import INPUTS
from mesh.errors import InvalidInput
from mesh.item import Reply, Request
from mesh.tensor import TensorSpec, bytes_tensor, pack, unpack
from tests.gateway.stages import FakeMesh, described, running_mesh

PIPELINE = """
task: generate
preprocess: {op: tokenize}
model: speller
postprocess: {op: detokenize}
"""
IDS = (TensorSpec("input_ids", "INT64", (1, -1)), TensorSpec("attention_mask", "INT64", (1, -1)))
TEXT = TensorSpec("text", "BYTES", (1,))
TOKENIZE = described("tokenize", [TEXT], IDS)
SPELLER = described("speller", IDS, [TensorSpec("token_ids", "INT64", (-1,))], version="1")
SPELLER.decoupled = True
DETOKENIZE = described("detokenize", INPUTS, [TEXT])


async def tokenize(request: Request) -> Reply:
    """Preprocess: a letter is an id."""
    text = bytes(unpack(request.payload)["text"][0])
    if text == b"bad":
        raise InvalidInput("text: 'bad' came")
    ids = np.frombuffer(text, np.uint8).astype(np.int64)[None]
    context = pack({"token_count": np.array([ids.shape[1]], np.int32)})
    return Reply(pack({"input_ids": ids, "attention_mask": np.ones_like(ids)}), context)


async def spell(request: Request, pause_s: float = 0.0) -> Reply:
    """Infer: say the prompt again, letter by letter."""
    ids = unpack(request.payload)["input_ids"][0].tolist()
    came = unpack(request.context).get("token_ids", np.zeros(0, np.int64)).tolist()
    assert ids[: len(came)] == came
    for token in ids[len(came) :]:
        assert request.emit is not None
        request.emit(Reply(pack({"token_ids": np.array([token], np.int64)}), more=True))
        await asyncio.sleep(pause_s)
    none = np.zeros(0, np.int64)
    return Reply(pack({"token_ids": none, "finish_reason": bytes_tensor(b"length")}))


async def detokenize(request: Request) -> Reply:
    """Postprocess: as the op, but for letters; a tail has what may begin a stop string."""
    given = unpack(request.payload)
    count = len(given["final"])

    def cut(name: str, counts: str) -> list[list[Any]]:
        return [part.tolist() for part in np.split(given[name], np.cumsum(given[counts])[:-1])]

    tails, news = cut("tail_ids", "tail_counts"), cut("new_ids", "new_counts")
    stops = cut("stop", "stop_counts")
    texts, stopped, kept = [], [], []
    for tail, new, stop, final in zip(tails, news, stops, given["final"], strict=True):
        letters = bytes([*tail, *new])
        if b"\0" in letters:
            raise InvalidInput("new_ids: 0 came")
        at = min((letters.find(word) for word in stop if word in letters), default=-1)
        hold = 0 if final or not stop else min(len(letters), max(len(word) for word in stop) - 1)
        texts.append(letters[:at] if at >= 0 else letters[: len(letters) - hold])
        stopped.append(at >= 0)
        kept.append([*letters[len(letters) - hold :]] if at < 0 else [])
    return Reply(pack({
        "text": bytes_tensor(*texts), "stopped": np.array(stopped, bool),
        "tail_ids": np.array([token for tail in kept for token in tail], np.int64),
        "tail_counts": np.array([len(tail) for tail in kept], np.int32),
        "read_offset": np.zeros(count, np.int32),
    }))  # fmt: skip


def generating_mesh() -> AbstractAsyncContextManager[FakeMesh]:
    """Start the stages."""

    def prepare(mesh: FakeMesh) -> None:
        targets = (TOKENIZE, SPELLER, DETOKENIZE)
        for fake, target, answer in zip(
            mesh.fakes, targets, (tokenize, spell, detokenize), strict=True
        ):
            fake.targets = {target.name: target}
            fake.answer = answer

    return running_mesh(prepare=prepare)
