"""The Prometheus families of the infer stage: Triton's names and our own, by model and version."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector

from infer_svc.generation import metrics as generation
from infer_svc.metrics import ModelMetrics, Reason
from infer_svc.tally import histogram

LABELS = ("model", "version")

TRITON = {
    "nv_inference_request_success": ("Requests that succeeded", "succeeded"),
    "nv_inference_count": ("Rows that were run", "rows"),
    "nv_inference_exec_count": ("Batches that were run", "batches"),
    "nv_inference_request_duration_us": ("Requests from arrival to answer", "request_s"),
    "nv_inference_queue_duration_us": ("Requests waiting for their batch", "queue_s"),
    "nv_inference_compute_input_duration_us": ("Inputs on their way to the device", "input_s"),
    "nv_inference_compute_infer_duration_us": ("Requests in the engine", "infer_s"),
    "nv_inference_compute_output_duration_us": (
        "Outputs on their way back, split and handed over", "output_s",
    ),
}  # fmt: skip
"""Text and attribute of `ModelMetrics` by name; those in `_us` add up microseconds."""

COUNTERS = {
    "mesh_infer_elements": ("Input elements that were run, padding included", "elements"),
    "mesh_infer_padded_elements": ("Input elements that were only padding", "padded"),
    "mesh_infer_engine_reloads": ("Engines loaded again after failures", "reloads"),
}
LABELLED: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "mesh_infer_batch_failures": ("Runs of batches that failed", "batch_failures", ("kind",)),
    "mesh_infer_recovery_steps": ("Rungs of recovery that were climbed", "steps", ("step",)),
    "mesh_infer_context_rebuilds": ("Execution contexts made anew", "rebuilds", ("reason",)),
    "mesh_infer_engine_builds": ("Engines built", "builds", ("result",)),
}
HISTOGRAMS = {
    "mesh_infer_batch_rows": ("Rows of a batch", "batch_rows"),
    "mesh_infer_h2d_seconds": ("Inputs of a batch to the device", "h2d"),
    "mesh_infer_run_seconds": ("A batch in the engine", "run"),
    "mesh_infer_d2h_seconds": ("Outputs of a batch from the device", "d2h"),
    "mesh_infer_around_seconds": ("Handing a batch over and splitting its outputs", "around"),
    "mesh_infer_failover_seconds": ("From a failure to the next run on another lane", "failover"),
    "mesh_infer_engine_build_seconds": ("Building an engine", "build"),
}
GAUGES = {
    "nv_inference_pending_request_count": "Requests that wait for a batch",
    "mesh_infer_queue_depth": "Requests that wait for a batch",
    "mesh_infer_queue_age_seconds": "How long the oldest of them has waited",
    "mesh_infer_lanes": "Lanes",
    "mesh_infer_lanes_busy": "Lanes that run a batch",
}
GPU_GAUGES = {
    "mesh_gpu_memory_used_bytes": ("In use by anyone", "used_bytes"),
    "mesh_gpu_memory_total_bytes": ("There is", "total_bytes"),
    "mesh_infer_contexts_live": ("Execution contexts of this process", "contexts"),
    "mesh_infer_pinned_bytes": ("Page-locked memory of this process", "pinned_bytes"),
    "mesh_infer_device_bytes": ("Lanes' buffers on the GPU", "device_bytes"),
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GpuFigures:
    """What there is of a GPU, and what this process holds of it."""

    gpu: str
    """Its label."""
    used_bytes: int
    total_bytes: int
    contexts: int
    pinned_bytes: int
    device_bytes: int


class InferMetrics(Collector):
    """The metrics of every model of this process.

    Triton's counters have the type `unknown` here (`untyped` in Prometheus' own text): a counter's
    name must end with `_total`, which every library adds, and dashboards made for Triton ask for
    the names without. Prometheus computes rates of both alike. A gauge would claim that they fall.

    Args:
        registry: that they are collected by.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._models: dict[tuple[str, int], ModelMetrics] = {}
        self._read_gpus: Callable[[], Iterable[GpuFigures]] = lambda: ()
        registry.register(self)

    def add(self, name: str, version: int, max_rows: int) -> ModelMetrics:
        """Return the metrics of a model's version; the same again until it is removed.

        Args:
            name: of the model.
            version: of the model.
            max_rows: largest batch; 0: the model has no batch dimension.
        """
        key = (name, version)
        if key not in self._models:
            self._models[key] = ModelMetrics(name, version, max_rows)
        return self._models[key]

    def remove(self, model: ModelMetrics) -> None:
        """Export a model no more; does nothing for one that is removed already."""
        key = (model.name, model.version)
        if self._models.get(key) is model:
            del self._models[key]

    def watch_gpus(self, read: Callable[[], Iterable[GpuFigures]]) -> None:
        """Export the figures of GPUs.

        Args:
            read: returns those of each. Called at each scrape, in any thread.
        """
        self._read_gpus = read

    def close(self) -> None:
        """Take the families out of the registry."""
        self._registry.unregister(self)

    def collect(self) -> Iterator[Metric]:
        """Return every family, with the samples of all models."""
        models = list(self._models.values())
        for name, (text, attribute) in TRITON.items():
            yield _fill(UnknownMetricFamily(name, text, labels=LABELS), models, attribute)
        for name, (text, attribute) in COUNTERS.items():
            yield _fill(CounterMetricFamily(name, text, labels=LABELS), models, attribute)
        yield _failures(models)
        for name, (text, attribute, labels) in LABELLED.items():
            yield _labelled(
                CounterMetricFamily(name, text, labels=(*LABELS, *labels)), models, attribute
            )
        for name, (text, attribute) in HISTOGRAMS.items():
            tallies = {_labels(model): getattr(model, attribute) for model in models}
            yield histogram(name, text, LABELS, tallies)
        for name, text in GAUGES.items():
            yield _gauge(name, text, models)
        last = GaugeMetricFamily(
            "mesh_infer_last_inference_seconds", "When a request was answered last, since 1970",
            labels=LABELS,
        )  # fmt: skip
        for model in models:
            last.add_metric(_labels(model), model.last)
        yield last
        generating = (model.generation for model in models if model.generation is not None)
        yield from generation.families(generating, LABELS)
        yield from self._gpus()

    def _gpus(self) -> list[Metric]:
        """Return the figures of the GPUs; nothing where there is none, or none answers."""
        try:
            gpus = list(self._read_gpus())
        except Exception as err:  # noqa: BLE001 a boundary: a driver that fails hides no other metric
            log.warning("GPU cannot be read", extra={"error": str(err)})
            gpus = []
        families: list[Metric] = []
        for name, (text, attribute) in GPU_GAUGES.items() if gpus else ():
            family = GaugeMetricFamily(name, text, labels=["gpu"])
            for figures in gpus:
                family.add_metric([figures.gpu], getattr(figures, attribute))
            families.append(family)
        return families


