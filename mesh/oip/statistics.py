"""`ModelStatistics` from what processes count of their models."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from prometheus_client import Metric
from tritonclient.grpc import service_pb2 as oip

NS_PER_US = 1000
DURATIONS = {
    "success": "nv_inference_request_duration_us",
    "queue": "nv_inference_queue_duration_us",
    "compute_input": "nv_inference_compute_input_duration_us",
    "compute_infer": "nv_inference_compute_infer_duration_us",
    "compute_output": "nv_inference_compute_output_duration_us",
}
"""Families by the field of `InferStatistics`; each counts the requests that succeeded."""

Sums = dict[tuple[str, str], Counter[str]]
"""Samples by model and version, added up over replicas and other labels."""


def add_samples(sums: Sums, families: Iterable[Metric]) -> None:
    """Add the samples of one process."""
    for family in families:
        for sample in family.samples:
            if sample.name.startswith("nv_inference_") and "model" in sample.labels:
                key = sample.labels["model"], sample.labels["version"]
                sums.setdefault(key, Counter())[sample.name] += round(sample.value)


def model_statistics(name: str, version: str, sums: Counter[str]) -> Any:
    """Return a model's statistics in the protocol's form.

    Args:
        name: as it was asked for.
        version: of the model.
        sums: of its samples.
    """
    made = oip.ModelStatistics(
        name=name, version=version, inference_count=sums["nv_inference_count"],
        execution_count=sums["nv_inference_exec_count"],
    )  # fmt: skip
    succeeded = sums["nv_inference_request_success"]
    for field, family in DURATIONS.items():
        duration = getattr(made.inference_stats, field)
        duration.count, duration.ns = succeeded, NS_PER_US * sums[family]
    made.inference_stats.fail.count = sums["nv_inference_request_failure"]
    return made
