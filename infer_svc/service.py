"""The handler of the infer stage: finds the model, checks tensors, queues them for a batch."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.trace import Tracer

from infer_svc.backends import Engine, Machine
from infer_svc.batcher import Batcher
from infer_svc.config import ModelConfig, read_config
from infer_svc.golden import Golden
from infer_svc.lane import Batch, Lane
from infer_svc.pool import LanePool
from infer_svc.repository import (
    Model,
    load_model,
    model_folders,
    preloaded,
    warmup_inputs,
)
from mesh.arena import ALIGN, Lender
from mesh.errors import (
    EngineError,
    InvalidInput,
    MeshError,
    NotFound,
    Refused,
    SettingsError,
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
        preload: names of models that are loaded after the others, in the background and in this
            order; `*` stands for all that are not named.
    """

    def __init__(
        self,
        root: Path,
        machine: Machine,
        tracer: Tracer,
        lender: Lender,
        preload: Sequence[str] = (),
    ) -> None:
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
        self._preload = preload
        self._coming: list[Path] = []
        self._preloading: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Load and warm up every model; one that cannot be is named and refused, others serve.

        Those to be preloaded follow in the background.

        Raises:
            SettingsError: there is no repository, or it lacks a model to be preloaded.
        """
        folders = model_folders(self._root)
        self._coming = preloaded(folders, self._preload)
        for folder in folders:
            if folder not in self._coming:
                await self._load_one(folder)
        slots = [_slot_bytes(served.model.config) for served in self._served.values()]
        slots += map(_declared_slot_bytes, self._coming)
        self._lender.open(max(slots, default=0))
        self._tell_serving()
        if self._coming:
            self._preloading = asyncio.create_task(self._load_coming())

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
        coming = [folder.name for folder in self._coming]
        names = [target.name for target in targets]
        names = names or sorted({*self._served, *self._broken, *coming})
        return [self._describe(name) for name in names]

    async def stop_loading(self) -> None:
        """End what is built in the background, and wait for a model that is being loaded."""
        del self._coming[1:]
        if self._machine.builds is not None:
            self._machine.builds.close()
        if self._preloading is not None:
            await self._preloading

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
        if any(folder.name == name for folder in self._coming):
            raise StageUnavailable(f"model {name!r} is being loaded; try again in a moment")
        raise NotFound(f"model {name!r} is not in the repository; there are {sorted(self._served)}")

    async def _load_one(self, folder: Path) -> None:
        started = time.monotonic()
        try:
            served = await asyncio.to_thread(self._load, folder, asyncio.get_running_loop())
        except MeshError as err:
            self._broken[folder.name] = Refused(str(err))
            log.error("model refused", extra={"model": folder.name, "error": str(err)})
            return
        self._served[folder.name] = served
        self.on_health(folder.name, True)
        fields = {
            "model": folder.name, "version": served.model.version,
            "lanes": len(served.pool.lanes), "s": round(time.monotonic() - started, 3),
        }  # fmt: skip
        log.info("model ready", extra=fields)

    async def _load_coming(self) -> None:
        while self._coming:
            try:
                await self._load_one(self._coming[0])
            except Exception:  # a task of its own; the others are loaded all the same
                log.exception("model cannot be loaded", extra={"model": self._coming[0].name})
                self._broken[self._coming[0].name] = Refused("it cannot be loaded; see the log")
            self._coming.pop(0)
            self._tell_serving()

    def _tell_serving(self) -> None:
        """Let nothing be built on a GPU that serves."""
        placements = [one for served in self._served.values() for one in served.model.placements]
        if self._machine.builds is not None:
            self._machine.builds.serves(one.gpu for one in placements if one.gpu is not None)

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


def _declared_slot_bytes(folder: Path) -> int:
    """Return `_slot_bytes` of a model that is not loaded yet, as far as its config tells."""
    try:
        return _slot_bytes(read_config(folder))
    except SettingsError:
        return 0  # it will be refused with this error


def _slot_bytes(config: ModelConfig) -> int:
    """Return what one row of a model's inputs takes in shared memory; 0: too much or not known."""
    inputs = config.inputs
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
