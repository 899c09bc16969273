"""Pipelines and models alone, as the Open Inference Protocol shows them.

A pipeline is a model. A model alone is `<name>`, or `<name>.model` where a pipeline has its name.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as oip

from gateway.pipeline import GENERATE, Pipeline
from gateway.runner import ALONE, PipelineRunner
from gateway.scrape import ANSWER_S
from mesh.errors import MeshError, NotFound, StageUnavailable
from mesh.families import ask_metrics, unpack_families
from mesh.oip.catalog import Entry, Model
from mesh.oip.service import NAME, load_parameters, taken
from mesh.oip.statistics import Sums, add_samples, model_statistics
from mesh.unary import ask
from protos.mesh.v1.stage_pb2 import MetricsResponse

LOAD_S = 3600.0
"""Longest time until a model serves; an engine may have to be built."""

log = logging.getLogger(__name__)


class PipelineCatalog:
    """The models of a gateway.

    Args:
        runner: of the pipelines.
        refresh: returns once every data worker knows what the stages serve now.
    """

    def __init__(self, runner: PipelineRunner, refresh: Callable[[], Awaitable[None]]) -> None:
        self._runner = runner
        self._refresh = refresh

    def is_ready(self) -> bool:
        """Tell whether any pipeline is answered."""
        return any(self._runner.is_ready(name) for name in self._runner.names())

    def find(self, name: str, version: str) -> Model:
        """Return a model that serves; as in `mesh.oip.catalog.Catalog`."""
        pipeline = self._runner.find(name)
        if version and version not in pipeline.versions:
            raise NotFound(
                f"version {version!r} of model {name!r} is not served, but "
                f"{', '.join(pipeline.versions)}"
            )
        return Model(
            name=name,
            version=version or pipeline.model_version,
            versions=pipeline.versions,
            platform=pipeline.platform,
            inputs=pipeline.inputs,
            outputs=pipeline.outputs,
            target=f"{name}/{version}" if version else name,
            splits=pipeline.before is not None,
            decoupled=pipeline.config.task == GENERATE,
            labels=pipeline.labels,
            batched=pipeline.batched,
        )

    def serves(self, model: Model) -> bool:
        """Tell whether requests to a model are answered now."""
        return self._runner.is_ready(model.name)

    async def config(self, model: Model) -> Any:
        """Return a model's config as infer has it, or the inputs and outputs around its ops."""
        pipeline = self._runner.find(model.name)
        if pipeline.before is None and pipeline.after is None:
            request = oip.ModelConfigRequest(name=pipeline.config.model, version=model.version)
            answers = await self._ask("ModelConfig", request, ANSWER_S, first=True)
            told = oip.ModelConfigResponse.FromString(answers[0]).config
            told.name = model.name
            return told
        config = model_config_pb2.ModelConfig(name=model.name, platform=model.platform)
        for target, specs in ((config.input, taken(model)), (config.output, model.outputs)):
            for spec in specs:
                kind = f"TYPE_{spec.dtype.replace('BYTES', 'STRING')}"
                number = model_config_pb2.DataType.Value(kind)
                target.add(name=spec.name, data_type=number, dims=spec.shape)
        config.model_transaction_policy.decoupled = model.decoupled
        return config

    async def statistics(self, name: str, version: str) -> list[Any]:
        """Return what all replicas of infer counted, whoever asked them."""
        names = [name] if name else [one for one in self._runner.models() if self._serves(one)]
        models = [
            self.find(one, number)
            for one in names
            for number in ([version] if version else self._runner.find(one).versions)
        ]
        sums = await self._sums()
        found = []
        for model in models:
            key = self._pipeline(model.name).config.model, model.version
            found.append(model_statistics(model.name, model.version, sums.get(key, Counter())))
        return found

    async def index(self) -> list[Entry]:
        """Tell of every pipeline, and of every version of every model as all replicas have it."""
        found = []
        for name in self._runner.names():
            try:
                pipeline = self._runner.find(name)
            except MeshError as err:
                found.append(Entry(name, "", "UNAVAILABLE", str(err)))
                continue
            found.append(Entry(name, pipeline.model_version, "READY"))
        return found + await self._models()

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Load a model, or that of a pipeline, at every replica of infer."""
        request = oip.RepositoryModelLoadRequest(model_name=self._model_name(name))
        load_parameters(request, parameters)
        try:
            await self._ask("RepositoryModelLoad", request, LOAD_S)
        finally:
            await self._refresh()

    async def unload(self, name: str, *, parts: bool) -> None:
        """Serve a model, or that of a pipeline, no more."""
        request = oip.RepositoryModelUnloadRequest(model_name=self._model_name(name))
        request.parameters["unload_dependents"].bool_param = parts
        try:
            await self._ask("RepositoryModelUnload", request, ANSWER_S)
        finally:
            await self._refresh()

    def _serves(self, name: str) -> bool:
        return self._runner.is_ready(name)

    def _pipeline(self, name: str) -> Pipeline:
        return self._runner.find(name)

    def _model_name(self, name: str) -> str:
        """Return the model of a pipeline, or the one that is meant."""
        return self._runner.model_of(name) or name.removesuffix(ALONE)

    async def _models(self) -> list[Entry]:
        request = oip.RepositoryIndexRequest()
        answers = await self._ask("RepositoryIndex", request, ANSWER_S)
        merged: dict[tuple[str, str], Entry] = {}
        for answer in answers:
            for one in oip.RepositoryIndexResponse.FromString(answer).models:
                taken_name = one.name in self._runner.names()
                name = f"{one.name}{ALONE}" if taken_name else one.name
                entry = Entry(name, one.version, one.state, one.reason)
                known = merged.setdefault((name, one.version), entry)
                if known.state == "READY" and entry.state != "READY":
                    merged[name, one.version] = entry  # what is not served everywhere is told
        return [merged[key] for key in sorted(merged)]

    async def _ask(
        self, method: str, request: Any, timeout_s: float, *, first: bool = False
    ) -> list[bytes]:
        """Ask every replica of infer, or one; what any of them answers with an error is raised."""
        addresses = self._runner.stages.infer.addresses
        if not addresses:
            raise StageUnavailable("no replica of infer is there; try again in a moment")
        message = request.SerializeToString()
        asked = addresses[:1] if first else addresses
        answers = await asyncio.gather(
            *(ask(at, f"{NAME}/{method}", message, timeout_s) for at in asked),
            return_exceptions=True,
        )
        for at, answer in zip(asked, answers, strict=True):
            if isinstance(answer, MeshError) and len(asked) > 1:
                raise type(answer)(f"replica {at}: {answer}") from answer
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if isinstance(answer, bytes)]

    async def _sums(self) -> Sums:
        """Return what all replicas counted since they started; who does not answer is left out."""
        infer, sums = self._runner.stages.infer, Sums()

        async def add(address: str) -> None:
            try:
                answer = await ask_metrics(infer.stage, address, ANSWER_S)
                add_samples(sums, unpack_families(MetricsResponse.FromString(answer), {}))
            except (MeshError, grpc.aio.BaseError, DecodeError, ValueError) as err:
                log.warning("no statistics", extra={"replica": address, "error": str(err)})

        await asyncio.gather(*map(add, infer.addresses))
        return sums
