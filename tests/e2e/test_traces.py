import json
import re
import time
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData

from mesh.cli.trace_view import jaeger_json
from mesh.errors import InvalidInput, NotFound
from mesh.sync_client import MeshClient
from protos.mesh.v1 import mesh_pb2
from tests.e2e.conftest import Mesh
from tests.e2e.test_answers import DIGIT, PAGE

EDGES = [
    ("client: mesh.v1.Mesh/Detect", "gateway: mesh.v1.Mesh/Detect"),
    ("gateway: mesh.v1.Mesh/Detect", "gateway: mesh.v1.Preprocess/Run"),
    ("gateway: mesh.v1.Preprocess/Run", "preprocess: mesh.v1.Preprocess/Run"),
    ("preprocess: mesh.v1.Preprocess/Run", "preprocess: queue"),
    ("preprocess: mesh.v1.Preprocess/Run", "preprocess: run"),
    ("gateway: mesh.v1.Mesh/Detect", "gateway: mesh.v1.Infer/Run"),
    ("gateway: mesh.v1.Infer/Run", "infer: mesh.v1.Infer/Run"),
    ("infer: mesh.v1.Infer/Run", "infer: queue"),
    ("infer: mesh.v1.Infer/Run", "infer: batch"),
    ("infer: mesh.v1.Infer/Run", "infer: run"),
    ("gateway: mesh.v1.Mesh/Detect", "gateway: mesh.v1.Postprocess/Run"),
    ("gateway: mesh.v1.Postprocess/Run", "postprocess: mesh.v1.Postprocess/Run"),
    ("postprocess: mesh.v1.Postprocess/Run", "postprocess: run"),
]
"""Caller and callee of every hop of one request."""

Names = dict[bytes, tuple[str, Span]]


def fetch(mesh: Mesh, trace_id: str, spans: int, named: str = "") -> TracesData:
    """Return a trace once it has that many spans, and the named one: each process sends its own."""
    end = time.monotonic() + 10
    while True:
        with MeshClient(mesh.gateway) as client:
            request = mesh_pb2.GetTraceRequest(trace_id=trace_id)
            try:
                kept = client.call("GetTrace", request, mesh_pb2.GetTraceResponse)
                data = TracesData.FromString(kept.traces)
            except NotFound:
                data = TracesData()
        names = [name for name, _ in by_id(data).values()]
        if len(names) >= spans and (not named or named in names):
            return data
        assert time.monotonic() < end, f"only these spans came: {names}"
        time.sleep(0.1)


def by_id(data: TracesData) -> Names:
    found: Names = {}
    for group in data.resource_spans:
        service = next(
            pair.value.string_value
            for pair in group.resource.attributes
            if pair.key == "service.name"
        )
        for span in group.scope_spans[0].spans:
            found[span.span_id] = (f"{service}: {span.name}", span)
    return found


@pytest.fixture(scope="module")
def detect_trace(mesh: Mesh) -> TracesData:
    with MeshClient(mesh.gateway, traced=True) as client:
        request = mesh_pb2.DetectRequest(images=[PAGE.read_bytes()])
        client.call("Detect", request, mesh_pb2.DetectResponse)
    return fetch(mesh, client.trace_id, len(EDGES) + 2)


@pytest.mark.parametrize(("caller", "callee"), EDGES, ids=[f"{a}->{b}" for a, b in EDGES])
def test_trace_has_the_edge(detect_trace: TracesData, caller: str, callee: str) -> None:
    spans = by_id(detect_trace)
    edges = {
        (spans[span.parent_span_id][0], name)
        for name, span in spans.values()
        if span.parent_span_id in spans
    }
    assert (caller, callee) in edges


def test_children_lie_within_their_parents(detect_trace: TracesData) -> None:
    spans = by_id(detect_trace)
    for name, span in spans.values():
        if span.parent_span_id in spans:
            _, parent = spans[span.parent_span_id]
            slack = 2_000_000  # clocks of one machine, read at different times
            assert span.start_time_unix_nano >= parent.start_time_unix_nano - slack, name
            assert span.end_time_unix_nano <= parent.end_time_unix_nano + slack, name


