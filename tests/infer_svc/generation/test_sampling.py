"""Tokens are chosen with the probabilities that were asked for, and the same every time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from infer_svc.generation.sampling import Sampling, check_logit, uniform
from infer_svc.generation.sampling import choose as choose_given_best
from mesh.errors import EngineError, InvalidInput

LOGITS = np.array([1.0, 0.5, -1.0, 2.0, 0.0, -3.0], np.float32)
MANY = 8_000


def choose(logits: NDArray[Any], sampling: Sampling, text: Sequence[int], position: int) -> int:
    """Choose after a text that is filled up to a position."""
    filled = [*text, *[10**6] * (position - len(text))]
    return choose_given_best(logits, int(logits.argmax()), sampling, filled)


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    powers: NDArray[np.float64] = np.exp(logits.astype(np.float64) - logits.max())
    powers /= powers.sum()
    return powers


def shares(sampling: dict[str, Any], logits: NDArray[Any] = LOGITS) -> NDArray[np.float64]:
    """Return how often each token comes, half over seeds, half over positions."""
    half = MANY // 2
    found = [choose(logits, Sampling(seed=seed, **sampling), [], 7) for seed in range(half)]
    fixed = Sampling(seed=12345, **sampling)
    found += [choose(logits, fixed, [], position) for position in range(half)]
    return np.bincount(found, minlength=len(logits)) / MANY


def assert_near(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> None:
    """Within five standard deviations of what chance allows."""
    limit = 5 * np.sqrt(wanted * (1 - wanted) / MANY) + 1e-12
    assert (np.abs(found - wanted) <= limit).all(), (found, wanted)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_come_as_often_as_softmax_says(temperature: float) -> None:
    assert_near(shares({"temperature": temperature}), softmax(LOGITS / temperature))


def test_top_k_keeps_the_best_tokens() -> None:
    kept = softmax(np.where(LOGITS >= 0.5, LOGITS, -np.inf))
    assert_near(shares({"temperature": 1.0, "top_k": 3}), kept)


def test_top_p_keeps_the_fewest_tokens_that_have_that_probability() -> None:
    order = np.argsort(-LOGITS)
    cumulative = np.cumsum(softmax(LOGITS)[order])
    for count, p in enumerate(cumulative[:-1], 1):
        kept = np.full(len(LOGITS), -np.inf)
        kept[order[:count]] = LOGITS[order[:count]]
        assert_near(shares({"temperature": 1.0, "top_p": p - 1e-6}), softmax(kept))
    assert choose(LOGITS, Sampling(temperature=1.0, top_p=1e-9), [], 0) == 3


@given(seed=st.integers(0, 2**64 - 1), position=st.integers(2, 5000))
def test_choice_is_that_of_seed_and_position_alone(seed: int, position: int) -> None:
    sampling = Sampling(temperature=1.0, seed=seed)
    first = choose(LOGITS, sampling, [1, 2], position)
    assert choose(LOGITS.copy(), sampling, [5], position) == first
    # What was ruled out is as if it was not there: noise belongs to tokens.
    lost = LOGITS.copy()
    lost[0 if first else 1] = -np.inf
    assert choose(lost, sampling, [], position) == first


def test_noise_is_uniform_and_none_repeats() -> None:
    ids = np.arange(300)
    rows = [uniform(seed, position, ids) for seed in (0, 1, 2**63) for position in range(100)]
    noise = np.concatenate(rows)
    assert noise.min() > 0
    assert noise.max() < 1
    assert len(np.unique(noise)) == len(noise)
    counts = np.histogram(noise, 100, (0, 1))[0]
    expected = len(noise) / 100
    assert np.sum((counts - expected) ** 2 / expected) < 160  # chi-square of 99: p = 1e-4
    grid = np.stack(rows)
    for other in (grid[1:], np.roll(grid, 1, 1)[1:]):
        assert abs(np.corrcoef(grid[:-1].ravel(), other.ravel())[0, 1]) < 0.02


def test_greedy_takes_the_lowest_of_equal_tokens_in_any_precision() -> None:
    logits = np.array([0, 3, 1, 3], np.float16)
    assert choose(logits, Sampling(), [], 0) == 1


@pytest.mark.parametrize(("text", "wanted"), [([], 3), ([3], 0), ([3, 3, 0, 99, -1], 1)])
def test_repetition_makes_tokens_less_likely(text: list[int], wanted: int) -> None:
    assert choose(LOGITS, Sampling(repetition_penalty=5), text, 0) == wanted
    assert choose(-1 / (LOGITS + 4), Sampling(repetition_penalty=9), [3], 0) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logit_that_is_no_number_is_the_models_fault(value: float) -> None:
    with pytest.raises(EngineError, match="the best logit is"):
        check_logit(value)
    check_logit(-1e30)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-6])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_no_temperature_is_too_low(temperature: float, top_p: float) -> None:
    logits = np.array([-6e4, 6e4, -np.inf, 5e4], np.float32)
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=3)
    assert {choose(logits, sampling, [], place) for place in range(20)} == {1}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_token_that_is_banned_does_not_come(temperature: float) -> None:
    sampling = Sampling(temperature=temperature)
    best = int(LOGITS.argmax())
    found = {
        choose_given_best(LOGITS, best, sampling, [0] * place, frozenset([best, 99, -1]))
        for place in range(50)
    }
    assert best not in found
    second = int(np.argsort(LOGITS)[-2])
    assert second in found
    with pytest.raises(EngineError, match="all 6 tokens are ruled out"):
        choose_given_best(LOGITS, best, sampling, [], frozenset(range(6)))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": 101}, {"top_k": -1},
        {"top_p": 0}, {"top_p": 1.1}, {"seed": -1}, {"seed": 2**64}, {"repetition_penalty": 0},
    ],
    ids=str,
)  # fmt: skip
def test_value_outside_its_range_is_named(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(InvalidInput, match=f"^{name} .* came, wanted"):
        Sampling(**values)
