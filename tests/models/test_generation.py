"""The models that generate say what transformers says, whoever shares their steps."""

import asyncio
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from infer_svc.backends.machine import Machine
from infer_svc.build.builds import Builds
from infer_svc.config import Instances, ModelConfig, read_config
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
    config = read_config(MODELS / name)
    found = await said(name, MODELS / name / "1", config, Machine())
    assert found == [sample["ids"] for sample in samples(name)]


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("name", ["dates", "numbers"])
async def test_tokens_on_a_gpu_are_those_of_transformers(
    name: str, half: bool, tmp_path: Path
) -> None:
    """In FP16 but for very few: what is halfway between two tokens may become the other."""
    version = tmp_path / name / "1"
    shutil.copytree(MODELS / name / "1", version)
    for path in version.glob("*.onnx") if half else ():
        path.write_bytes(halved(path))
    config = replace(
        read_config(MODELS / name), backend="tensorrt", instances=(Instances(1, (0,)),),
        lengths=(16, 32),
    )  # fmt: skip
    machine = Machine(builds=Builds(tmp_path / "engines"))
    found = await said(name, version, config, machine)
    wanted = [sample["ids"] for sample in samples(name)]
    agreement = np.mean([a == b for a, b in zip(found, wanted, strict=True)])
    print(name, "fp16" if half else "fp32", "agreement", agreement)
    assert agreement >= (0.98 if half else 1.0)


def halved(path: Path) -> bytes:
    """Return a graph in FP16: all of its numbers have one type."""
    model = onnx.load(path)
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    serialized: bytes = model.SerializeToString()
    return serialized


async def said(name: str, version: Path, config: ModelConfig, machine: Machine) -> list[list[int]]:
    """Return what a model says to all samples at once, and so with others of any age in a step."""
    served = ModelMetrics(name, 1, 0)
    loop = asyncio.get_running_loop()
    generator = open_generator(config, version, machine, served, loop)
    chance = random.Random(1)

    async def ask(tensors: Tensors) -> list[int]:
        made: list[int] = []

        def emit(reply: Reply) -> None:
            made.extend(unpack(reply.payload)["token_ids"].tolist())

        await asyncio.sleep(chance.random() / 5)
        last = await generator.run(Request(name, b"", emit=emit), tensors)
        assert unpack(last.payload)["finish_reason"].tolist() == [b"stop"]
        return [*made, END[name]]

    texts = tokenized(name, [sample["text"] for sample in samples(name)])
    found = await asyncio.gather(*map(ask, texts))
    await asyncio.to_thread(generator.close)
    return found


def test_dates_of_samples_are_right() -> None:
    """By what transformers made: the test above says that the mesh makes the same."""
    from tokenizers import Tokenizer

    decoder = Decoder(Tokenizer.from_file(str(MODELS / "dates/tokenizer/tokenizer.json")))
    wanted = samples("dates")
    texts = [detokenize(decoder, Tail(), sample["ids"], [], final=True).text for sample in wanted]
    exact = np.mean([text == sample["iso"] for text, sample in zip(texts, wanted, strict=True)])
    assert exact >= 0.97
    assert len({sample["iso"] for sample in wanted}) > 150
