"""The handler of the infer stage: finds the model, checks tensors, queues them for a batch."""

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from opentelemetry.trace import Tracer

from infer_svc.backends import Machine
from infer_svc.batcher import Batcher
from infer_svc.ensemble import Ensemble
from infer_svc.lane import Batch, Lane
from infer_svc.repository import Model, load_model, model_folders, warmup_inputs
from infer_svc.steps import check_steps, load_order
from mesh.arena import ALIGN, Lender
from mesh.errors import EngineError, InvalidInput, MeshError, NotFound, Refused
from mesh.item import Reply, Request
from mesh.status import to_status
from mesh.tensor import Tensors, check_tensors, unpack
from protos.mesh.v1.stage_pb2 import Target, TargetSpec
from protos.mesh.v1.tensor_pb2 import SlotRange

log = logging.getLogger(__name__)

MAX_SLOT_BYTES = 4 * 1024 * 1024
"""All slots are as large as the largest model's row needs, if it needs no more than this."""


@dataclass(frozen=True)
class Served:
    """A model and what runs it."""

    model: Model
    batcher: Batcher | Ensemble
    lanes: tuple[Lane, ...]
    """None for an ensemble."""


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

    async def load(self) -> None:
        """Load and warm up every model; one that cannot be is named and refused, others serve.

        Raises:
            SettingsError: there is no repository.
        """
        for folder in load_order(model_folders(self._root)):
            started = time.monotonic()
            try:
                served = await asyncio.to_thread(self._load, folder, asyncio.get_running_loop())
            except MeshError as err:
                self._broken[folder.name] = Refused(str(err))
                log.error("model refused", extra={"model": folder.name, "error": str(err)})
                continue
            self._served[folder.name] = served
            fields = {
                "model": folder.name, "version": served.model.version,
                "lanes": len(served.lanes), "s": round(time.monotonic() - started, 3),
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

        reply = await _run(served, request, unpack(request.payload, read))
        for at in ranges:
            self._lender.read(at, request.client)  # else it was lent anew while the batch ran
        return reply

    def describe(self, targets: Iterable[Target]) -> list[TargetSpec]:
        """Return what each model takes and makes; no targets: every model."""
        names = [target.name for target in targets] or sorted({*self._served, *self._broken})
        return [self._describe(name) for name in names]

    def close(self) -> None:
        """Let the lanes finish and end their threads."""
        for served in self._served.values():
            for lane in served.lanes:
                lane.close()
            for placement in served.model.placements:
                placement.engine.close()

    async def _run_step(self, request: Request, tensors: Tensors) -> Reply:
        return await _run(self._find(request.target), request, tensors)

    def _find(self, name: str) -> Served:
        served = self._served.get(name)
        if served is not None:
            return served
        if name in self._broken:
            raise Refused(str(self._broken[name]))  # a new one: it collects a traceback
        raise NotFound(f"model {name!r} is not in the repository; there are {sorted(self._served)}")

    def _load(self, folder: Path, loop: asyncio.AbstractEventLoop) -> Served:
        model = load_model(folder, self._machine)
        if model.config.ensemble:
            model = replace(model, config=check_steps(model, lambda part: self._find(part).model))
            return Served(model, Ensemble(model.config, self._run_step, self._tracer), ())
        name = model.config.name
        engines = [
            placement.engine for placement in model.placements for _ in range(placement.lanes)
        ]
        lanes = tuple(
            Lane(f"{name}-{index}", engine.open(), loop) for index, engine in enumerate(engines)
        )
        try:
            _warm_up(model, lanes)
        except BaseException:
            for lane in lanes:
                lane.close()
            raise
        return Served(model, Batcher(model.config, lanes, self._tracer), lanes)

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


async def _run(served: Served, request: Request, tensors: Tensors) -> Reply:
    """Compare tensors with the model's inputs and run them."""
    config = served.model.config
    check_tensors(tensors, config.inputs)
    rows = _rows(tensors, config.max_rows, config.name)
    skip = 1 if config.max_rows else 0
    key = tuple(tensors[spec.name].shape[skip:] for spec in config.inputs)
    return await served.batcher.run(request, tensors, key, rows)


def _slot_bytes(served: Served) -> int:
    """Return what one row of a model's inputs takes in shared memory; 0: too much or not known."""
    inputs = served.model.config.inputs
    size = sum(spec.row_bytes() + ALIGN for spec in inputs)
    return size if all(spec.row_bytes() for spec in inputs) and size <= MAX_SLOT_BYTES else 0


def _warm_up(model: Model, lanes: Iterable[Lane]) -> None:
    name = model.config.name
    for tensors, count in warmup_inputs(model):
        check_tensors(tensors, model.config.inputs)
        rows = _rows(tensors, model.config.max_rows, name)
        for lane in lanes:
            for _ in range(count):
                error = lane.run(Batch([tensors], [rows])).error
                if error is not None:
                    raise EngineError(f"a warm-up of model {name!r} failed: {error}") from error


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
