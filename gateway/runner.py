"""One item through its pipeline: credit first, then preprocess, infer, postprocess."""

import asyncio
import itertools
import logging
from contextlib import suppress
from pathlib import Path

from opentelemetry.trace import NoOpTracer, Tracer

from gateway.cache import ResponseCache, key_of
from gateway.generation import Generations
from gateway.pipeline import (
    GENERATE,
    Pipeline,
    PipelineConfig,
    Stages,
    check_pipeline,
    pipeline_files,
    read_pipelines,
)
from gateway.routing.router import Router
from gateway.stage_call import call_stage
from mesh.errors import (
    DeadlineExceeded,
    InvalidInput,
    MeshError,
    NotFound,
    Refused,
    SettingsError,
    StageUnavailable,
)
from mesh.host import Host
from mesh.item import Reply, Request, name_of, version_of
from mesh.lease import Lease
from mesh.link import Link
from protos.mesh.v1.stage_pb2 import Target

NO_TRACER = NoOpTracer()
HEALTH_EVERY_S = 0.2
ALONE = ".model"
"""Ends the name of a model that a pipeline has the name of."""
MEGABYTE = 1_000_000
RETRY_EVERY = 25
"""Health rounds after which a pipeline that is not served is looked at again."""

log = logging.getLogger(__name__)


