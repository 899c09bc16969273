"""Looks at every model's lanes and steps now and then: those that hang, and those that idle."""

import asyncio
from collections.abc import Callable, Iterable

from infer_svc.generation.generator import Generator
from infer_svc.pool import LanePool

ROUNDS = 4
"""Looks within the shorter of the two limits."""


async def watch(
    pools: Callable[[], Iterable[LanePool]],
    generators: Callable[[], Iterable[Generator]],
    lost: Callable[[str], None],
    hang_s: float,
    probe_s: float,
) -> None:
    """Watch until cancelled.

    Args:
        pools: of the models that are served now.
        generators: as pools, of those that generate.
        lost: called when a batch does not end; no error of the GPU is needed for that.
        hang_s: seconds after which a batch that runs is taken for one that never ends.
        probe_s: seconds without work after which a lane is checked.
    """
    while True:
        await asyncio.sleep(min(hang_s, probe_s) / ROUNDS)
        for pool in list(pools()):
            lane = pool.stuck(hang_s)
            if lane is not None:
                lost(f"lane {lane.name} has worked on one batch for more than {hang_s:g} s")
                return
            pool.probe_idle(probe_s)
        if any(generator.is_stuck(hang_s) for generator in generators()):
            lost(f"a step of a generation has not ended for more than {hang_s:g} s")
            return
