"""`ModelStatistics` from what processes count of their models."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from prometheus_client import Metric
from tritonclient.grpc import service_pb2 as oip

NS_PER_US = 1000
LAST = "mesh_infer_last_inference_seconds"
"""When a request was answered last, since 1970; of several replicas the latest counts."""
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
            if "model" not in sample.labels:
                continue
            key = sample.labels["model"], sample.labels["version"]
            if sample.name.startswith("nv_inference_"):
                sums.setdefault(key, Counter())[sample.name] += round(sample.value)
            elif sample.name == LAST:
                one = sums.setdefault(key, Counter())
                one[LAST] = max(one[LAST], round(1e3 * sample.value))


def model_statistics(name: str, version: str, sums: Counter[str]) -> Any:
    """Return a model's statistics in the protocol's form.

    Args:
        name: as it was asked for.
        version: of the model.
        sums: of its samples.
    """
    made = oip.ModelStatistics(
        name=name, version=version, inference_count=sums["nv_inference_count"],
        execution_count=sums["nv_inference_exec_count"], last_inference=sums[LAST],
    )  # fmt: skip
    succeeded = sums["nv_inference_request_success"]
    for field, family in DURATIONS.items():
        duration = getattr(made.inference_stats, field)
        duration.count, duration.ns = succeeded, NS_PER_US * sums[family]
    made.inference_stats.fail.count = sums["nv_inference_request_failure"]
    for field in ("cache_hit", "cache_miss"):  # there, though nothing is counted
        getattr(made.inference_stats, field).SetInParent()
    return made
