"""A model and what runs it: its lanes, opened and warmed up."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from infer_svc.backends import Engine
from infer_svc.backends.errors import DeviceLost
from infer_svc.batcher import Batcher
from infer_svc.ensemble import Ensemble
from infer_svc.generation.generator import Generator
from infer_svc.golden import Golden
from infer_svc.lane import Lane
from infer_svc.metrics import ModelMetrics
from infer_svc.pool import LanePool
from infer_svc.repository import Model, warmup_inputs
from mesh.errors import EngineError, InvalidInput
from mesh.tensor import Tensors, check_tensors

log = logging.getLogger(__name__)

TRIES = 3
"""What a GPU refused once at the start may go well the next time."""

T = TypeVar("T")


@dataclass(eq=False)
class Served:
    """A version of a model and what runs it."""

    model: Model
    batcher: Batcher | Ensemble | Generator
    pool: LanePool | None = None
    """None: it has no lanes of its own, as an ensemble and a model that generates."""
    metrics: ModelMetrics | None = None
    """None: nobody counts."""
    running: int = 0
    """Requests that have no answer yet."""
    used_at: float = field(default_factory=time.monotonic)
    """When it was asked last, or began, on the clock of `time.monotonic`."""
    _idle: asyncio.Event | None = None

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.config.name

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count a request as long as it is run."""
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self.used_at = time.monotonic()
            if self._idle is not None and not self.running:
                self._idle.set()

    async def finish(self, limit_s: float) -> None:
        """Wait until no request is run any more; none comes anew.

        Args:
            limit_s: longest wait.
        """
        self._idle = asyncio.Event()
        if not self.running:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
                return
        log.warning("requests are given up", extra={"model": self.name, "items": self.running})

    def close(self) -> None:
        """Let the lanes finish, end their threads, and give back what the engines hold."""
        if isinstance(self.batcher, Generator):
            self.batcher.close()
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
        DeviceLost: only a new process helps.
    """
    name = model.config.name
    lanes: list[Lane] = []
    spares: list[Lane] = []
    try:
        for index, placement in enumerate(model.placements):
            for _ in range(placement.lanes):
                lanes.append(_open(f"{name}-{len(lanes)}", placement.engine, loop))
            spares.append(_open(f"{name}-spare-{index}", placement.engine, loop))
        golden = _warm_up(model, (*lanes, *spares))
        for placement in model.placements:
            placement.engine.settle()
        return lanes, spares, golden
    except DeviceLost:
        raise  # what ends an object of a lost GPU hangs, or ends in a signal
    except BaseException:
        for lane in (*lanes, *spares):
            lane.close()
        for placement in model.placements:
            placement.engine.close()
        raise


async def resize(served: Served, lanes: int) -> None:
    """Give a model with one engine so many lanes, while it serves.

    Raises:
        EngineError, InvalidInput: a lane cannot be opened; those that there are serve on.
        DeviceLost: only a new process helps.
    """
    pool, model = served.pool, served.model
    assert pool is not None and len(model.placements) == 1
    loop, name = asyncio.get_running_loop(), model.config.name
    if lanes > pool.size:
        engine = model.placements[0].engine

        def more() -> list[Lane]:
            made = [_open(f"{name}-{n}", engine, loop) for n in range(pool.size, lanes)]
            _warm_up(model, made)
            return made

        pool.add(await asyncio.to_thread(more))
    for lane in await pool.remove(pool.size - lanes):
        await asyncio.to_thread(lane.close)
    served.model = replace(model, placements=(replace(model.placements[0], lanes=lanes),))


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


def _open(name: str, engine: Engine, loop: asyncio.AbstractEventLoop) -> Lane:
    return _patiently(lambda: Lane(name, engine, loop))


def _warm_up(model: Model, lanes: Iterable[Lane]) -> Golden | None:
    """Run the warm-up requests on every lane; return one with its answer."""
    name = model.config.name
    golden = None
    for tensors, count in warmup_inputs(model):
        try:
            check_tensors(tensors, model.config.inputs)
            rows_of(tensors, model.config.max_rows, name)
        except InvalidInput as err:
            raise InvalidInput(f"a warm-up of model {name!r} does not fit it: {err}") from err
        for lane in lanes:
            try:
                for _ in range(count):
                    _patiently(partial(lane.answer, tensors))
                golden = golden or _patiently(partial(Golden.record, tensors, lane.answer))
            except DeviceLost:
                raise
            except Exception as err:
                raise EngineError(f"a warm-up of model {name!r} failed: {err}") from err
    return golden


def _patiently(work: Callable[[], T]) -> T:
    for _ in range(TRIES - 1):
        try:
            return work()
        except DeviceLost:
            raise
        except EngineError as err:
            log.warning("tried again", extra={"error": str(err)})
    return work()
