"""Slow requests that are not sampled have whole traces; a collector that hangs hurts nobody."""

import socket
import statistics
import time
import urllib.request
from collections.abc import Iterator

import psutil
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from mesh.sync_client import MeshClient
from protos.mesh.v1 import mesh_pb2
from tests.e2e.conftest import Mesh, start_mesh, stop_mesh
from tests.e2e.test_answers import DIGIT, PAGE
from tests.e2e.test_traces import EDGES, by_id, fetch

UNSAMPLED_EDGES = [edge for edge in EDGES if not edge[0].startswith("client: ")]
SERVICES = ("gateway.worker", "gateway.control", "preprocess_svc", "infer_svc", "postprocess_svc")


@pytest.fixture(scope="module")
def slow_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh that samples nothing by itself, and to which every request is slow."""
    log = tmp_path_factory.mktemp("mesh") / "log"
    running = start_mesh(log, OTEL_TRACES_SAMPLER="parentbased_always_off", GATEWAY_SLOW_MS="1")
    yield running
    assert stop_mesh(running) == 0
    assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def late_trace(slow_mesh: Mesh) -> TracesData:
    with MeshClient(slow_mesh.gateway) as client:
        request = mesh_pb2.DetectRequest(images=[PAGE.read_bytes()])
        client.call("Detect", request, mesh_pb2.DetectResponse)
    return fetch(slow_mesh, "", len(UNSAMPLED_EDGES) + 1)


def test_late_trace_has_the_edges_of_a_live_one_and_no_other(late_trace: TracesData) -> None:
    spans = by_id(late_trace)
    edges = {
        (spans[span.parent_span_id][0], name)
        for name, span in spans.values()
        if span.parent_span_id in spans
    }
    # Whether a stage that runs its ops at once had a queue is a matter of microseconds.
    assert edges - {("postprocess: mesh.v1.Postprocess/Run", "postprocess: queue")} == set(
        UNSAMPLED_EDGES
    )


def test_late_trace_says_what_it_is_in_the_tree(slow_mesh: Mesh, late_trace: TracesData) -> None:
    for name, span in by_id(late_trace).values():
        marks = {pair.key: pair.value.bool_value for pair in span.attributes}
        assert marks["mesh.reconstructed"], name
    tree = slow_mesh.cli("trace").stdout
    assert "gateway: mesh.v1.Mesh/Detect server" in tree
    assert "reconstructed=True" in tree


def metric(mesh: Mesh, name: str) -> float:
    """Return the sum of a metric over all processes of a mesh."""
    with urllib.request.urlopen(mesh.metrics, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_late_traces_are_counted(slow_mesh: Mesh, late_trace: TracesData) -> None:
    assert metric(slow_mesh, 'mesh_gateway_late_traces_total{result="written"') >= 1


@pytest.fixture(scope="module")
def mute_collector() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(scope="module")
def muted_mesh(tmp_path_factory: pytest.TempPathFactory, mute_collector: str) -> Iterator[Mesh]:
    """A mesh whose every request is traced, to a collector that hangs."""
    running = start_mesh(
        tmp_path_factory.mktemp("mesh") / "log",
        OTEL_TRACES_SAMPLER="always_on",
        OTEL_EXPORTER_OTLP_ENDPOINT=mute_collector,
        OTEL_BSP_MAX_QUEUE_SIZE="256",
    )
    yield running
    started = time.monotonic()
    assert stop_mesh(running) == 0
    assert time.monotonic() - started < 15  # spans that nobody takes hold nobody up


def memory_mb(mesh: Mesh) -> dict[str, float]:
    found: dict[str, psutil.Process] = {name: mesh.services(name)[0] for name in SERVICES}
    return {name: process.memory_full_info().uss / 1e6 for name, process in found.items()}


def waits_ms(mesh: Mesh, count: int) -> list[float]:
    request = mesh_pb2.ClassifyRequest(images=[DIGIT.read_bytes()])
    waits = []
    with MeshClient(mesh.gateway) as client:
        for _ in range(count):
            started = time.perf_counter()
            client.call("Classify", request, mesh_pb2.ClassifyResponse)
            waits.append((time.perf_counter() - started) * 1e3)
    return waits


def test_collector_that_hangs_costs_no_latency_and_no_memory(muted_mesh: Mesh) -> None:
    first = waits_ms(muted_mesh, 100)  # the queues are full after 40
    before = memory_mb(muted_mesh)
    waits = waits_ms(muted_mesh, 500)
    after = memory_mb(muted_mesh)
    assert metric(muted_mesh, 'mesh_spans_dropped_total{reason="queue_full"') > 0
    assert statistics.median(waits) < 3 * statistics.median(first)
    assert max(waits) < 2000  # an export that hangs takes 10 s
    for name, value in after.items():
        assert value - before[name] < 5, name  # those dropped by the gateway alone would take 10 MB
