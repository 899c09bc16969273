"""A version of a model, from its files to what runs it."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from opentelemetry.trace import Tracer

from infer_svc.backends.machine import Machine
from infer_svc.batcher import Batcher
from infer_svc.ensemble import Ensemble, Run
from infer_svc.families import InferMetrics
from infer_svc.generation.generator import open_generator, with_tensors
from infer_svc.metrics import ModelMetrics
from infer_svc.pool import LanePool
from infer_svc.repository import Model, load_model
from infer_svc.served import Served, open_lanes
from infer_svc.steps import check_steps


class Opener:
    """Loads versions, with what they share.

    Args:
        machine: what they may use.
        tracer: for batch spans; samples everything.
        metrics: that each version is added to.
        run_step: runs a request on another model, for ensembles.
        lose: called when only a new process helps, with the reason.
    """

    def __init__(
        self,
        machine: Machine,
        tracer: Tracer,
        metrics: InferMetrics,
        run_step: Run,
        lose: Callable[[str], None],
    ) -> None:
        self._machine, self._tracer, self._metrics = machine, tracer, metrics
        self._run_step, self._lose = run_step, lose

    def open(
        self,
        folder: Path,
        version: int,
        loop: asyncio.AbstractEventLoop,
        find: Callable[[str], Model],
        on_health: Callable[[bool], None],
    ) -> Served:
        """Load a version and warm it up; in a thread, as it may take minutes.

        Args:
            folder: of the model.
            version: number.
            loop: that it is used in.
            find: the models of an ensemble's steps.
            on_health: called with False when it cannot run for a while, and with True after.

        Raises:
            MeshError: it cannot be loaded; the text says why.
            DeviceLost: only a new process helps.
        """
        model = load_model(folder, self._machine, version)
        metrics = self._metrics.add(model.config.name, version, model.config.max_rows)
        if model.config.ensemble:
            model = replace(model, config=check_steps(model, find))
            steps = Ensemble(model.config, self._run_step, self._tracer, metrics)
            return Served(model, steps, None, metrics)
        if model.config.decoupled:
            return self._open_generator(model, metrics, loop)
        lanes, spares, golden = open_lanes(model, loop)
        pool = LanePool(lanes, spares, golden, metrics)
        batcher = Batcher(model.config, pool, self._tracer, metrics, self._lose, on_health)
        return Served(model, batcher, pool, metrics)

    def _open_generator(
        self, model: Model, metrics: ModelMetrics, loop: asyncio.AbstractEventLoop
    ) -> Served:
        config = with_tensors(model.config)
        version = model.folder / str(model.version)
        generator = open_generator(config, version, self._machine, metrics, loop, self._lose)
        metrics.generation = generator.metrics
        return Served(replace(model, config=config), generator, None, metrics)
