"""The handler of the infer stage: finds the model, checks tensors, queues them for a batch."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from opentelemetry.trace import Tracer

from infer_svc.backends.cuda import devices
from infer_svc.backends.machine import Machine
from infer_svc.completed import platform_of
from infer_svc.config import ModelConfig, read_config
from infer_svc.families import GpuFigures, InferMetrics
from infer_svc.generation.generator import Generator
from infer_svc.models import Models
from infer_svc.opening import Opener
from infer_svc.pool import LanePool
from infer_svc.repository import model_folders, preloaded
from infer_svc.served import Served, rows_of
from infer_svc.states import Unloaded
from infer_svc.steps import follow_parts
from mesh.arena import ALIGN, Lender
from mesh.errors import EngineError, InvalidInput, MeshError, Refused, SettingsError
from mesh.item import Reply, Request
from mesh.status import to_status
from mesh.tensor import Tensors, check_tensors, unpack
from protos.mesh.v1.stage_pb2 import Target, TargetSpec
from protos.mesh.v1.tensor_pb2 import SlotRange

log = logging.getLogger(__name__)

MAX_SLOT_BYTES = 4 * 1024 * 1024
"""All slots are as large as the largest model's row needs, if it needs no more than this."""


class InferHandler:
    """Every model of the repository, as one handler.

    Args:
        root: the model repository.
        machine: what the models may use.
        tracer: for batch spans; samples everything.
        lender: of the shared memory that tensors may come in.
        metrics: that each model is added to while it is loaded.
        preload: names of models that are loaded after the others, in the background and in this
            order; `*` stands for all that are not named. Ensembles of them come after them.
    """

    def __init__(
        self,
        root: Path,
        machine: Machine,
        tracer: Tracer,
        lender: Lender,
        metrics: InferMetrics,
        preload: Sequence[str] = (),
    ) -> None:
        self._metrics = metrics
        self._lender = lender
        self._root = root
        self._machine = machine
        opener = Opener(machine, tracer, metrics, self._run_step, self.lose)
        self.models = Models(root, opener, self.lose, self._tell_health, self._changed)
        self.models.on_close = self._ended
        self._lost = False
        self.on_lost: Callable[[str], None] = lambda reason: None
        """Called once when only a new process helps, with the reason."""
        self.on_health: Callable[[str, bool], None] = lambda model, serving: None
        """Called when a model cannot run for a while (False), and when it can again."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when a request may get another answer than before."""
        self.choose: Callable[[Sequence[Path]], Sequence[Path]] = lambda folders: folders
        """Returns the folders of those models that are loaded at the start."""
        self._preload = preload
        self._coming: list[Path] = []
        self._preloading: asyncio.Task[None] | None = None
        if machine.builds is not None:
            machine.builds.on_built = self._count_build

    async def load(self) -> None:
        """Load and warm up every model; one that cannot be is named and refused, others serve.

        Those to be preloaded follow in the background.

        Raises:
            SettingsError: there is no repository, or it lacks a model to be preloaded.
        """
        folders = self.choose(model_folders(self._root))
        self._coming = follow_parts(folders, preloaded(folders, self._preload))
        for folder in self._coming:
            self.models.announce(folder.name)
        await self.models.load_all([one for one in folders if one not in self._coming])
        slots = [_slot_bytes(served.model.config) for served in self.models.served()]
        slots += map(_declared_slot_bytes, self._coming)
        self._lender.open(max(slots, default=0))
        self._pin()
        if self._coming:
            self._preloading = asyncio.create_task(self._load_coming())

    async def __call__(self, request: Request) -> Reply:
        """Run one request; a handler as in `mesh.item`."""
        if self._lost:
            await asyncio.get_running_loop().create_future()
        served = self.models.find(request.target)
        ranges: list[SlotRange] = []

        def read(at: SlotRange) -> memoryview:
            ranges.append(at)
            return self._lender.read(at, request.client)

        with served.busy():
            reply = await _run(served, request, unpack(request.payload, read))
            for at in ranges:
                self._lender.read(at, request.client)  # else it was lent anew while the batch ran
        reply.version = str(served.model.version)
        return reply

    def lose(self, reason: str) -> None:
        """Answer nothing any more: only a new process helps.

        What is under way, and what still comes, is done elsewhere once its stream ends.

        Args:
            reason: for the log.
        """
        if not self._lost:
            self._lost = True
            log.critical("this process is of no more use", extra={"reason": reason})
            self.on_lost(reason)

    def describe(self, targets: Iterable[Target]) -> list[TargetSpec]:
        """Return what each model takes and makes; no targets: every model."""
        names = [target.name for target in targets] or self.models.names()
        return [self._describe(name) for name in names]

    async def stop_loading(self) -> None:
        """End what is built in the background, and wait for a model that is being loaded."""
        del self._coming[1:]
        if self._machine.builds is not None:
            self._machine.builds.close()
        if self._preloading is not None:
            await self._preloading
        await self.models.drain()

    def gpus(self) -> list[GpuFigures]:
        """Return what there is of each GPU that this process uses, and what it holds."""
        found = []
        for gpu in devices():
            free, whole = gpu.memory()
            usage = gpu.usage
            found.append(
                GpuFigures(
                    str(gpu.index), whole - free, whole,
                    usage.contexts, usage.pinned_bytes, usage.device_bytes,
                )
            )  # fmt: skip
        return found

    def pools(self) -> list[LanePool]:
        """Return the lanes of every model that is served now."""
        return [served.pool for served in self.models.served() if served.pool is not None]

    def generators(self) -> list[Generator]:
        """Return those that generate."""
        batchers = [served.batcher for served in self.models.served()]
        return [batcher for batcher in batchers if isinstance(batcher, Generator)]

    def close(self) -> None:
        """Let the lanes finish and end their threads, and let go of the shared memory."""
        self.models.close()
        for gpu in devices():
            gpu.unregister_all()  # last: a batch that still ran may have read from there

    def _pin(self) -> None:
        """Let the GPUs read the shared memory, so that nobody copies tensors that are there."""
        memory = self._lender.memory
        if memory is None:
            return
        for gpu in devices():
            try:
                gpu.register(memory)
            except EngineError as err:
                log.warning("shared memory is not pinned", extra={"error": str(err)})

    async def _run_step(self, request: Request, tensors: Tensors) -> Reply:
        served = self.models.find(request.target)
        with served.busy():
            return await _run(served, request, tensors)

    async def _load_coming(self) -> None:
        while self._coming:
            await self.models.try_to_load(self._coming[0].name)
            self._coming.pop(0)

    def _count_build(self, config: ModelConfig, version: int, result: str, took_s: float) -> None:
        self._metrics.add(config.name, version, config.max_rows).built(result, took_s)

    def _tell_health(self, model: str, serving: bool) -> None:
        self.on_health(model, serving)

    def _changed(self) -> None:
        """Tell others, and let nothing be built on a GPU that serves."""
        self._pin()
        placements = [one for served in self.models.served() for one in served.model.placements]
        if self._machine.builds is not None:
            self._machine.builds.serves(one.gpu for one in placements if one.gpu is not None)
        self.on_change()

    def _ended(self, served: Served) -> None:
        """Count nothing more for a version, unless it was loaded anew meanwhile."""
        metrics = [other.metrics for other in self.models.served()]
        if served.metrics is not None and served.metrics not in metrics:
            self._metrics.remove(served.metrics)

    def _describe(self, name: str) -> TargetSpec:
        spec = TargetSpec(name=name)
        try:
            served = self.models.find(name)
        except Unloaded as err:  # which will not change by itself
            spec.status.CopyFrom(to_status(Refused(str(err))))
            return spec
        except MeshError as err:
            spec.status.CopyFrom(to_status(err))
            return spec
        config = served.model.config
        spec.version = str(served.model.version)
        spec.inputs.extend(tensor.to_proto() for tensor in config.inputs)
        spec.outputs.extend(tensor.to_proto() for tensor in config.outputs)
        spec.output_bytes = sum(tensor.row_bytes() for tensor in config.outputs)
        spec.decoupled = config.decoupled
        spec.max_batch_size, spec.platform = config.max_rows, platform_of(config)
        for output, names in config.labels:
            spec.labels.add(output=output, names=names)
        spec.versions.extend(self.models.numbers(config.name))
        return spec


async def _run(served: Served, request: Request, tensors: Tensors) -> Reply:
    """Compare tensors with the model's inputs and run them."""
    config = served.model.config
    check_tensors(tensors, config.inputs)
    if config.backend == "onnxruntime":
        _demand_text(tensors)
    rows = rows_of(tensors, config.max_rows, config.name)
    skip = 1 if config.max_rows else 0
    key = tuple(tensors[spec.name].shape[skip:] for spec in config.inputs)
    return await served.batcher.run(request, tensors, key, rows)


def _demand_text(tensors: Tensors) -> None:
    """Compare BYTES with what ONNX Runtime takes, before they share a batch with others.

    Raises:
        InvalidInput: an element is no UTF-8.
    """
    for name, array in tensors.items():
        if array.dtype == object:
            try:
                for element in array.ravel().tolist():
                    element.decode()
            except UnicodeDecodeError as err:
                raise InvalidInput(
                    f"tensor {name!r} has an element that is no UTF-8 ({err}); this model runs on "
                    "ONNX Runtime, whose strings are text"
                ) from err


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
