"""Generations join and leave as they like, and each gets what it would get alone."""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from infer_svc.generation.rules import Rules
from infer_svc.generation.running import LENGTH, STOP, Finish, Prompt
from infer_svc.generation.sampling import Sampling
from infer_svc.generation.scheduler import PIECE, TRIES, Scheduler
from mesh.errors import (
    DeadlineExceeded,
    EngineError,
    InternalError,
    InvalidInput,
    MeshError,
    Overloaded,
    StageUnavailable,
)
from tests.conftest import eventually
from tests.infer_svc.generation.networks import BART, GPT2, bart_stepper, gpt2_stepper


class CountingStepper:
    """Says the number of ids that a row has, modulo 100; it can be held, and made to fail.

    As on a GPU, a step has the tokens of the one before, which nobody may have taken.
    """

    def __init__(self, slots: int = 4, length: int = 500, ahead: int = 1) -> None:
        self.slots, self.length, self.source_length, self.cache_bytes = slots, length, 0, 0
        self.vocabulary, self.ahead = 100, ahead
        self.caches: list[list[int]] = [[] for _ in range(slots)]
        self.steps: list[tuple[int, list[int]]] = []
        """First slot and how many ids each row brought."""
        self.moves = self.closed = 0
        self.under_way: list[Said] = []
        self.last: list[int] = []
        self.fail: Callable[[], MeshError | None] = lambda: None
        self.gate = threading.Event()
        self.gate.set()

    def begin(self, slot: int, source: Sequence[int]) -> None:
        self.caches[slot] = []

    def read(self, slot: int, ids: Sequence[int], start: int) -> None:
        self._run(slot, [list(ids)], [start])

    def put(self, ids: Sequence[int | None], start: Sequence[int]) -> None:
        assert len(self.under_way) < self.ahead
        known = [[self.last[row] if key is None else key] for row, key in enumerate(ids)]
        self.last = self._run(0, known, start)
        self.under_way.append(Said(self.last))

    def take(self) -> "Said":
        return self.under_way.pop(0)

    def _run(self, first: int, ids: Sequence[Sequence[int]], start: Sequence[int]) -> list[int]:
        assert self.gate.wait(10)
        self.steps.append((first, [len(row) for row in ids]))
        if (error := self.fail()) is not None:
            raise error
        for row, (new, at) in enumerate(zip(ids, start, strict=True)):
            cache = self.caches[first + row]
            assert at <= len(cache) or self.under_way
            cache[at:] = new
        return [len(cache) % 100 for cache in self.caches[first : first + len(ids)]]

    def move(self, source: int, target: int) -> None:
        self.moves += 1
        self.caches[target] = list(self.caches[source])
        if self.under_way:
            self.last[target] = self.last[source]

    def reset(self) -> None:
        self.under_way.clear()

    def close(self) -> None:
        self.closed += 1


class Said:
    """What a step said."""

    def __init__(self, said: list[int]) -> None:
        self.best = np.array(said)
        self.top = np.ones(len(said), np.float32)

    def logits(self, row: int) -> NDArray[np.float32]:
        logits = np.zeros(100, np.float32)
        logits[self.best[row]] = 1
        return logits


@pytest.fixture(params=[1, 2], ids=["one-by-one", "ahead"])
async def counting(
    request: pytest.FixtureRequest,
) -> AsyncIterator[tuple[Scheduler, CountingStepper]]:
    stepper = CountingStepper(ahead=request.param)
    scheduler = Scheduler(stepper)
    yield scheduler, stepper
    stepper.gate.set()
    await asyncio.to_thread(scheduler.close)


async def collect(scheduler: Scheduler, prompt: Prompt) -> tuple[list[int], str]:
    """Return all tokens, and why there are no more."""
    tokens: list[int] = []
    finish = await scheduler.run(prompt, tokens.append)
    assert finish.asked <= finish.admitted <= finish.first <= finish.ended
    return tokens, finish.reason


