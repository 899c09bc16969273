"""`ModelStatistics` from what every replica of the infer stage counts: right whoever is asked."""

import asyncio
import logging
from collections import Counter
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as oip

from gateway.scrape import ANSWER_S
from mesh.client import StageClient
from mesh.errors import MeshError
from mesh.families import ask_metrics, unpack_families
from protos.mesh.v1.stage_pb2 import MetricsResponse

NS_PER_US = 1000
DURATIONS = {
    "success": "nv_inference_request_duration_us",
    "queue": "nv_inference_queue_duration_us",
    "compute_input": "nv_inference_compute_input_duration_us",
    "compute_infer": "nv_inference_compute_infer_duration_us",
    "compute_output": "nv_inference_compute_output_duration_us",
}
"""Families by the field of `InferStatistics`; each counts the requests that succeeded."""

log = logging.getLogger(__name__)

Sums = dict[tuple[str, str], Counter[str]]
"""Samples by model and version, added up over replicas and other labels."""


async def statistics(infer: StageClient) -> Sums:
    """Return what all replicas counted since they started; who does not answer is left out."""
    found: Sums = {}
    for families in await asyncio.gather(*(_families(infer, at) for at in infer.addresses)):
        for family in families:
            for sample in family.samples:
                if sample.name.startswith("nv_inference_") and "model" in sample.labels:
                    key = sample.labels["model"], sample.labels["version"]
                    found.setdefault(key, Counter())[sample.name] += round(sample.value)
    return found


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


async def _families(infer: StageClient, address: str) -> list[Any]:
    try:
        answer = await ask_metrics(infer.stage, address, ANSWER_S)
        return list(unpack_families(MetricsResponse.FromString(answer), {}))
    except (MeshError, grpc.aio.BaseError, DecodeError, ValueError) as err:
        log.warning("no statistics", extra={"replica": address, "error": str(err)})
        return []