def test_batch_is_a_root_in_a_trace_of_its_own_linked_both_ways(detect_trace: TracesData) -> None:
    spans = by_id(detect_trace)
    batch = next(span for name, span in spans.values() if name == "infer: batch digits-detect")
    run = next(span for name, span in spans.values() if name == "infer: run")
    server = next(span for name, span in spans.values() if name == "infer: mesh.v1.Infer/Run")
    assert not batch.parent_span_id
    assert batch.trace_id != server.trace_id
    assert [link.span_id for link in batch.links] == [server.span_id]
    assert [link.span_id for link in run.links] == [batch.span_id]


def test_rpc_spans_follow_the_conventions(detect_trace: TracesData) -> None:
    for name, span in by_id(detect_trace).values():
        if span.kind not in (Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER):
            continue
        values = {pair.key: pair.value.string_value for pair in span.attributes}
        assert values["rpc.system.name"] == "grpc", name
        assert values["rpc.method"] == span.name, name
        assert values["rpc.response.status_code"] == "OK", name


def test_traceparent_of_any_client_is_continued(mesh: Mesh, channel: grpc.Channel) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    metadata = (("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"),)
    call = channel.unary_unary(
        "/mesh.v1.Mesh/Classify",
        request_serializer=mesh_pb2.ClassifyRequest.SerializeToString,
        response_deserializer=mesh_pb2.ClassifyResponse.FromString,
    )
    call(mesh_pb2.ClassifyRequest(images=[DIGIT.read_bytes()]), metadata=metadata)
    last = "postprocess: mesh.v1.Postprocess/Run"
    names = {name for name, _ in by_id(fetch(mesh, trace_id, 10, last)).values()}
    assert last in names


def test_failed_request_shows_its_status_and_reason(mesh: Mesh) -> None:
    done = mesh.cli("classify", __file__)
    assert done.returncode == 1
    with MeshClient(mesh.gateway, traced=True) as client:
        request = mesh_pb2.ClassifyRequest(images=[b"no picture"])
        with pytest.raises(InvalidInput, match="JPEG"):
            client.call("Classify", request, mesh_pb2.ClassifyResponse)
    spans = by_id(fetch(mesh, client.trace_id, 4))
    codes = {
        pair.value.string_value
        for _, span in spans.values()
        for pair in span.attributes
        if pair.key == "rpc.response.status_code"
    }
    assert codes == {"INVALID_ARGUMENT"}


def test_command_line_prints_the_tree_and_writes_jaegers_file(mesh: Mesh, tmp_path: Path) -> None:
    asked = mesh.cli("detect", str(PAGE))
    found = re.search("trace: ([0-9a-f]{32})", asked.stdout)
    assert found
    fetch(mesh, found[1], len(EDGES) + 2)
    tree = mesh.cli("trace", found[1]).stdout
    assert re.search(r"^    gateway: mesh.v1.Infer/Run client .* ms", tree, re.MULTILINE)
    assert re.search(r"^        infer: run .*rows=1 link=", tree, re.MULTILINE)
    out = tmp_path / "out.json"
    assert mesh.cli("trace", found[1], "--jaeger", str(out)).returncode == 0
    trace = json.loads(out.read_text())["data"][0]
    assert trace["traceID"] in (found[1], trace["spans"][0]["traceID"])
    services = {process["serviceName"] for process in trace["processes"].values()}
    assert services == {"client", "gateway", "preprocess", "infer", "postprocess"}


def test_jaeger_form_keeps_parents_as_references(detect_trace: TracesData) -> None:
    trace = jaeger_json(detect_trace)["data"][0]
    with_parent = [span for span in trace["spans"] if span["references"]]
    assert len(with_parent) >= len(EDGES)
