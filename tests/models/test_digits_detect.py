"""The committed digit detector keeps its promises."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

SAMPLES = Path(__file__).parents[2] / "models" / "digits-detect" / "samples"


@pytest.fixture(scope="module")
def evaluate(script: Callable[[str, str], ModuleType]) -> ModuleType:
    return script("digits-detect", "evaluate")


@pytest.fixture(scope="module")
def session(evaluate: ModuleType) -> Any:
    return evaluate.session()


def test_held_out_map50_is_90_percent(evaluate: ModuleType, session: Any) -> None:
    pages = evaluate.data.held_out(evaluate.PAGES)
    assert len(pages) >= 60
    assert evaluate.score(session, pages) >= 0.90


def test_score_of_the_truth_is_one_and_of_wrong_names_is_zero(evaluate: ModuleType) -> None:
    pages = evaluate.data.held_out(60)
    sure = [np.ones(len(page.labels), np.float32) for page in pages]
    right = [
        evaluate.Found(page.boxes, score, page.labels)
        for page, score in zip(pages, sure, strict=True)
    ]
    wrong = [evaluate.Found(one.boxes, one.scores, (one.labels + 1) % 10) for one in right]
    assert evaluate.mean_average_precision(right, pages) == pytest.approx(1.0)
    assert evaluate.mean_average_precision(wrong, pages) < 0.01


def test_one_page_scores_the_same_alone_and_in_a_batch(evaluate: ModuleType, session: Any) -> None:
    pixels = np.stack([page.pixels for page in evaluate.data.held_out(8)])
    alone = np.concatenate([evaluate.predict(session, one[None]) for one in pixels])
    together = evaluate.predict(session, pixels)
    np.testing.assert_allclose(together[:, 4:], alone[:, 4:], rtol=0, atol=1e-5)
    # Boxes are pixels up to 320, where float32 itself is no finer than 3e-5.
    np.testing.assert_allclose(together[:, :4], alone[:, :4], rtol=1e-5, atol=1e-3)


def test_sample_page_gives_its_nine_digits(evaluate: ModuleType, session: Any) -> None:
    sample = cv2.imread(str(SAMPLES / "page.jpg"))
    assert sample is not None
    page, _, _ = evaluate.letterbox(np.asarray(sample, np.uint8)[:, :, ::-1])
    found = evaluate.found(evaluate.predict(session, page[None])[0], 0.25)
    assert sorted(found.labels) == [0, 2, 3, 4, 5, 6, 7, 8, 9]


def test_rotated_sample_is_the_page_once_its_exif_mark_is_followed() -> None:
    page, turned = (cv2.imread(str(SAMPLES / name)) for name in ("page.jpg", "rotated.jpg"))
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    stored = cv2.imread(str(SAMPLES / "rotated.jpg"), flags)
    assert page is not None and turned is not None and stored is not None
    assert stored.shape == (1280, 960, 3)
    assert np.abs(page.astype(int) - turned.astype(int)).mean() < 2
