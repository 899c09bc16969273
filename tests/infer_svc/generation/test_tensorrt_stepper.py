"""Steps on a GPU: what transformers says, in slots of any age, with steps ahead of the host."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer_svc.backends.cuda import device
from infer_svc.backends.errors import DeviceLost
from infer_svc.backends.machine import Machine
from infer_svc.backends.tensorrt import TensorRTEngine
from infer_svc.backends.trt_api import Api
from infer_svc.build import graph
from infer_svc.build.builds import Builds
from infer_svc.build.copied import copied
from infer_svc.config import Instances
from infer_svc.faults import Faults
from infer_svc.generation.engines import (
    ENCODER,
    STEP,
    encoder_profiles,
    open_stepper,
    step_profile,
)
from infer_svc.generation.gpt2 import gpt2_step
from infer_svc.generation.rules import Rules
from infer_svc.generation.running import Prompt
from infer_svc.generation.sampling import Sampling
from infer_svc.generation.scheduler import Scheduler
from infer_svc.generation.stepper import OrtStepper, Stepper
from infer_svc.generation.tensorrt_stepper import TensorRTStepper
from mesh.errors import EngineError
from tests.infer_svc.backends.fake_gpu import FakeApi, FakeEngine, FakeLibcuda, fake_device
from tests.infer_svc.generation.networks import BART, GPT2, GPT2_LENGTH, SOURCE, bart_graphs
from tests.infer_svc.generation.test_generator import model_config
from tests.infer_svc.test_served import Failing

LENGTHS = (4, 8)
"""Buckets of sources beside the longest."""


class GenerationApi(FakeApi):
    """Engines with the profiles of generation."""

    def __init__(self, slots: int, *, captures_graphs: bool = True) -> None:
        super().__init__(0, captures_graphs=captures_graphs)
        self.slots = slots

    def load(self, plan: bytes) -> FakeEngine:
        engine = super().load(plan)
        specs = engine.inputs()
        engine.profiles = (
            encoder_profiles(specs, LENGTHS, SOURCE)
            if any(spec.name == "input_ids" for spec in specs)
            else [step_profile(specs, self.slots)]
        )
        engine.num_optimization_profiles = len(engine.profiles)
        return engine


@dataclass
class Opened:
    stepper: TensorRTStepper
    library: FakeLibcuda
    api: GenerationApi
    gpu: Any


Open = Callable[..., Opened]


def write_graphs(folder: Path, name: str) -> list[Path]:
    """Write the graphs of a golden network: the step, and the encoder if there is one."""
    if name == "bart":
        encoder, step = bart_graphs()
        (folder / STEP).write_bytes(step)
        (folder / ENCODER).write_bytes(encoder)
        return [folder / STEP, folder / ENCODER]
    model = gpt2_step(GPT2.config, GPT2.weights, GPT2_LENGTH, np.float32)
    (folder / STEP).write_bytes(model.SerializeToString())
    return [folder / STEP]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Open steppers on a GPU that is none, and look at what is left of them."""
    made: list[tuple[Opened, Any]] = []

    def open_one(
        name: str,
        slots: int,
        faults: Faults = Faults(),
        *,
        captures_graphs: bool = True,
        in_place: bool = True,
    ) -> Opened:
        gpu, driver, library = fake_device()
        api = GenerationApi(slots, captures_graphs=captures_graphs)
        machine = Machine(faults=faults)
        fake: Any = api
        engines = []
        for path in write_graphs(tmp_path, name):
            if not in_place:
                graph.save(copied(graph.load(path)), path)
            plan = path.with_suffix(".plan")
            plan.write_bytes(str(path).encode())
            engines.append(TensorRTEngine(fake, gpu, plan, machine))
        encoder = engines[1] if len(engines) > 1 else None
        stepper = TensorRTStepper(gpu, engines[0], encoder, slots, machine, in_place=in_place)
        made.append((Opened(stepper, library, api, gpu), driver))
        return made[-1][0]

    yield open_one
    for one, driver in made:
        one.stepper.close()
        assert (one.gpu.usage.contexts, one.gpu.usage.device_bytes) == (0, 0)
        assert driver.calls["free"] == driver.calls["mem_alloc"]
        assert driver.leaked == []


@asynccontextmanager
async def scheduling(stepper: Stepper, **options: Any) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(stepper, **options)
    yield scheduler
    await asyncio.to_thread(scheduler.close)


