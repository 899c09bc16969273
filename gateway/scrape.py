"""What a scrape of the gateway answers: its own families and those of every replica."""

import asyncio
import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError

import grpc
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from mesh.client import StageClient
from mesh.errors import MeshError
from mesh.families import unpack_families
from mesh.unary import ask
from protos.mesh.v1.stage_pb2 import MetricsRequest, MetricsResponse

ANSWER_S = 1.0
"""How long a replica may take; Prometheus waits ten seconds for the whole unless told otherwise."""
SLACK_S = 0.5
"""How much longer a scrape waits for an event loop that is busy."""

Replica = tuple[str, str]
"""Full name of the stage, and address."""

log = logging.getLogger(__name__)


class Scrape(Collector):
    """The metrics of the whole mesh, collected anew by each scrape in the scrape's own thread.

    The event loop only passes bytes on. What does not answer in time is missing, and
    `mesh_replica_up` says so.

    Args:
        own: metrics of this process.
        clients: of the stages.
        loop: that the clients live in.
        answer_s: seconds that the replicas, asked side by side, may take.
    """

    def __init__(
        self,
        own: CollectorRegistry,
        clients: Sequence[StageClient],
        loop: asyncio.AbstractEventLoop,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._own = own
        self._clients = clients
        self._loop = loop
        self._answer_s = answer_s

    def collect(self) -> Iterable[Metric]:
        """Return each family once, with the samples of all; blocks, so never call it in the loop.

        A replica's samples have the labels `stage` and `replica`, the gateway's own have not.
        """
        replicas = [(client.stage, at) for client in self._clients for at in client.addresses]
        answers = self._ask(replicas)
        up = GaugeMetricFamily(
            "mesh_replica_up", "Whether a replica answered this scrape", labels=["stage", "replica"]
        )
        merged = {metric.name: _copy(metric) for metric in self._own.collect()}
        for replica in replicas:
            families = _families(replica, answers.get(replica))
            up.add_metric(replica, families is not None)
            for family in families or ():
                _merge(merged, family)
        return [*merged.values(), up]

    def restricted_registry(self, names: Iterable[str]) -> "Restricted":
        """Return what has only the samples of these names, as `?name[]=…` of a scrape asks for."""
        return Restricted(self, frozenset(names))

    def _ask(self, replicas: Sequence[Replica]) -> Mapping[Replica, bytes]:
        """Return the answer of each replica that gave one."""
        answers: dict[Replica, bytes] = {}
        asking = self._ask_all(replicas, answers)
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

    async def _ask_all(self, replicas: Sequence[Replica], answers: dict[Replica, bytes]) -> None:
        await asyncio.gather(*(self._ask_one(replica, answers) for replica in replicas))

    async def _ask_one(self, replica: Replica, answers: dict[Replica, bytes]) -> None:
        stage, address = replica
        message = MetricsRequest().SerializeToString()
        try:
            answers[replica] = await ask(address, f"{stage}/Metrics", message, self._answer_s)
        except (MeshError, grpc.aio.BaseError) as err:
            fields = {"stage": stage, "replica": address, "error": str(err)}
            log.debug("no metrics", extra=fields)


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


def _families(replica: Replica, answer: bytes | None) -> list[Metric] | None:
    """Return what a replica answered; None: nothing that can be read."""
    if answer is None:
        return None
    labels = {"stage": replica[0], "replica": replica[1]}
    try:
        return unpack_families(MetricsResponse.FromString(answer), labels)
    except (DecodeError, ValueError) as err:
        log.warning("metrics cannot be read", extra={**labels, "error": str(err)})
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
