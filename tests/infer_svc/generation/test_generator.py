"""A model that generates as the infer stage serves it: a reply for each token, and how it ended."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer_svc.backends.machine import Machine
from infer_svc.config import Instances, ModelConfig, read_config
from infer_svc.generation.engines import ENCODER, STEP
from infer_svc.generation.generator import (
    INPUTS,
    OUTPUTS,
    Generator,
    open_generator,
    with_tensors,
)
from infer_svc.generation.gpt2 import gpt2_step
from infer_svc.generation.running import Finish, Prompt
from infer_svc.generation.scheduler import Scheduler
from infer_svc.generation.settings import FILE
from infer_svc.metrics import ModelMetrics
from mesh.errors import InvalidInput, SettingsError
from mesh.item import Reply, Request
from mesh.tensor import Tensors, TensorSpec, pack, unpack
from tests.conftest import eventually
from tests.infer_svc.generation.networks import BART, GPT2, GPT2_LENGTH, bart_graphs

SLOTS = 2


def model_config(name: str) -> ModelConfig:
    """Return what a config.pbtxt says that has nothing but the slots."""
    return ModelConfig(
        name, "onnxruntime", "", 0, INPUTS, OUTPUTS, (Instances(),), None, (), decoupled=True,
        slots=SLOTS,
    )  # fmt: skip


def write_version(folder: Path, name: str, config: dict[str, object]) -> Path:
    """Write a version of one of the golden networks."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "bart":
        encoder, step = bart_graphs()
        (folder / ENCODER).write_bytes(encoder)
        (folder / STEP).write_bytes(step)
    else:
        model = gpt2_step(GPT2.config, GPT2.weights, GPT2_LENGTH, np.float32)
        (folder / STEP).write_bytes(model.SerializeToString())
    (folder / FILE).write_text(json.dumps(config))
    return folder


@asynccontextmanager
async def opened(
    folder: Path, name: str, **config: object
) -> AsyncIterator[tuple[Generator, ModelMetrics]]:
    served = ModelMetrics(name, 1, 0)
    version = write_version(folder / "1", name, config)
    loop = asyncio.get_running_loop()
    generator = open_generator(model_config(name), version, Machine(), served, loop)
    yield generator, served
    await asyncio.to_thread(generator.close)


def tensors(ids: list[int], padding: int = 0) -> Tensors:
    mask = [1] * len(ids) + [0] * padding
    return {
        "input_ids": np.array([ids + [0] * padding], np.int64),
        "attention_mask": np.array([mask], np.int64),
    }


class Call:
    """A request, and the tokens that its replies bring."""

    def __init__(self, parameters: str = "", emitted: list[int] | None = None) -> None:
        context = b"" if emitted is None else pack({"token_ids": np.array(emitted, np.int64)})
        self.tokens: list[int] = []
        self.request = Request("m", b"", parameters.encode(), context, emit=self._take)

    def _take(self, reply: Reply) -> None:
        assert reply.more
        ids = unpack(reply.payload)["token_ids"]
        assert ids.shape == (1,)
        self.tokens += ids.tolist()

    async def run(self, generator: Generator, ids: list[int], padding: int = 0) -> Reply:
        return await generator.run(self.request, tensors(ids, padding))


async def test_each_token_has_a_reply_and_the_last_one_tells_how_it_ended(tmp_path: Path) -> None:
    async with opened(tmp_path, "gpt2") as (generator, served):
        call = Call('{"max_tokens": 6}')
        last = await call.run(generator, GPT2.given[0])
        assert call.tokens == GPT2.made[0][:6]
        answer = unpack(last.payload)
        assert (answer["token_ids"].tolist(), answer["finish_reason"].tolist()) == ([], [b"length"])
        assert not last.more
        assert last.timings is not None and last.timings.run > 0
        assert served.succeeded == 1


async def test_span_has_what_the_conventions_name(tmp_path: Path) -> None:
    async with opened(tmp_path, "gpt2") as (generator, _):
        call = Call('{"max_tokens": 5, "temperature": 0.5, "seed": 7}', [1, 2])
        told = (await call.run(generator, GPT2.given[0])).attributes
        assert told is not None
        assert told["gen_ai.request.model"] == "gpt2"
        assert told["gen_ai.usage.input_tokens"] == len(GPT2.given[0])
        assert told["gen_ai.usage.output_tokens"] == 5
        assert told["gen_ai.response.finish_reasons"] == ("length",)
        assert told["gen_ai.request.temperature"] == 0.5
        assert told["gen_ai.request.seed"] == 7


