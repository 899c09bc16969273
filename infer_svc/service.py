"""The handler of the infer stage: finds the model, checks tensors, queues them for a batch."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.trace import Tracer

from infer_svc.backends import Engine, Machine
from infer_svc.batcher import Batcher
from infer_svc.golden import Golden
from infer_svc.lane import Batch, Lane
from infer_svc.pool import LanePool
from infer_svc.repository import Model, load_model, model_folders, warmup_inputs
from mesh.arena import ALIGN, Lender
from mesh.errors import (
    EngineError,
    InvalidInput,
    MeshError,
    NotFound,
    Refused,
    StageUnavailable,
)
from mesh.item import Reply, Request
from mesh.status import to_status
from mesh.tensor import Tensors, check_tensors, unpack
from protos.mesh.v1.stage_pb2 import Target, TargetSpec
from protos.mesh.v1.tensor_pb2 import SlotRange

log = logging.getLogger(__name__)

MAX_SLOT_BYTES = 4 * 1024 * 1024
"""All slots are as large as the largest model's row needs, if it needs no more than this."""

OPEN_TRIES = 3
"""A context that could not be opened may be opened the next time."""


@dataclass(frozen=True)
class Served:
    """A model and what runs it."""

    model: Model
    batcher: Batcher
    pool: LanePool


class InferHandler:
    """Every model of the repository, as one handler.

    Args:
        root: the model repository.
        machine: what the models may use.
        tracer: for batch spans; samples everything.
        lender: of the shared memory that tensors may come in.
    """

    def __init__(self, root: Path, machine: Machine, tracer: Tracer, lender: Lender) -> None:
        self._lender = lender
        self._root = root
        self._machine = machine
        self._tracer = tracer
        self._served: dict[str, Served] = {}
        self._broken: dict[str, MeshError] = {}
        self._lost = ""
        self.on_lost: Callable[[str], None] = lambda reason: None
        """Called once when only a new process helps, with the reason."""
        self.on_health: Callable[[str, bool], None] = lambda model, serving: None
        """Called when a model cannot run for a while (False), and when it can again."""

    async def load(self) -> None:
        """Load and warm up every model; one that cannot be is named and refused, others serve.

        Raises:
            SettingsError: there is no repository.
        """
        for folder in model_folders(self._root):
            started = time.monotonic()
            try:
                served = await asyncio.to_thread(self._load, folder, asyncio.get_running_loop())
            except MeshError as err:
                self._broken[folder.name] = Refused(str(err))
                log.error("model refused", extra={"model": folder.name, "error": str(err)})
                continue
            self._served[folder.name] = served
            self.on_health(folder.name, True)
            fields = {
                "model": folder.name, "version": served.model.version,
                "lanes": len(served.pool.lanes), "s": round(time.monotonic() - started, 3),
            }  # fmt: skip
            log.info("model ready", extra=fields)
        self._lender.open(max(map(_slot_bytes, self._served.values()), default=0))

    async def __call__(self, request: Request) -> Reply:
        """Run one request; a handler as in `mesh.item`."""
        served = self._find(request.target)
        ranges: list[SlotRange] = []

        def read(at: SlotRange) -> memoryview:
            ranges.append(at)
            return self._lender.read(at, request.client)

        tensors = unpack(request.payload, read)
        config = served.model.config
        check_tensors(tensors, config.inputs)
        rows = _rows(tensors, config.max_rows, config.name)
        skip = 1 if config.max_rows else 0
        key = tuple(tensors[spec.name].shape[skip:] for spec in config.inputs)
        reply = await served.batcher.run(request, tensors, key, rows)
        for at in ranges:
            self._lender.read(at, request.client)  # else it was lent anew while the batch ran
        return reply

    def lose(self, reason: str) -> None:
        """Fail what is under way, so that it is done elsewhere, and take no more: the GPU is lost.

        Args:
            reason: for the log and the callers.
        """
        if self._lost:
            return
        self._lost = reason
        log.critical("this process is of no more use", extra={"reason": reason})
        for served in self._served.values():
            served.batcher.abandon(StageUnavailable(f"this replica starts anew: {reason}"))
        self.on_lost(reason)

    def describe(self, targets: Iterable[Target]) -> list[TargetSpec]:
        """Return what each model takes and makes; no targets: every model."""
        names = [target.name for target in targets] or sorted({*self._served, *self._broken})
        return [self._describe(name) for name in names]

    def pools(self) -> list[LanePool]:
        """Return the lanes of every model that is served now."""
        return [served.pool for served in self._served.values()]

    def close(self) -> None:
        """Let the lanes finish and end their threads."""
        for served in self._served.values():
            for lane in served.pool.lanes:
                lane.close()
            for placement in served.model.placements:
                placement.engine.close()

    def _find(self, name: str) -> Served:
        if self._lost:
            raise StageUnavailable(f"this replica starts anew: {self._lost}")
        served = self._served.get(name)
        if served is not None:
            return served
        if name in self._broken:
            raise Refused(str(self._broken[name]))  # a new one: it collects a traceback
        raise NotFound(f"model {name!r} is not in the repository; there are {sorted(self._served)}")

    def _load(self, folder: Path, loop: asyncio.AbstractEventLoop) -> Served:
        model = load_model(folder, self._machine)
        name = model.config.name
        lanes: list[Lane] = []
        spares: list[Lane] = []
        try:
            for index, placement in enumerate(model.placements):
                for _ in range(placement.lanes):
                    lanes.append(_open_lane(f"{name}-{len(lanes)}", placement.engine, loop))
                spares.append(_open_lane(f"{name}-spare-{index}", placement.engine, loop))
            golden = _warm_up(model, (*lanes, *spares))
        except BaseException:
            for lane in (*lanes, *spares):
                lane.close()
            raise
        pool = LanePool(lanes, spares, golden)
        batcher = Batcher(
            model.config, pool, self._tracer, self.lose, lambda on: self.on_health(name, on)
        )
        return Served(model, batcher, pool)

    def _describe(self, name: str) -> TargetSpec:
        spec = TargetSpec(name=name)
        try:
            served = self._find(name)
        except MeshError as err:
            spec.status.CopyFrom(to_status(err))
            return spec
        config = served.model.config
        spec.version = str(served.model.version)
        spec.inputs.extend(tensor.to_proto() for tensor in config.inputs)
        spec.outputs.extend(tensor.to_proto() for tensor in config.outputs)
        spec.output_bytes = sum(tensor.row_bytes() for tensor in config.outputs)
        return spec


