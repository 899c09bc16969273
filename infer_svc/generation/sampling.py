"""The next token of a generation, from its logits: greedy, or at random but the same every time.

Noise is a function of the seed, the position in the text and the token, so that neither who shares
the batch nor where a generation goes on after a failure changes what comes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mesh.errors import EngineError, InvalidInput

Logits = NDArray[np.floating]
_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio, odd."""
LEAST_PENALTY = 0.01
"""So that no logit becomes infinite by it."""
LEAST = -1e300
"""A score that no noise makes up for."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; names and meanings as in Hugging Face's generation config.

    Raises:
        InvalidInput: a value is outside its range.
    """

    temperature: float = 0.0
    """Logits are divided by it; 0: the best token every time."""
    top_k: int = 0
    """Only so many of the best tokens; 0: all."""
    top_p: float = 1.0
    """Only the best tokens that have this probability together."""
    seed: int = 0
    """Of the noise, 0 to 2**64 - 1."""
    repetition_penalty: float = 1.0
    """Over 1: tokens of the text so far are less likely."""

    def __post_init__(self) -> None:
        """Check the values."""
        ranges = {
            "temperature": 0 <= self.temperature <= 100, "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1, "seed": 0 <= self.seed <= _MASK,
            "repetition_penalty": LEAST_PENALTY <= self.repetition_penalty <= 100,
        }  # fmt: skip
        for name, fine in ranges.items():
            if not fine:
                raise InvalidInput(
                    f"{name} {getattr(self, name)} came, wanted temperature 0 to 100, top_k from "
                    "0, top_p over 0 to 1, seed 0 to 2**64 - 1, repetition_penalty 0.01 to 100"
                )

    @property
    def is_greedy(self) -> bool:
        """Tell whether it is the best token every time, by the logits as they are."""
        return self.temperature == 0 and self.repetition_penalty == 1


GREEDY = Sampling()


def choose(
    logits: Logits,
    best: int,
    sampling: Sampling,
    text: Sequence[int],
    banned: frozenset[int] = frozenset(),
) -> int:
    """Return the next token; of equal ones the lowest.

    Args:
        logits: [V], of the next token; -inf rules one out.
        best: the token with the largest.
        sampling: how.
        text: ids so far, prompt included; noise is that of their number.
        banned: tokens that must not come.

    Raises:
        EngineError: all are ruled out.
    """
    scores = logits
    if sampling.repetition_penalty != 1 and text:
        scores = _penalized(logits, np.unique(text), sampling.repetition_penalty)
        best = int(scores.argmax())
    if banned:
        scores = _without(scores, banned)
        best = int(scores.argmax())
    if sampling.temperature == 0:
        return best
    ids = _candidates(scores, sampling)
    # max(score + Gumbel noise) has the distribution of softmax(scores): Gumbel, 1954.
    noise = -np.log(-np.log(uniform(sampling.seed, len(text), ids)))
    return int(ids[np.argmax(_heated(scores[ids], sampling.temperature) + noise)])


def check_logit(top: float) -> None:
    """Look at the largest of the logits.

    Raises:
        EngineError: it is no finite number: a logit is NaN or +inf, or all are -inf.
    """
    if not math.isfinite(top):
        raise EngineError(f"the best logit is {top}, wanted numbers; check the model's precision")


def uniform(seed: int, position: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a number over 0 and under 1 for each id: SplitMix64 of seed, position and id.

    The mixing is that of Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014, with the constants of Stafford's variant 13.

    Args:
        seed: 0 to 2**64 - 1.
        position: from 0.
        ids: [N], from 0.
    """
    start = _mixed(np.array([(seed + _STEP) & _MASK], np.uint64))
    row = _mixed(start + np.array([(position + 1) * _STEP & _MASK], np.uint64))
    bits = _mixed(row + (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_STEP))
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _penalized(logits: Logits, seen: NDArray[np.int64], penalty: float) -> NDArray[np.float32]:
    """Return logits with ids less likely, as CTRL does (arXiv:1909.05858, section 4.1)."""
    scores = logits.astype(np.float32)
    seen = seen[(seen >= 0) & (seen < len(scores))]
    found = scores[seen]
    scores[seen] = np.where(found > 0, found / penalty, found * penalty)
    return scores


def _heated(scores: Logits, temperature: float) -> NDArray[np.float64]:
    """Return scores divided by the temperature, the best one 0: no temperature is too low."""
    wide = scores.astype(np.float64)
    with np.errstate(over="ignore"):
        heated: NDArray[np.float64] = np.maximum((wide - wide.max()) / temperature, LEAST)
    return heated


def _without(scores: Logits, banned: frozenset[int]) -> Logits:
    """Return logits with ids ruled out.

    Raises:
        EngineError: none is left.
    """
    left = scores.copy()
    left[[key for key in banned if 0 <= key < len(left)]] = -np.inf
    if left.max() == -np.inf:
        raise EngineError(f"all {len(left)} tokens are ruled out; loosen the generation config")
    return left


def _candidates(scores: Logits, sampling: Sampling) -> NDArray[np.int64]:
    """Return the ids that may be chosen, by top_k first and then by top_p."""
    ids = np.flatnonzero(scores > -np.inf)
    if 0 < sampling.top_k < len(ids):
        ids = ids[np.argsort(-scores[ids], kind="stable")[: sampling.top_k]]
    if sampling.top_p < 1:
        ids = ids[np.argsort(-scores[ids], kind="stable")]
        shares = np.exp(_heated(scores[ids], sampling.temperature))
        before = np.cumsum(shares) - shares
        ids = ids[before < sampling.top_p * shares.sum()]
    return np.sort(ids)
