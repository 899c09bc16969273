"""One scrape of the gateway tells what every process of the mesh did."""

import urllib.request

import grpc
import psutil
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from protos.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from tests.e2e.conftest import ROOT, Mesh

DIGIT = ROOT / "models/digits-classify/samples/digit.png"
STAGES = ("mesh.v1.Preprocess", "mesh.v1.Infer", "mesh.v1.Postprocess")
CLASSIFY = {"stage": "mesh.v1.Infer", "model": "digits-classify", "version": "1"}


def scrape(mesh: Mesh) -> list[Metric]:
    with urllib.request.urlopen(mesh.metrics, timeout=10) as answer:
        return list(text_string_to_metric_families(answer.read().decode()))


def value(families: list[Metric], name: str, **labels: str) -> float:
    """Return the only sample with that name and these labels, among others."""
    (found,) = (
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
    return found


def test_scrape_counts_exactly_the_rows_that_were_sent(mesh: Mesh, channel: grpc.Channel) -> None:
    before = scrape(mesh)
    for images in (1, 2, 4):
        request = mesh_pb2.ClassifyRequest(images=[DIGIT.read_bytes()] * images)
        mesh_pb2_grpc.MeshStub(channel).Classify(request, timeout=20)
    after = scrape(mesh)

    def grown(name: str, **labels: str) -> float:
        labels = CLASSIFY | labels
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown("nv_inference_count") == 7
    assert grown("nv_inference_request_success") == 7
    assert 3 <= grown("nv_inference_exec_count") <= 7
    assert grown("mesh_infer_batch_rows_sum") == 7
    assert grown("mesh_infer_run_seconds_count") == grown("nv_inference_exec_count")
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    spent = sum(grown(f"nv_inference_{part}_duration_us") for part in parts)
    assert 0 < spent <= grown("nv_inference_request_duration_us") + 8  # each is rounded
    assert grown("nv_inference_request_failure", reason="BACKEND") == 0
    assert value(after, "nv_inference_pending_request_count", **CLASSIFY) == 0


def test_scrape_tells_of_each_process_and_no_family_comes_twice(mesh: Mesh) -> None:
    families = scrape(mesh)
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    for stage, module in zip(
        STAGES, ("preprocess_svc", "infer_svc", "postprocess_svc"), strict=True
    ):
        assert value(families, "mesh_replica_up", stage=stage) == 1
        (process,) = mesh.services(module)
        started = value(families, "process_start_time_seconds", stage=stage)
        assert abs(started - psutil.Process(process.pid).create_time()) < 2
