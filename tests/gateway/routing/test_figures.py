"""What is counted of versions."""

import random
import time

import pytest

from gateway.routing.figures import Figures, Window, bucket, pack_figures, unpack_figures

KEY = ("m", "2", "canary")


def counted(*seconds: float, errors: int = 0) -> Figures:
    figures = Figures()
    for number, one in enumerate(seconds):
        figures.note(one, failed=number < errors)
    return figures


def test_percentiles_are_right_within_a_twentieth() -> None:
    chance = random.Random(3)
    seconds = sorted(chance.lognormvariate(-4, 1) for _ in range(5000))
    figures = counted(*seconds)
    for share in (0.5, 0.9, 0.99):
        assert figures.percentile(share) == pytest.approx(seconds[int(share * 5000) - 1], rel=0.06)
    assert Figures().percentile(0.99) == 0


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-9, 1e-5])
def test_no_time_is_too_short(seconds: float) -> None:
    assert bucket(seconds) == 0


def test_message_and_back() -> None:
    figures = counted(0.1, 0.2, 0.3, errors=1)
    figures.same = 2
    assert unpack_figures(pack_figures({KEY: figures})) == {KEY: figures}
    assert figures.error_rate == pytest.approx(1 / 3)
    assert Figures().error_rate == 0


def test_window_adds_processes_and_forgets_what_is_older(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    window = Window()
    window.add([{KEY: counted(0.1)}, {KEY: counted(0.2, errors=1)}], keep_s=60)
    now = 120.0
    window.add([{KEY: counted(0.3)}], keep_s=60)
    assert (window.of(KEY, 30).requests, window.of(KEY, 30).errors) == (3, 1)
    assert window.of(KEY, 10).requests == 1
    assert window.of(("m", "1", "stable"), 30).requests == 0
    now = 170.0
    window.add([], keep_s=60)
    assert window.of(KEY, 1000).requests == 1
    window.forget("other")
    window.forget("m")
    assert window.of(KEY, 1000).requests == 0
