"""Tokens that must come, or must not, as transformers has them."""

import pytest

from infer_svc.generation.rules import NO_RULES, Rules


def test_without_rules_any_token_may_come() -> None:
    assert NO_RULES.forced(0, 1) is None
    assert NO_RULES.banned([1, 1, 1, 1], 4) == frozenset()


def test_end_may_not_come_before_the_least_there_must_be() -> None:
    rules = Rules(frozenset([2, 3]), min_tokens=2)
    assert [rules.banned([7], made) for made in range(3)] == [{2, 3}, {2, 3}, frozenset()]


@pytest.mark.parametrize(
    ("size", "text", "banned"),
    [
        (1, [4, 5], {4, 5}),
        (2, [4, 5, 4], {5}),
        (3, [1, 2, 3, 9, 1, 2, 4, 1, 2], {3, 4}),
        (3, [1, 2], set()),
        (4, [1, 2, 3], set()),
        (3, [], set()),
    ],
)
def test_no_ngram_comes_twice(size: int, text: list[int], banned: set[int]) -> None:
    assert Rules(no_repeat_ngram_size=size).banned(text, len(text)) == banned


def test_first_and_last_token_are_forced_where_they_are_named() -> None:
    rules = Rules(forced_first=0, forced_last=2)
    assert [rules.forced(made, 4) for made in range(4)] == [0, None, None, 2]
    assert rules.forced(0, 1) == 0
