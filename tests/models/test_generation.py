"""The models that generate say what transformers says, whoever shares their steps."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer_svc.config import read_config
from infer_svc.generation.generator import open_generator
from infer_svc.metrics import ModelMetrics
from mesh.item import Reply, Request
from mesh.tensor import Tensors, bytes_tensor, unpack
from postprocess_svc.ops.detokenize import Decoder, Tail, detokenize
from preprocess_svc.ops.tokenize import Tokenize

MODELS = Path(__file__).parents[2] / "models"
END = {"dates": 2, "numbers": 0}


def samples(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        (MODELS / name / "samples/expected.json").read_text(encoding="utf-8")
    )
    return found


def tokenized(name: str, texts: list[str]) -> list[Tensors]:
    op = Tokenize(folder=MODELS / name / "tokenizer", max_length=64)
    return [op({"text": bytes_tensor(text.encode())}, {}).tensors for text in texts]


@pytest.mark.parametrize("name", ["dates", "numbers"])
async def test_tokens_are_those_of_transformers(name: str) -> None:
    """All at once, and so with others of any age in each step."""
    wanted = samples(name)
    config = read_config(MODELS / name)
    served = ModelMetrics(name, 1, 0)
    loop = asyncio.get_running_loop()
    generator = open_generator(name, MODELS / name / "1", config.slots, 1, served, loop)
    chance = random.Random(1)

    async def ask(tensors: Tensors) -> list[int]:
        made: list[int] = []

        def emit(reply: Reply) -> None:
            made.extend(unpack(reply.payload)["token_ids"].tolist())

        await asyncio.sleep(chance.random() / 5)
        last = await generator.run(Request(name, b"", emit=emit), tensors)
        assert unpack(last.payload)["finish_reason"].tolist() == [b"stop"]
        return [*made, END[name]]

    texts = tokenized(name, [sample["text"] for sample in wanted])
    found = await asyncio.gather(*map(ask, texts))
    await asyncio.to_thread(generator.close)
    assert found == [sample["ids"] for sample in wanted]


def test_dates_of_samples_are_right() -> None:
    """By what transformers made: the test above says that the mesh makes the same."""
    from tokenizers import Tokenizer

    decoder = Decoder(Tokenizer.from_file(str(MODELS / "dates/tokenizer/tokenizer.json")))
    wanted = samples("dates")
    texts = [detokenize(decoder, Tail(), sample["ids"], [], final=True).text for sample in wanted]
    exact = np.mean([text == sample["iso"] for text, sample in zip(texts, wanted, strict=True)])
    assert exact >= 0.97
    assert len({sample["iso"] for sample in wanted}) > 150
