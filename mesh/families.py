"""Prometheus families as messages: how the gateway gets those of its replicas."""

import asyncio
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Metric

from mesh.grpc_types import Method
from mesh.item import Reply, Request
from mesh.layers import errors, logging_failures, stack
from mesh.unary import ask, unary_method
from protos.mesh.v1.stage_pb2 import MetricFamily, MetricSample, MetricsRequest, MetricsResponse


def pack_families(registry: CollectorRegistry) -> MetricsResponse:
    """Return what a scrape of the registry would; exemplars and timestamps stay behind."""
    return MetricsResponse(families=map(_pack, registry.collect()))


def unpack_families(response: MetricsResponse, labels: Mapping[str, str]) -> list[Metric]:
    """Return the families of a message.

    Args:
        response: as `pack_families` made it.
        labels: that each sample gets. One that a sample has already is kept as `exported_…`, as
            Prometheus does.

    Raises:
        ValueError: a family has a name or a type that cannot be.
    """
    return [_unpack(family, labels) for family in response.families]


async def ask_metrics(service: str, address: str, timeout_s: float) -> bytes:
    """Return what the method `Metrics` of a service answers, a serialized `MetricsResponse`.

    Raises:
        MeshError: it fails, or does not answer in time.
    """
    return await ask(
        address, f"{service}/Metrics", MetricsRequest().SerializeToString(), timeout_s
    )  # fmt: skip


def metrics_method(service: str, registry: CollectorRegistry) -> Method:
    """Return the method `Metrics` of a service, that answers with all families of a registry."""

    async def answer(_: Request) -> Reply:
        # A thread: what is collected may read files or ask a driver.
        response = await asyncio.to_thread(pack_families, registry)
        return Reply(response.SerializeToString())

    layers = [logging_failures(f"{service}/Metrics"), errors]
    return unary_method(stack(answer, layers), "Metrics")


def _pack(metric: Metric) -> MetricFamily:
    return MetricFamily(
        name=metric.name,
        documentation=metric.documentation,
        type=metric.type,
        unit=metric.unit,
        samples=[
            MetricSample(name=sample.name, labels=sample.labels, value=sample.value)
            for sample in metric.samples
        ],
    )


def _unpack(family: MetricFamily, labels: Mapping[str, str]) -> Metric:
    metric = Metric(family.name, family.documentation, family.type, family.unit)
    for sample in family.samples:
        own = {f"exported_{k}" if k in labels else k: v for k, v in sample.labels.items()}
        metric.add_sample(sample.name, {**own, **labels}, sample.value)
    return metric
