"""What a scrape of the gateway answers: its own families and those of every replica."""

import asyncio
import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from types import MappingProxyType
from typing import NamedTuple, Protocol

import grpc
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from mesh.errors import MeshError
from mesh.families import ask_metrics, unpack_families
from protos.mesh.v1.stage_pb2 import MetricsResponse

WORKER = "mesh.v1.GatewayWorker"
"""Service of a data worker for the control process: `Metrics`, as a stage has it."""
ANSWER_S = 1.0
"""How long a replica may take; Prometheus waits ten seconds for the whole unless told otherwise."""
SLACK_S = 0.5
"""How much longer a scrape waits for an event loop that is busy."""


class Known(Protocol):
    """The replicas of a stage."""

    @property
    def stage(self) -> str:
        """Full name of its gRPC service."""

    @property
    def addresses(self) -> list[str]:
        """Every replica that there should be."""


class Source(NamedTuple):
    """Who is asked for metrics."""

    service: str
    address: str
    worker: str = ""
    """Number of a data worker of this gateway; empty: a replica of a stage."""

    @property
    def labels(self) -> dict[str, str]:
        """Return what its samples get, to tell them from those of others."""
        if self.worker:
            return {"worker": self.worker}
        return {"stage": self.service, "replica": self.address}


log = logging.getLogger(__name__)


class Scrape(Collector):
    """The metrics of the whole mesh, collected anew by each scrape in the scrape's own thread.

    The event loop only passes bytes on. What does not answer in time is missing, and
    `mesh_replica_up` says so.

    Args:
        own: metrics of this process.
        stages: with their replicas.
        loop: of the process.
        answer_s: seconds that all, asked side by side, may take.
        workers: addresses of this gateway's data workers, by their numbers.
    """

    def __init__(
        self,
        own: CollectorRegistry,
        stages: Sequence[Known],
        loop: asyncio.AbstractEventLoop,
        answer_s: float = ANSWER_S,
        workers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._own = own
        self._stages = stages
        self._loop = loop
        self._answer_s = answer_s
        self._workers = [Source(WORKER, at, number) for number, at in workers.items()]

    def collect(self) -> Iterable[Metric]:
        """Return each family once, with the samples of all; blocks, so never call it in the loop.

        A replica's samples have the labels `stage` and `replica`, a data worker's `worker`, those
        of this process none.
        """
        sources = [Source(stage.stage, at) for stage in self._stages for at in stage.addresses]
        sources += self._workers
        answers = self._ask(sources)
        replica_up = GaugeMetricFamily(
            "mesh_replica_up", "Whether a replica answered this scrape", labels=["stage", "replica"]
        )
        worker_up = GaugeMetricFamily(
            "mesh_gateway_worker_up", "Whether a data worker answered this scrape",
            labels=["worker"],
        )  # fmt: skip
        merged = {metric.name: _copy(metric) for metric in self._own.collect()}
        for source in sources:
            families = _families(source, answers.get(source))
            up = worker_up if source.worker else replica_up
            up.add_metric(list(source.labels.values()), families is not None)
            for family in families or ():
                _merge(merged, family)
        return [*merged.values(), replica_up, worker_up]

    def restricted_registry(self, names: Iterable[str]) -> "Restricted":
        """Return what has only the samples of these names, as `?name[]=…` of a scrape asks for."""
        return Restricted(self, frozenset(names))

    def _ask(self, sources: Sequence[Source]) -> Mapping[Source, bytes]:
        """Return the answer of each that gave one."""
        answers: dict[Source, bytes] = {}
        asking = self._ask_all(sources, answers)
        try:
            future = asyncio.run_coroutine_threadsafe(asking, self._loop)
        except RuntimeError:  # the loop is closed: the process ends
            asking.close()
            return answers
        try:
            future.result(self._answer_s + SLACK_S)
        except (TimeoutError, CancelledError):
            future.cancel()
        return dict(answers)

    async def _ask_all(self, sources: Sequence[Source], answers: dict[Source, bytes]) -> None:
        await asyncio.gather(*(self._ask_one(source, answers) for source in sources))

    async def _ask_one(self, source: Source, answers: dict[Source, bytes]) -> None:
        try:
            answers[source] = await ask_metrics(source.service, source.address, self._answer_s)
        except (MeshError, grpc.aio.BaseError) as err:
            log.debug("no metrics", extra={**source.labels, "error": str(err)})


class Restricted(Collector):
    """The samples of some names."""

    def __init__(self, whole: Collector, names: frozenset[str]) -> None:
        self._whole = whole
        self._names = names

    def collect(self) -> Iterable[Metric]:
        """Return the families that have such samples, with no others."""
        for metric in self._whole.collect():
            metric.samples = [sample for sample in metric.samples if sample.name in self._names]
            if metric.samples:
                yield metric


def _families(source: Source, answer: bytes | None) -> list[Metric] | None:
    """Return what a process answered; None: nothing that can be read."""
    if answer is None:
        return None
    try:
        return unpack_families(MetricsResponse.FromString(answer), source.labels)
    except (DecodeError, ValueError) as err:
        log.warning("metrics cannot be read", extra={**source.labels, "error": str(err)})
        return None


def _copy(metric: Metric) -> Metric:
    """Return a family whose samples can be added to: some collectors hand out what they keep."""
    copied = copy.copy(metric)
    copied.samples = list(metric.samples)
    return copied


def _merge(merged: dict[str, Metric], family: Metric) -> None:
    known = merged.setdefault(family.name, family)
    if known is family:
        return
    if known.type == family.type:
        known.samples.extend(family.samples)
    else:
        fields = {"family": family.name, "type": family.type, "wanted": known.type}
        log.warning("metrics of another type left out", extra=fields)
