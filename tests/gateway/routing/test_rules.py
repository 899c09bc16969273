"""When a canary goes, and when it takes over."""

import pytest

from gateway.routing.figures import Figures
from gateway.routing.routes import Rule
from gateway.routing.rules import AGAIN, Judge, Verdict
from tests.gateway.routing.test_figures import counted

RULE = Rule(p99_ratio=1.5, error_rate=0.02, min_samples=20, promote_after_s=60)


def looks(
    rule: Rule, stable: Figures, canary: Figures, times: int = AGAIN, at: float = 5
) -> Verdict | None:
    judge = Judge(rule, 0)
    verdict = None
    for _ in range(times):
        verdict = verdict or judge.look(stable, canary, at)
    return verdict


def test_canary_that_is_twice_as_slow_goes() -> None:
    verdict = looks(RULE, counted(*[0.01] * 100), counted(*[0.02] * 30))
    assert verdict is not None
    assert verdict.what == "rollback"
    assert "its p99 is 2" in verdict.reason


def test_one_slow_look_is_an_accident() -> None:
    judge = Judge(RULE, 0)
    stable, slow, fast = (counted(*[s] * 100) for s in (0.01, 0.02, 0.01))
    for canary in (slow, slow, fast, slow, slow):
        assert judge.look(stable, canary, 5) is None
    assert judge.look(stable, slow, 5) is not None


def test_canary_that_fails_goes_at_once() -> None:
    verdict = looks(RULE, counted(*[0.01] * 100), counted(*[0.01] * 40, errors=3), times=1)
    assert verdict is not None
    assert "3 of 40 requests failed, 0 of 100" in verdict.reason


@pytest.mark.parametrize(
    ("stable", "canary"),
    [
        (counted(*[0.01] * 100), counted(*[9.0] * 19, errors=19)),  # too few
        (counted(*[0.01] * 19), counted(*[9.0] * 100)),
        (counted(*[0.01] * 100), counted(*[0.01] * 40, errors=2)),  # an accident
        (counted(*[0.01] * 100, errors=10), counted(*[0.01] * 100, errors=11)),  # both alike
        (counted(*[0.01] * 100), counted(*[0.014] * 100)),
    ],
)
def test_nothing_is_said_of_few_or_of_what_is_alike(stable: Figures, canary: Figures) -> None:
    assert looks(RULE, stable, canary) is None


def test_canary_takes_over_after_a_time_without_a_fault() -> None:
    good = counted(*[0.01] * 100)
    assert looks(RULE, good, good, at=59) is None
    verdict = looks(RULE, good, good, at=60)
    assert verdict is not None
    assert verdict.what == "promote"
    slow = counted(*[0.02] * 100)
    assert looks(RULE, good, slow, times=1, at=60) is None  # it is being looked at
    assert looks(RULE, good, counted(*[0.01] * 5), at=600) is None  # too few to say


def test_rule_of_nothing_ends_no_canary() -> None:
    rule = Rule(p99_ratio=0, error_rate=0, min_samples=1)
    assert looks(rule, counted(0.01), counted(*[9.0] * 50, errors=50)) is None
