"""What a rule says of a canary."""

from dataclasses import dataclass
from typing import Literal

from gateway.routing.figures import Figures
from gateway.routing.routes import Rule

AGAIN = 3
"""A p99 that is too high counts when it is so in so many looks one after the other: of few requests
it is what the slowest one took."""
LEAST_ERRORS = 3
"""So many failures are no accident."""


@dataclass(frozen=True)
class Verdict:
    """What is to be done, and why."""

    what: Literal["promote", "rollback"]
    reason: str


class Judge:
    """Looks at one canary again and again, until there is something to do.

    Args:
        rule: of its route.
        began: when it began, on any clock.
    """

    def __init__(self, rule: Rule, began: float) -> None:
        self._rule = rule
        self._began = began
        self._slow_looks = 0

    def look(self, stable: Figures, canary: Figures, now: float) -> Verdict | None:
        """Return what is to be done now; None: nothing.

        Args:
            stable: of the rule's window.
            canary: of the same seconds.
            now: on the clock of `began`.
        """
        rule = self._rule
        more = canary.error_rate - stable.error_rate
        enough = canary.requests >= rule.min_samples
        if rule.error_rate and canary.errors >= LEAST_ERRORS and enough and more > rule.error_rate:
            return Verdict(
                "rollback",
                f"{canary.errors} of {canary.requests} requests failed, {stable.errors} of "
                f"{stable.requests} of the stable version; allowed are {rule.error_rate:.1%} more",
            )
        if not enough or stable.requests < rule.min_samples:
            return None
        mine, theirs = canary.percentile(0.99), stable.percentile(0.99)
        slow = bool(rule.p99_ratio) and theirs > 0 and mine > rule.p99_ratio * theirs
        self._slow_looks = self._slow_looks + 1 if slow else 0
        if self._slow_looks >= AGAIN:
            return Verdict(
                "rollback",
                f"its p99 is {mine * 1e3:.1f} ms, that of the stable version {theirs * 1e3:.1f}; "
                f"allowed is {rule.p99_ratio:g} times as much",
            )
        if rule.promote_after_s and not slow and now - self._began >= rule.promote_after_s:
            return Verdict("promote", f"{rule.promote_after_s:g} s without a fault")
        return None