async def say(scheduler: Scheduler, prompt: Prompt) -> list[int]:
    tokens: list[int] = []
    await scheduler.run(prompt, tokens.append)
    return tokens


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("captures_graphs", [True, False])
@pytest.mark.parametrize("slots", [1, 3, 8])
async def test_gpt2_says_what_transformers_says(
    opened: Open, slots: int, captures_graphs: bool, in_place: bool
) -> None:
    one = opened("gpt2", slots, captures_graphs=captures_graphs, in_place=in_place)
    await assert_gpt2(one.stepper, slots)
    assert bool(one.library.calls["launch"]) != captures_graphs


async def assert_gpt2(stepper: TensorRTStepper, seed: int) -> None:
    """Ask at random times for as many tokens as chance will have it."""
    chance = random.Random(seed)

    async def ask(scheduler: Scheduler, index: int) -> None:
        await asyncio.sleep(chance.random() / 20)
        tokens = chance.randint(1, len(GPT2.made[index]))
        emitted = GPT2.made[index][: chance.randint(0, tokens - 1)]
        said = await say(scheduler, Prompt(GPT2.given[index], tokens, emitted=emitted))
        assert [*emitted, *said] == GPT2.made[index][:tokens]

    async with scheduling(stepper) as scheduler:
        await asyncio.gather(*(ask(scheduler, number % 4) for number in range(40)))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("slots", [1, 4])
async def test_bart_says_what_transformers_says(opened: Open, slots: int, in_place: bool) -> None:
    await assert_bart(opened("bart", slots, in_place=in_place).stepper)


async def assert_bart(stepper: TensorRTStepper) -> None:
    begin, end = BART.config["decoder_start_token_id"], BART.config["eos_token_id"]

    async def ask(scheduler: Scheduler, index: int) -> None:
        rules = Rules(frozenset([end]))
        said = await say(scheduler, Prompt([begin], 24, BART.given[index], rules=rules))
        wanted = BART.made[index]
        assert said == wanted[: len(said)]
        assert len(said) == 24 or wanted[len(said)] == end

    async with scheduling(stepper) as scheduler:
        await asyncio.gather(*(ask(scheduler, number % 4) for number in range(12)))


async def test_tokens_are_those_of_the_seed_beside_greedy_ones(opened: Open) -> None:
    prompts = [
        Prompt(given, 12, sampling=Sampling(temperature=1.0, seed=7) if index % 2 else Sampling())
        for index, given in enumerate(GPT2.given)
    ]
    async with (
        scheduling(ort_stepper(4)) as wanted,
        scheduling(opened("gpt2", 4).stepper) as found,
    ):
        expected = await asyncio.gather(*(say(wanted, prompt) for prompt in prompts))
        assert await asyncio.gather(*(say(found, prompt) for prompt in prompts)) == expected


def ort_stepper(slots: int) -> OrtStepper:
    model = gpt2_step(GPT2.config, GPT2.weights, GPT2_LENGTH, np.float32)
    return OrtStepper(model.SerializeToString(), slots)


def after_reading(stepper: Stepper, *pieces: list[int]) -> tuple[int, float]:
    """Return the best token after a text that is read in the last slot, and its logit."""
    slot, at = stepper.slots - 1, 0
    for piece in pieces:
        stepper.read(slot, piece, at)
        at += len(piece)
    stepper.put([0] * slot + [5], [0] * slot + [at])
    outcome = stepper.take()
    return int(outcome.best[slot]), float(outcome.top[slot])


@pytest.mark.parametrize("count", [1, 3, 4, 5, 16, 17, 40, GPT2_LENGTH - 1])
def test_text_of_any_length_is_read_in_pieces(opened: Open, count: int) -> None:
    text = [*GPT2.given[1], *GPT2.made[1], *GPT2.made[2]][:count]
    token, top = after_reading(opened("gpt2", 3).stepper, text)
    wanted, wanted_top = after_reading(ort_stepper(3), text)
    assert token == wanted
    assert top == pytest.approx(wanted_top, abs=1e-4)


@pytest.mark.parametrize("left", [1, 2, 5, 6, 15])
def test_piece_never_reaches_over_the_end_of_the_cache(opened: Open, left: int) -> None:
    text = [*GPT2.given[1], *GPT2.made[1], *GPT2.made[2]][: GPT2_LENGTH - 1]
    token, top = after_reading(opened("gpt2", 1).stepper, text[:-left], text[-left:])
    wanted, wanted_top = after_reading(ort_stepper(1), text)
    assert token == wanted
    assert top == pytest.approx(wanted_top, abs=1e-4)


