"""A model and what runs it: its lanes, opened and warmed up."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from infer_svc.backends import Engine
from infer_svc.batcher import Batcher
from infer_svc.ensemble import Ensemble
from infer_svc.golden import Golden
from infer_svc.lane import Batch, Lane
from infer_svc.metrics import ModelMetrics
from infer_svc.pool import LanePool
from infer_svc.repository import Model, warmup_inputs
from mesh.errors import EngineError, InvalidInput
from mesh.tensor import Tensors, check_tensors

log = logging.getLogger(__name__)

TRIES = 3
"""A context that could not be opened may be opened the next time, and a warm-up may pass."""
T = TypeVar("T")


@dataclass(frozen=True)
class Served:
    """A model and what runs it."""

    model: Model
    batcher: Batcher | Ensemble
    pool: LanePool | None = None
    """None: it is an ensemble, which has no lanes of its own."""
    metrics: ModelMetrics | None = None
    """None: as above."""

    def close(self) -> None:
        """Let the lanes finish, end their threads, and give back what the engines hold."""
        for lane in self.pool.lanes if self.pool is not None else ():
            lane.close()
        for placement in self.model.placements:
            placement.engine.close()


def open_lanes(
    model: Model, loop: asyncio.AbstractEventLoop
) -> tuple[list[Lane], list[Lane], Golden | None]:
    """Open the lanes of a model and a spare of each engine, and warm them up.

    Returns:
        Lanes, spares, and a batch with its answer; None: the model has no warm-up to make one of.

    Raises:
        EngineError, InvalidInput: a context cannot be opened, or a warm-up fails.
    """
    name = model.config.name
    lanes: list[Lane] = []
    spares: list[Lane] = []
    try:
        for index, placement in enumerate(model.placements):
            for _ in range(placement.lanes):
                lanes.append(_open_lane(f"{name}-{len(lanes)}", placement.engine, loop))
            spares.append(_open_lane(f"{name}-spare-{index}", placement.engine, loop))
        golden = _warm_up(model, (*lanes, *spares))
        for placement in model.placements:
            placement.engine.settle()
        return lanes, spares, golden
    except BaseException:
        for lane in (*lanes, *spares):
            lane.close()
        raise


def rows_of(tensors: Tensors, max_rows: int, name: str) -> int:
    """Return the rows along the first axis; 1 for a model without a batch dimension."""
    if not max_rows:
        return 1
    counts = {key: len(array) for key, array in tensors.items()}
    rows = next(iter(counts.values()), 0)
    if set(counts.values()) != {rows} or not 1 <= rows <= max_rows:
        raise InvalidInput(
            f"rows {counts} came for model {name!r}, wanted the same number for each tensor, "
            f"1 to {max_rows}"
        )
    return rows


def _open_lane(name: str, engine: Engine, loop: asyncio.AbstractEventLoop) -> Lane:
    return _tried("no context", name, lambda: Lane(name, engine, loop))


def _tried(event: str, lane: str, work: Callable[[], T]) -> T:
    """Return what comes of some work; its first failures are only logged."""
    for _ in range(TRIES - 1):
        try:
            return work()
        except EngineError as err:
            log.warning(event, extra={"lane": lane, "error": str(err)})
    return work()


def _warm_up(model: Model, lanes: Iterable[Lane]) -> Golden | None:
    """Run the warm-up requests on every lane; return one with its answer."""
    name = model.config.name
    golden = None
    for tensors, count in warmup_inputs(model):
        try:
            check_tensors(tensors, model.config.inputs)
            rows = rows_of(tensors, model.config.max_rows, name)
        except InvalidInput as err:
            raise InvalidInput(f"a warm-up of model {name!r} does not fit it: {err}") from err
        for lane in lanes:
            for _ in range(count):
                _tried("warm-up failed", lane.name, partial(_run, name, lane, tensors, rows))
            golden = golden or _tried(
                "warm-up failed", lane.name, partial(Golden.record, tensors, lane.answer)
            )
    return golden


def _run(name: str, lane: Lane, tensors: Tensors, rows: int) -> None:
    error = lane.run(Batch([tensors], [rows])).error
    if error is not None:
        raise EngineError(f"a warm-up of model {name!r} failed: {error}") from error
