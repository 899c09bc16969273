"""How far a generation is, and what it may be given next."""

import asyncio
import time

import pytest

from infer_svc.generation.rules import Rules
from infer_svc.generation.running import STOP, Prompt, Running
from infer_svc.generation.sampling import Sampling


def running(prompt: Prompt) -> Running:
    return Running(prompt, lambda _: None, asyncio.get_running_loop().create_future())


async def test_one_that_goes_on_has_what_came_in_its_text() -> None:
    one = running(Prompt([1, 2], 5, emitted=[8, 9]))
    assert (one.text, one.made, one.is_reading) == ([1, 2, 8, 9], 2, True)
    one.done = 3
    assert not one.is_reading
    assert one.wants_token


async def test_steps_under_way_count_as_tokens() -> None:
    one = running(Prompt([1], 2))
    assert one.wants_token
    one.pending, one.done = 2, 2
    assert not one.wants_token
    one.begin_anew()
    assert (one.done, one.pending, one.wants_token) == (0, 0, True)


@pytest.mark.parametrize(
    ("prompt", "chooses"),
    [
        (Prompt([1], 2), False),
        (Prompt([1], 2, rules=Rules(frozenset([2]))), False),
        (Prompt([1], 2, rules=Rules(min_tokens=1)), True),
        (Prompt([1], 2, rules=Rules(forced_last=0)), True),
        (Prompt([1], 2, rules=Rules(no_repeat_ngram_size=2)), True),
        (Prompt([1], 2, sampling=Sampling(0.5)), True),
        (Prompt([1], 2, sampling=Sampling(repetition_penalty=1.1)), True),
        (Prompt([1], 2, sampling=Sampling(top_k=5, seed=3)), False),
    ],
)
async def test_tokens_that_are_not_the_best_ones_are_chosen_here(
    prompt: Prompt, chooses: bool
) -> None:
    assert running(prompt).chooses == chooses


async def test_it_is_over_with_its_time_or_when_nobody_awaits_it() -> None:
    assert running(Prompt([1], 2, deadline=time.monotonic() - 1)).is_over
    one = running(Prompt([1], 2))
    assert not one.is_over
    one.ended = True
    assert one.is_over


async def test_end_without_a_token_is_its_first_time_too() -> None:
    finish = running(Prompt([1], 2)).finish(STOP)
    assert finish.first == finish.ended >= finish.asked