def _labels(model: ModelMetrics) -> tuple[str, str]:
    return model.name, str(model.version)


def _fill(
    family: UnknownMetricFamily | CounterMetricFamily, models: list[ModelMetrics], attribute: str
) -> Metric:
    scale = 1e6 if family.name.endswith("_us") else 1
    for model in models:
        family.add_metric(_labels(model), round(scale * getattr(model, attribute)))
    return family


def _failures(models: list[ModelMetrics]) -> Metric:
    """Return the failed requests, with a zero for each reason that did not occur."""
    family = UnknownMetricFamily(
        "nv_inference_request_failure", "Requests that failed", labels=(*LABELS, "reason")
    )
    for model in models:
        for reason in get_args(Reason):
            family.add_metric((*_labels(model), reason), model.failures[reason])
    return family


def _labelled(family: CounterMetricFamily, models: list[ModelMetrics], attribute: str) -> Metric:
    for model in models:
        # Copied: other threads add to it.
        for values, count in dict(getattr(model, attribute)).items():
            labels = values if isinstance(values, tuple) else (values,)
            family.add_metric((*_labels(model), *labels), count)
    return family


def _gauge(name: str, text: str, models: list[ModelMetrics]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=LABELS)
    for model in models:
        read = model.gauges.get(name)
        if read is None:
            continue
        try:
            family.add_metric(_labels(model), read())
        except Exception as err:  # noqa: BLE001 a boundary: as with the GPUs
            log.warning("metric cannot be read", extra={"family": name, "error": str(err)})
    return family