class PipelineRunner:
    """Every pipeline of the repository, as one handler.

    Args:
        root: the model repository.
        stages: clients of the stages.
        tracer: of the process.
    """

    def __init__(self, root: Path, stages: Stages, tracer: Tracer = NO_TRACER) -> None:
        self._root = root
        self._files = pipeline_files(root)
        self._configs = read_pipelines(root)
        self._checking = asyncio.Lock()
        self._told: set[str] = set()
        """Names whose health was told."""
        self._models: dict[str, PipelineConfig | MeshError] = {}
        self.stages = stages
        self.router = Router()
        self._caches: dict[str, ResponseCache] = {}
        self._checked: list[tuple[Link, int]] = []
        """Replicas of infer, and what they had, when they were asked last."""
        self._served: dict[str, Pipeline] = {}
        self._refused: dict[str, MeshError] = {}
        self._generations = Generations(stages, tracer)

    async def __call__(self, request: Request) -> Reply:
        """Run one request; a handler as in `mesh.item`."""
        pipeline = self.find(name_of(request.target))
        config = pipeline.config
        request.deadline = min(request.deadline, request.received + config.deadline_s)
        request.check_deadline()
        if config.task == GENERATE:
            return await self._generations.run(pipeline, request)
        cache = self._cache(pipeline)
        if cache is None:
            return await self._run(pipeline, request)
        key = key_of(request, version_of(request.target)[1:] or self._version(pipeline))
        reply = cache.get(key) if self._is_current() else None
        if reply is None:
            reply = await self._run(pipeline, request)
            cache.put(key, reply)
        return reply

    async def _run(self, pipeline: Pipeline, request: Request) -> Reply:
        """Run a request through its stages."""
        infer = self.stages.infer
        # Before the picture is decoded: pixels are 10 to 100 times the bytes of a JPEG.
        lease = await infer.reserve(pipeline.model_bytes, request.deadline, request.client)
        try:
            payload, context = request.payload, b""
            if pipeline.before is not None:
                reply = await call_stage(
                    self.stages.preprocess, request, pipeline.before, payload,
                    slot=lease.take_slot(),
                )  # fmt: skip
                payload, context = reply.payload, reply.context
            reply = await self._infer(pipeline, request, payload, lease)
        finally:
            lease.release()
        version = reply.version
        if pipeline.after is None:
            return Reply(reply.payload, version=version)
        reply = await call_stage(
            self.stages.postprocess, request, pipeline.after, reply.payload, context=context
        )
        return Reply(reply.payload, version=version)

    def _cache(self, pipeline: Pipeline) -> ResponseCache | None:
        """Return the cache of a pipeline; None: it has none, or its answers are being compared."""
        size = round(pipeline.config.cache_mbytes * MEGABYTE)
        route = self.router.of(pipeline.name)
        if not size or (route is not None and (route.canary or route.shadow)):
            return None
        cache = self._caches.get(pipeline.name)
        if cache is None or cache.most_bytes != size:
            cache = self._caches[pipeline.name] = ResponseCache(pipeline.name, size)
        return cache

    def _version(self, pipeline: Pipeline) -> str:
        """Return the version that answers a request which names none."""
        route = self.router.of(pipeline.name)
        stable = route.stable if route is not None else ""
        return stable if stable in pipeline.versions else pipeline.model_version

    def _is_current(self) -> bool:
        """Tell whether no replica of infer has something new since it was asked what it has."""
        return self._editions() == self._checked

    def _editions(self) -> list[tuple[Link, int]]:
        return [(link, link.edition) for link in self.stages.infer.replicas]

    async def _infer(
        self, pipeline: Pipeline, request: Request, payload: bytes, lease: Lease
    ) -> Reply:
        """Run the version that the request names, or that the pipeline's route says."""
        infer, model = self.stages.infer, pipeline.config.model
        version = version_of(request.target)
        route = None if version else self.router.of(pipeline.name)
        if route is None:
            target = Target(name=f"{model}{version}", parameters=request.parameters)
            return await call_stage(infer, request, target, payload, lease=lease)
        whole = lease.inline(payload)  # it may be sent several times
        leases = [lease]

        async def ask(version: str) -> Reply:
            name = f"{model}/{version}" if version else model
            target = Target(name=name, parameters=request.parameters)
            own = leases.pop() if leases else None
            return await call_stage(infer, request, target, whole, lease=own)

        return await self.router.run(route, pipeline.versions, request, ask)

    def find(self, name: str) -> Pipeline:
        """Return a pipeline by its name.

        Raises:
            NotFound: there is none.
            Refused: it does not fit its stages.
            StageUnavailable: the stages were not asked yet.
        """
        pipeline = self._served.get(name)
        if pipeline is not None:
            return pipeline
        if name in self._refused:
            raise Refused(str(self._refused[name]))  # one raised twice keeps every traceback
        if name in self._configs or name in self._models:
            raise StageUnavailable(f"pipeline {name!r} waits for its stages; try again in a moment")
        raise NotFound(f"pipeline {name!r} is not known; there are {self.models()}")

    def find_task(self, task: str, name: str) -> Pipeline:
        """Return the pipeline of a typed call.

        Args:
            task: that the call is for.
            name: as the caller gave it; empty: the only pipeline with that task.

        Raises:
            NotFound: there is none.
            InvalidInput: it has another task, or several have this one and none was named.
        """
        if name:
            pipeline = self.find(name)
            if pipeline.config.task != task:
                raise InvalidInput(
                    f"pipeline {name!r} has the task {pipeline.config.task!r}, this call is for "
                    f"{task!r}; use Run"
                )
            return pipeline
        able = self.of_task(task)
        names = [name for name in able if name not in self._refused] or able
        if len(names) > 1:
            raise InvalidInput(f"name one of the pipelines {names}, as several do {task!r}")
        if not names:
            raise NotFound(f"no pipeline has the task {task!r}")
        return self.find(names[0])

    def names(self) -> list[str]:
        """Return the names of all pipelines, served or not."""
        return sorted(self._configs)

    def models(self) -> list[str]:
        """Return the names of all pipelines, and of the models as such."""
        return sorted({*self._configs, *self._models})

    def of_task(self, task: str) -> list[str]:
        """Return the names of the pipelines with a task, served or not."""
        return [
            name
            for name, config in sorted(self._configs.items())
            if isinstance(config, PipelineConfig) and config.task == task
        ]

    def is_alone(self, name: str) -> bool:
        """Tell whether a name is that of a model as such."""
        return name in self._models

    def model_of(self, name: str) -> str:
        """Return the name of the model of a pipeline or of a model alone; empty: there is none."""
        config = self._configs.get(name) or self._models.get(name)
        return config.model if isinstance(config, PipelineConfig) else ""

    def bounded(self) -> list[str]:
        """Return the names of those whose latency tells of their load: a text takes its time."""
        return [
            name
            for name, config in sorted(self._configs.items())
            if not isinstance(config, PipelineConfig) or config.task != GENERATE
        ]

    def is_ready(self, name: str) -> bool:
        """Tell whether requests to a pipeline can be answered now."""
        return name in self._served and all(client.replicas for client in self.stages.all())

    async def watch(self, host: Host) -> None:
        """Check pipelines and tell their health, overall and each by name, until cancelled."""
        checked: list[tuple[Link, int]] = []
        checking: asyncio.Task[None] | None = None
        try:
            for tick in itertools.count():
                replicas = [
                    (link, link.edition) for client in self.stages.all() for link in client.replicas
                ]
                if tick % RETRY_EVERY == 0 and await asyncio.to_thread(self._read):
                    checked = []
                unserved = not self._configs.keys() <= self._served.keys()
                due = replicas != checked or (unserved and tick % RETRY_EVERY == 0)
                if checking is not None and checking.done():
                    checking.result()
                    checking = None
                if due and checking is None:
                    checked = replicas
                    # Health does not wait for it: a stage may take seconds to load a file.
                    checking = asyncio.create_task(self.check())
                self._tell(host)
                await asyncio.sleep(HEALTH_EVERY_S)
        finally:
            if checking is not None:
                checking.cancel()

    def _tell(self, host: Host) -> None:
        ready = {name: self.is_ready(name) for name in self._configs}
        for name in self._told - ready.keys():
            host.set_health(name, False)
        self._told = set(ready)
        for name, serving in ready.items():
            host.set_health(name, serving)
        # A refused pipeline is told by name; it does not take the others out of service.
        served = [ready[name] for name in self._configs if name in self._served]
        host.set_health("", all(served) and any(ready.values()))

    async def check(self) -> None:
        """Compare every pipeline with its stages, and serve or refuse it; models alone, too."""
        async with self._checking:
            await self._check_all()

    async def refresh(self) -> None:
        """Know what the files and the stages say now."""
        await asyncio.to_thread(self._read)
        await self.check()

    def _read(self) -> bool:
        """Read the pipelines' files again where one has changed; tell whether one has."""
        try:
            files = pipeline_files(self._root)
            if files == self._files:
                return False
            configs = read_pipelines(self._root)
        except (OSError, SettingsError) as err:
            log.warning("pipelines stay as they are", extra={"error": str(err)})
            return False
        self._configs, self._files = configs, files
        return True

    async def _check_all(self) -> None:
        editions = self._editions()
        await self._find_models()
        for name in self._served.keys() | self._refused.keys():
            if name not in self._configs and name not in self._models:
                self._served.pop(name, None)
                self._refused.pop(name, None)
        everything = {**self._models, **self._configs}
        await asyncio.gather(*(self._check(*item) for item in everything.items()))
        self._checked = editions

    async def _find_models(self) -> None:
        """Look which models there are: each is a pipeline of its own, with tensors in and out."""
        if not self.stages.infer.replicas:
            return
        with suppress(MeshError):
            told = await self.stages.infer.describe([])
            served = [one.name for one in told.targets if not (one.decoupled or one.status.code)]
            self._models = {
                f"{name}{ALONE}" if name in self._configs else name: PipelineConfig(model=name)
                for name in served
            }

    async def _check(self, name: str, config: PipelineConfig | MeshError) -> None:
        try:
            if isinstance(config, MeshError):
                raise Refused(str(config))
            if not all(client.replicas for client in self.stages.all()):
                return  # nobody to ask, and health must not wait for an answer
            pipeline = await check_pipeline(name, config, self.stages)
        except (StageUnavailable, DeadlineExceeded):
            return  # asked again soon; what was served stays so
        except MeshError as err:
            if str(err) != str(self._refused.get(name)):
                log.error("pipeline refused", extra={"pipeline": name, "error": str(err)})
            self._served.pop(name, None)
            self._refused[name] = Refused(str(err))
            return
        if name not in self._served and name in self._configs:
            log.info("pipeline ready", extra={"pipeline": name})
        self._refused.pop(name, None)
        self._served[name] = pipeline