async def test_source_is_encoded_and_its_padding_left_out(tmp_path: Path) -> None:
    begin = BART.config["decoder_start_token_id"]
    async with opened(tmp_path, "bart", decoder_start_token_id=begin) as (generator, _):
        for padding in (0, 3):
            call = Call('{"max_tokens": 8}')
            await call.run(generator, BART.given[0], padding)
            assert call.tokens == BART.made[0][:8]


async def test_what_came_already_is_not_said_again(tmp_path: Path) -> None:
    async with opened(tmp_path, "gpt2", max_new_tokens=9) as (generator, _):
        call = Call("", GPT2.made[0][:4])
        await call.run(generator, GPT2.given[0])
        assert call.tokens == GPT2.made[0][4:9]


def slowly(call: Callable[..., None]) -> Callable[..., None]:
    def slow(*arguments: Any) -> None:
        time.sleep(0.02)
        call(*arguments)

    return slow


async def test_who_gives_up_is_counted_and_leaves_no_slot_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, "gpt2") as (generator, served):
        monkeypatch.setattr(generator.stepper, "put", slowly(generator.stepper.put))
        busy = generator.metrics.gauges["busy"]
        for count in range(1, 4):
            call = Call()
            running = asyncio.create_task(call.run(generator, GPT2.given[0]))
            await eventually(partial(bool, call.tokens))
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await eventually(lambda: busy() == 0)
            assert generator.metrics.finishes["cancelled"] == count
        assert served.failures == {"CANCELED": 3}


@pytest.mark.parametrize(
    ("call", "given", "match"),
    [
        (Call('{"max_tokens": 99}'), tensors([1]), "at most 48 together"),
        (Call('{"max_token": 9}'), tensors([1]), "max_token: Extra inputs"),
        (Call(), tensors([1]) | {"attention_mask": np.ones((1, 2), np.int64)}, "one of each"),
        (Call(), tensors([], padding=3), "0 ids"),
    ],
)
async def test_request_that_cannot_be_used_is_refused(
    tmp_path: Path, call: Call, given: Tensors, match: str
) -> None:
    async with opened(tmp_path, "gpt2") as (generator, served):
        with pytest.raises(InvalidInput, match=match):
            await generator.run(call.request, given)
        assert served.succeeded == 0


@pytest.mark.parametrize(("caller", "wanted"), [("g/7", "g/7"), ("", "g")])
async def test_those_behind_one_gateway_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caller: str, wanted: str
) -> None:
    async with opened(tmp_path, "gpt2") as (generator, _):
        clients: list[str] = []
        run = Scheduler.run

        async def watched(self: Scheduler, prompt: Prompt, emit: Callable[[int], None]) -> Finish:
            clients.append(prompt.client)
            return await run(self, prompt, emit)

        monkeypatch.setattr(Scheduler, "run", watched)
        call = Call('{"max_tokens": 1}')
        call.request.client, call.request.caller = "g", caller
        await call.run(generator, [1])
        assert clients == [wanted]


@pytest.mark.parametrize("context", [{"ids": [1]}, {"token_ids": [[1]]}], ids=str)
async def test_context_that_is_none_is_refused(
    tmp_path: Path, context: dict[str, list[int]]
) -> None:
    async with opened(tmp_path, "gpt2") as (generator, _):
        call = Call()
        call.request.context = pack({k: np.array(v, np.int64) for k, v in context.items()})
        with pytest.raises(InvalidInput, match="wanted token_ids"):
            await call.run(generator, [1])


async def test_encoder_without_a_token_to_start_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no decoder_start_token_id"):
        async with opened(tmp_path, "bart"):
            pass


async def test_ids_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"eos_token_id \[50256\] came"):
        async with opened(tmp_path, "gpt2", eos_token_id=50_256):
            pass


async def test_file_that_is_no_step_is_refused(tmp_path: Path) -> None:
    version = write_version(tmp_path / "1", "bart", {"decoder_start_token_id": 2})
    (version / STEP).write_bytes((version / ENCODER).read_bytes())
    (version / ENCODER).unlink()
    loop = asyncio.get_running_loop()
    with pytest.raises(SettingsError, match="wanted caches"):
        open_generator(model_config("m"), version, Machine(), ModelMetrics("m", 1, 0), loop)


def test_config_has_the_tensors_of_every_model_that_generates(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text("model_transaction_policy { decoupled: true }")
    config = with_tensors(read_config(tmp_path))
    assert (config.inputs, config.outputs) == (INPUTS, OUTPUTS)
    assert with_tensors(config) == config
    with pytest.raises(SettingsError, match="leave them out"):
        with_tensors(replace(config, inputs=(TensorSpec("x", "FP32", (1,)),)))