async def begun(scheduler: Scheduler) -> asyncio.Task[Finish]:
    """Return a call that has its first token."""
    began = asyncio.Event()
    call = asyncio.create_task(scheduler.run(Prompt([1], 400), lambda _: began.set()))
    await began.wait()
    return call


@pytest.mark.parametrize("slots", [1, 3, 8])
async def test_gpt2_says_what_transformers_says_whoever_shares_its_steps(slots: int) -> None:
    scheduler = Scheduler(gpt2_stepper(slots))
    chance = random.Random(slots)

    async def ask(index: int) -> None:
        await asyncio.sleep(chance.random() / 20)
        tokens = chance.randint(1, len(GPT2.made[index]))
        given, made = GPT2.given[index], GPT2.made[index]
        assert await collect(scheduler, Prompt(given, tokens)) == (made[:tokens], LENGTH)

    await asyncio.gather(*(ask(number % 4) for number in range(40)))
    assert (scheduler.busy, scheduler.waiting) == (0, 0)
    await asyncio.to_thread(scheduler.close)


async def test_bart_says_what_transformers_says_and_goes_on_elsewhere() -> None:
    scheduler = Scheduler(bart_stepper(3))
    begin, end = BART.config["decoder_start_token_id"], BART.config["eos_token_id"]

    async def ask(index: int, emitted: int) -> list[int]:
        made = BART.made[index][:emitted]
        rules = Rules(frozenset([end]))
        prompt = Prompt([begin], 24, BART.given[index], made, rules)
        return made + (await collect(scheduler, prompt))[0]

    found = await asyncio.gather(*(ask(n % 4, n // 4 * 5) for n in range(16)))
    for number, tokens in enumerate(found):
        wanted = BART.made[number % 4]
        # Greedy here may say the end, which transformers was told not to.
        assert tokens == wanted[: len(tokens)]
    assert sum(len(tokens) == 24 for tokens in found) >= 8
    await asyncio.to_thread(scheduler.close)


async def test_random_tokens_are_those_of_the_seed_whoever_shares_the_steps() -> None:
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=7)
    prompt = Prompt(GPT2.given[0], 20, sampling=sampling)
    scheduler = Scheduler(gpt2_stepper(6))
    alone = (await collect(scheduler, prompt))[0]
    others = [
        Prompt(given, 24, sampling=Sampling(1.0, seed=n)) for n, given in enumerate(GPT2.given)
    ]
    found = await asyncio.gather(*(collect(scheduler, each) for each in [*others, prompt]))
    assert found[-1][0] == alone
    again = Prompt(GPT2.given[0], 20, emitted=alone[:8], sampling=sampling)
    assert (await collect(scheduler, again))[0] == alone[8:]
    await asyncio.to_thread(scheduler.close)


async def test_token_that_stops_is_not_given(
    counting: tuple[Scheduler, CountingStepper],
) -> None:
    scheduler, _ = counting
    prompt = Prompt([1, 2], 9, rules=Rules(frozenset([5])))
    assert await collect(scheduler, prompt) == ([2, 3, 4], STOP)


async def test_rules_hold_in_a_generation_that_goes_on_too(
    counting: tuple[Scheduler, CountingStepper],
) -> None:
    scheduler, _ = counting
    rules = Rules(frozenset([5]), min_tokens=4, forced_first=7, forced_last=9)
    whole, reason = await collect(scheduler, Prompt([1, 2], 6, rules=rules))
    assert (whole[0], whole[-1], len(whole), reason) == (7, 9, 6, LENGTH)
    assert 5 not in whole[:4]
    prompt = Prompt([1, 2], 6, emitted=whole[:3], rules=rules)
    assert await collect(scheduler, prompt) == (whole[3:], LENGTH)


async def test_long_text_is_read_in_pieces_between_the_steps_of_others(
    counting: tuple[Scheduler, CountingStepper],
) -> None:
    scheduler, stepper = counting
    stepper.gate.clear()
    short = asyncio.create_task(collect(scheduler, Prompt([1], 5)))
    long = asyncio.create_task(collect(scheduler, Prompt([1] * (3 * PIECE), 2)))
    await eventually(lambda: scheduler.busy == 2)
    stepper.gate.set()
    assert (await short)[0] == [1, 2, 3, 4, 5]
    assert (await long)[0] == [3 * PIECE % 100, (3 * PIECE + 1) % 100]
    pieces = [at for at, (_, counts) in enumerate(stepper.steps) if counts == [PIECE]]
    assert len(pieces) >= 2
    assert pieces[1] - pieces[0] > 1  # a step of the other came between


async def test_steps_are_no_wider_than_those_that_are_left_ask_for(
    counting: tuple[Scheduler, CountingStepper],
) -> None:
    scheduler, stepper = counting
    stepper.gate.clear()
    lengths = [3, 3, 3, 40]
    calls = [asyncio.create_task(collect(scheduler, Prompt([1], n))) for n in lengths]
    await eventually(lambda: scheduler.busy == 4)
    stepper.gate.set()
    assert [len((await call)[0]) for call in calls] == lengths
    assert stepper.moves == 1
    assert [len(counts) for _, counts in stepper.steps].count(1) >= 36


async def test_slot_of_who_leaves_off_is_free_within_two_steps(
    counting: tuple[Scheduler, CountingStepper],
) -> None:
    scheduler, stepper = counting
    for _ in range(200):
        call = await begun(scheduler)
        stepper.gate.clear()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        before = len(stepper.steps)
        stepper.gate.set()
        await eventually(lambda: scheduler.busy == 0)
        assert len(stepper.steps) - before <= 2
    assert scheduler.waiting == 0


async def test_time_that_is_over_ends_what_runs_and_what_waits(
    counting: tuple[Scheduler, CountingStepper],
) -> None:
    scheduler, stepper = counting
    stepper.gate.clear()
    soon = time.monotonic() + 0.1
    calls = [collect(scheduler, Prompt([1], 10, deadline=soon)) for _ in range(6)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DeadlineExceeded] * 6
    assert "after 0 tokens" in str(outcomes[0])
    stepper.gate.set()
    await eventually(lambda: (scheduler.busy, scheduler.waiting) == (0, 0))


async def test_clients_take_turns_for_slots(counting: tuple[Scheduler, CountingStepper]) -> None:
    scheduler, stepper = counting
    stepper.gate.clear()
    order: list[str] = []

    async def ask(client: str) -> None:
        await scheduler.run(Prompt([1], 3, client=client), lambda _: None)
        order.append(client)

    many = [asyncio.create_task(ask("many")) for _ in range(20)]
    await eventually(lambda: scheduler.waiting == 16)
    one = asyncio.create_task(ask("one"))
    await eventually(lambda: scheduler.waiting == 17)
    stepper.gate.set()
    await asyncio.gather(*many, one)
    assert order.index("one") < 10


@pytest.mark.parametrize("failing", [{0}, {3}, {2, 5}, {4, 5}])
async def test_step_that_fails_costs_no_generation_a_token(
    counting: tuple[Scheduler, CountingStepper], failing: set[int]
) -> None:
    scheduler, stepper = counting
    stepper.fail = lambda: EngineError("broke") if len(stepper.steps) - 1 in failing else None
    calls = [collect(scheduler, Prompt([1] * n, 9)) for n in (1, 3)]
    assert [tokens for tokens, _ in await asyncio.gather(*calls)] == [
        [*range(1, 10)], [*range(3, 12)],
    ]  # fmt: skip


async def test_step_that_fails_every_time_fails_those_in_it_and_the_next_ones_are_well(
    counting: tuple[Scheduler, CountingStepper],
) -> None:
    scheduler, stepper = counting
    left = [EngineError("a step broke")] * TRIES
    stepper.fail = lambda: left.pop() if left else None
    with pytest.raises(EngineError, match="a step broke"):
        await collect(scheduler, Prompt([1], 3))
    assert (await collect(scheduler, Prompt([1], 3)))[0] == [1, 2, 3]


async def test_more_than_may_wait_are_refused() -> None:
    stepper = CountingStepper(slots=1)
    scheduler = Scheduler(stepper, max_waiting=2)
    stepper.gate.clear()
    first = asyncio.create_task(collect(scheduler, Prompt([1], 2)))
    await eventually(lambda: scheduler.busy == 1)
    others = [asyncio.create_task(collect(scheduler, Prompt([1], 2))) for _ in range(2)]
    await eventually(lambda: scheduler.waiting == 2)
    with pytest.raises(Overloaded, match="2 generations wait already"):
        await collect(scheduler, Prompt([1], 2))
    stepper.gate.set()
    await asyncio.gather(first, *others)
    await asyncio.to_thread(scheduler.close)


async def one_runs_and_two_wait() -> tuple[
    Scheduler, CountingStepper, list[asyncio.Task[tuple[list[int], str]]]
]:
    """Return a scheduler whose stepper is held, and the calls."""
    stepper = CountingStepper(slots=1)
    scheduler = Scheduler(stepper)
    stepper.gate.clear()
    calls = [asyncio.create_task(collect(scheduler, Prompt([1], 400))) for _ in range(3)]
    await eventually(lambda: scheduler.busy == 1 and scheduler.waiting == 2)
    return scheduler, stepper, calls


async def test_closing_tells_those_that_run_and_those_that_wait() -> None:
    scheduler, stepper, calls = await one_runs_and_two_wait()
    closing = asyncio.create_task(asyncio.to_thread(scheduler.close))
    await asyncio.sleep(0.05)
    stepper.gate.set()
    await closing
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StageUnavailable] * 3
    with pytest.raises(StageUnavailable):
        await collect(scheduler, Prompt([1], 1))


async def test_fault_of_ours_leaves_nobody_waiting() -> None:
    scheduler, stepper, calls = await one_runs_and_two_wait()
    stepper.caches = []  # the next step raises an IndexError
    stepper.gate.set()
    outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
    assert [type(outcome) for outcome in outcomes] == [StageUnavailable] * 3
    with pytest.raises(StageUnavailable):
        await collect(scheduler, Prompt([1], 1))
    await asyncio.to_thread(scheduler.close)


async def test_fault_of_one_choice_is_of_its_generation_alone(
    counting: tuple[Scheduler, CountingStepper], monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, _ = counting

    def broken(*given: object) -> int:
        raise IndexError("a fault of ours")

    monkeypatch.setattr("infer_svc.generation.scheduler.choose", broken)
    sampled = collect(scheduler, Prompt([1], 3, sampling=Sampling(temperature=1)))
    with pytest.raises(InternalError, match="traceback"):
        await sampled
    monkeypatch.undo()
    assert (await collect(scheduler, Prompt([1], 3)))[0] == [1, 2, 3]


async def test_thread_that_ends_asks_for_a_new_process() -> None:
    lost: list[str] = []
    stepper = CountingStepper(slots=1)
    stepper.caches = []  # a step raises an IndexError
    scheduler = Scheduler(stepper, lost=lost.append)
    with pytest.raises(StageUnavailable):
        await collect(scheduler, Prompt([1], 4))
    assert len(lost) == 1
    assert "the thread of the generations ended: IndexError" in lost[0]
    await asyncio.to_thread(scheduler.close)


async def test_all_that_was_asked_for_came_but_for_the_end(
    counting: tuple[Scheduler, CountingStepper],
) -> None:
    prompt = Prompt([1], 3, emitted=[1, 2, 3])
    assert await collect(counting[0], prompt) == ([], LENGTH)
    assert counting[1].steps == []


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        (Prompt([], 1), "0 ids and 1 more came"),
        (Prompt([1], 0), "1 ids and 0 more came"),
        (Prompt([1] * 400, 101), "at most 500 together"),
        (Prompt([1], 2, emitted=[1, 2, 3]), "1 ids and -1 more came"),
        (Prompt([1], 1, [5]), "a source of 1 ids came, wanted none"),
    ],
)
async def test_prompt_that_no_slot_can_take_is_refused(
    counting: tuple[Scheduler, CountingStepper], prompt: Prompt, match: str
) -> None:
    with pytest.raises(InvalidInput, match=match):
        await collect(counting[0], prompt)
