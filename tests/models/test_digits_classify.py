"""The committed digit classifier keeps its promises."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "models" / "digits-classify"


@pytest.fixture(scope="module")
def evaluate(script: Callable[[str, str], ModuleType]) -> ModuleType:
    return script("digits-classify", "evaluate")


@pytest.fixture(scope="module")
def session(evaluate: ModuleType) -> Any:
    return evaluate.session()


def test_held_out_accuracy_is_97_percent(evaluate: ModuleType, session: Any) -> None:
    pixels, labels = evaluate.data.held_out()
    assert pixels.shape == (360, 32, 32, 3)
    assert evaluate.accuracy(session, pixels, labels) >= 0.97


def test_distorted_held_out_accuracy_is_95_percent(evaluate: ModuleType, session: Any) -> None:
    assert evaluate.accuracy(session, *evaluate.data.held_out_distorted()) >= 0.95


def test_no_digit_is_on_both_sides_of_the_split(evaluate: ModuleType) -> None:
    (train, _), (held_out, _) = evaluate.data.split()
    seen = {one.tobytes() for one in train}
    assert not [one for one in held_out if one.tobytes() in seen]


def test_one_picture_scores_the_same_alone_and_in_a_batch(
    evaluate: ModuleType, session: Any
) -> None:
    pixels = evaluate.data.held_out()[0][:32]
    alone = np.concatenate([evaluate.logits(session, one[None]) for one in pixels])
    np.testing.assert_allclose(evaluate.logits(session, pixels), alone, rtol=0, atol=1e-5)


def test_sample_picture_is_a_seven(evaluate: ModuleType, session: Any) -> None:
    sample = cv2.imread(str(FOLDER / "samples" / "digit.png"))
    assert sample is not None
    small = np.asarray(cv2.resize(sample, (32, 32), interpolation=cv2.INTER_AREA), np.uint8)
    assert evaluate.logits(session, small[None, :, :, ::-1]).argmax() == 7
