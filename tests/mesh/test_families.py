"""A registry's families arrive as they left, with the labels that tell whose they are."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import UnknownMetricFamily
from prometheus_client.registry import Collector

from mesh.families import pack_families, unpack_families
from protos.mesh.v1.stage_pb2 import MetricFamily, MetricsResponse


class Given(Collector):
    """Families as they are, in a registry of their own."""

    def __init__(self, *families: Metric) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return list(self._families)

    def registry(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(self)
        return registry


def through(registry: CollectorRegistry, **labels: str) -> list[Metric]:
    message = pack_families(registry).SerializeToString()
    return unpack_families(MetricsResponse.FromString(message), labels)


def test_families_of_every_type_arrive_as_they_left() -> None:
    registry = CollectorRegistry()
    Counter("done", "What was done", ["how"], registry=registry).labels("well").inc(3)
    Gauge("held", "What is held", unit="bytes", registry=registry).set(float("inf"))
    Histogram("took", "How long", buckets=(0.5, 1), registry=registry).observe(0.7)
    registry.register(Given(UnknownMetricFamily("odd_count", "Exactly this name", value=5)))
    assert through(registry) == list(registry.collect())


def test_each_sample_gets_the_labels_beside_its_own() -> None:
    registry = CollectorRegistry()
    Counter("done", "", ["how"], registry=registry).labels("well").inc()
    (family,) = through(registry, stage="s", replica="r")
    assert {tuple(sorted(sample.labels.items())) for sample in family.samples} == {
        (("how", "well"), ("replica", "r"), ("stage", "s"))
    }


def test_label_of_the_same_name_is_kept_as_exported() -> None:
    registry = CollectorRegistry()
    Gauge("held", "", ["stage"], registry=registry).labels("mine").set(1)
    (family,) = through(registry, stage="theirs")
    assert family.samples[0].labels == {"exported_stage": "mine", "stage": "theirs"}


@pytest.mark.parametrize(
    "family",
    [MetricFamily(name="a", type="wrong"), MetricFamily(name="", type="gauge")],
    ids=["type", "name"],
)
def test_family_that_cannot_be_is_an_error(family: MetricFamily) -> None:
    with pytest.raises(ValueError, match="metric"):
        unpack_families(MetricsResponse(families=[family]), {})
