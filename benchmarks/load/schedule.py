"""When the requests of an open loop are due."""

import random
from typing import Literal

Spacing = Literal["fixed", "poisson"]


def due_times(rate: float, seconds: float, spacing: Spacing, seed: int = 0) -> list[float]:
    """Return the seconds after the start at which requests are due, rising, below `seconds`.

    Args:
        rate: requests per second; of `poisson` the expected number.
        spacing: `fixed` has the same gap between all; `poisson` has gaps as of many clients that
            know nothing of each other.
        seed: of `poisson`.

    Raises:
        ValueError: a rate or a time that is not above 0.
    """
    if rate <= 0 or seconds <= 0:
        raise ValueError(f"rate {rate} and seconds {seconds} came, wanted both above 0")
    if spacing == "fixed":
        return [index / rate for index in range(int(rate * seconds))]
    gaps = random.Random(seed)
    times = []
    at = gaps.expovariate(rate)
    while at < seconds:
        times.append(at)
        at += gaps.expovariate(rate)
    return times