def test_slot_that_is_moved_takes_its_next_token_along(opened: Open) -> None:
    stepper = opened("gpt2", 3).stepper
    stepper.read(2, GPT2.given[0][:-1], 0)
    at = len(GPT2.given[0]) - 1
    stepper.put([0, 0, GPT2.given[0][-1]], [0, 0, at])
    stepper.move(2, 0)
    said = [int(stepper.take().best[2])]
    stepper.put([None], [at + 1])
    for step in range(2, 6):
        stepper.put([None], [at + step])  # before the one ahead of it is taken
        said.append(int(stepper.take().best[0]))
    said.append(int(stepper.take().best[0]))
    assert said == GPT2.made[0][:6]


@pytest.mark.parametrize("seam", ["enqueue", "sync"])
async def test_step_that_fails_costs_no_token(opened: Open, seam: str) -> None:
    one = opened("gpt2", 2, Failing(2, seam, after=20))
    made = one.api.made
    await assert_gpt2(one.stepper, 1)
    assert one.api.made > made


async def test_gpu_that_is_lost_while_a_token_is_chosen_answers_nobody(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = opened("gpt2", 2)
    lost: list[str] = []
    scheduler = Scheduler(one.stepper, lost=lost.append)

    def gone(row: int) -> Any:
        raise DeviceLost("CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(one.stepper, "logits", gone)
    chosen = Prompt(GPT2.given[0], 5, sampling=Sampling(temperature=1.0, seed=7))
    calls = [asyncio.create_task(say(scheduler, p)) for p in (chosen, Prompt(GPT2.given[1], 5))]
    done, _ = await asyncio.wait(calls, timeout=0.3)
    assert lost == ["CUDA_ERROR_ILLEGAL_ADDRESS"]
    assert not done
    for call in calls:
        call.cancel()


async def test_gpu_that_is_lost_is_told_and_answers_nobody(opened: Open) -> None:
    one = opened("gpt2", 2)
    lost: list[str] = []
    scheduler = Scheduler(one.stepper, lost=lost.append)
    one.library.state = 700
    call = asyncio.create_task(say(scheduler, Prompt(GPT2.given[0], 5)))
    await asyncio.wait([call], timeout=0.3)
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in lost[0]
    assert not call.done()
    call.cancel()
    one.library.state = 0


def test_nothing_is_allocated_while_it_serves(opened: Open) -> None:
    one = opened("bart", 2)
    before = one.gpu.usage.allocations, one.api.made
    for _ in range(100):
        one.stepper.begin(1, BART.given[0])
        one.stepper.read(1, [2, 5, 6], 0)
        one.stepper.put([2, 7], [0, 3])
        one.stepper.take()
    assert (one.gpu.usage.allocations, one.api.made) == before


def test_memory_that_is_not_there_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    gpu, driver, _ = fake_device()
    fake: Any = GenerationApi(4)
    (path,) = write_graphs(tmp_path, "gpt2")
    plan = path.with_suffix(".plan")
    plan.write_bytes(str(path).encode())
    engine = TensorRTEngine(fake, gpu, plan, Machine())
    driver.room = 20_000
    with pytest.raises(EngineError, match="out of memory"):
        TensorRTStepper(gpu, engine, None, 4, Machine())
    assert (gpu.usage.contexts, gpu.usage.device_bytes) == (0, 0)
    assert driver.leaked == []


def test_cache_whose_rows_are_not_aligned_is_refused(tmp_path: Path) -> None:
    gpu, _, _ = fake_device()
    fake: Any = GenerationApi(4)
    model = gpt2_step(GPT2.config, GPT2.weights, GPT2_LENGTH - 1, np.float32)
    (tmp_path / STEP).write_bytes(model.SerializeToString())
    (tmp_path / "plan").write_bytes(str(tmp_path / STEP).encode())
    engine = TensorRTEngine(fake, gpu, tmp_path / "plan", Machine())
    with pytest.raises(EngineError, match="multiples of 256"):
        TensorRTStepper(gpu, engine, None, 4, Machine())


@pytest.mark.gpu
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "bart"])
async def test_on_a_gpu_it_says_what_transformers_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, in_place: bool
) -> None:
    monkeypatch.setattr(Api, "writes_caches", in_place)
    version = tmp_path / name / "1"
    version.mkdir(parents=True)
    write_graphs(version, name)
    config = replace(
        model_config(name), backend="tensorrt", instances=(Instances(1, (0,)),), slots=8,
        lengths=LENGTHS,
    )  # fmt: skip
    stepper = open_stepper(version, config, Machine(builds=Builds(tmp_path / "engines")))
    assert isinstance(stepper, TensorRTStepper)
    before = device(0).usage.allocations
    await (assert_gpt2(stepper, 5) if name == "gpt2" else assert_bart(stepper))
    assert device(0).usage.allocations == before