def _slot_bytes(served: Served) -> int:
    """Return what one row of a model's inputs takes in shared memory; 0: too much or not known."""
    inputs = served.model.config.inputs
    size = sum(spec.row_bytes() + ALIGN for spec in inputs)
    return size if all(spec.row_bytes() for spec in inputs) and size <= MAX_SLOT_BYTES else 0


def _open_lane(name: str, engine: Engine, loop: asyncio.AbstractEventLoop) -> Lane:
    for _ in range(OPEN_TRIES - 1):
        try:
            return Lane(name, engine, loop)
        except EngineError as err:
            log.warning("no context", extra={"lane": name, "error": str(err)})
    return Lane(name, engine, loop)


def _warm_up(model: Model, lanes: Iterable[Lane]) -> Golden | None:
    """Run the warm-up requests on every lane; return one with its answer."""
    name = model.config.name
    golden = None
    for tensors, count in warmup_inputs(model):
        check_tensors(tensors, model.config.inputs)
        rows = _rows(tensors, model.config.max_rows, name)
        for lane in lanes:
            for _ in range(count):
                error = lane.run(Batch([tensors], [rows])).error
                if error is not None:
                    raise EngineError(f"a warm-up of model {name!r} failed: {error}") from error
            golden = golden or Golden.record(tensors, lane.answer)
    return golden


def _rows(tensors: Tensors, max_rows: int, name: str) -> int:
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
