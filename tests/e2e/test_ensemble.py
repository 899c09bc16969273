"""A pipeline over a model that was split answers as that over the whole one."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mesh.sync_client import MeshClient
from protos.mesh.v1 import mesh_pb2
from tests.e2e.conftest import ROOT, Mesh, start_mesh, stop_mesh
from tests.e2e.test_answers import PAGE, ROTATED
from tests.e2e.test_traces import by_id, fetch
from tests.infer_svc.parts import NAME, split_detect

Boxes = list[tuple[str, int, int, int, int]]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh with `digits-detect`, and with a pipeline whose model is the ensemble of its parts."""
    folder = tmp_path_factory.mktemp("split")
    models = split_detect(ROOT / "models", folder)
    pipeline = (models / "digits-detect/pipeline.yaml").read_text()
    (models / NAME / "pipeline.yaml").write_text(
        pipeline.replace("model: digits-detect", f"model: {NAME}")
    )
    mesh = start_mesh(folder / "log", models=models)
    yield mesh
    assert stop_mesh(mesh) == 0
    assert "Traceback" not in mesh.log.read_text()


def detect(client: MeshClient, pipeline: str, *pictures: Path) -> Boxes:
    images = [path.read_bytes() for path in pictures]
    request = mesh_pb2.DetectRequest(pipeline=pipeline, images=images)
    response = client.call("Detect", request, mesh_pb2.DetectResponse)
    return [
        (found.label, round(found.x1), round(found.y1), round(found.x2), round(found.y2))
        for result in response.results
        for found in result.detections
    ]


def test_pipeline_names_an_ensemble_as_any_model(split: Mesh) -> None:
    with MeshClient(split.gateway) as client:
        whole = detect(client, "digits-detect", PAGE, ROTATED)

    def ask(_: int) -> Boxes:
        with MeshClient(split.gateway) as client:
            return detect(client, NAME, PAGE, ROTATED)

    assert len(whole) == 18
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(16))) == [whole] * 16


def test_trace_shows_each_step_and_where_its_time_went(split: Mesh) -> None:
    with MeshClient(split.gateway, traced=True) as client:
        detect(client, NAME, PAGE)
    last = "infer: mesh.v1.Infer/Run"
    spans = by_id(fetch(split, client.trace_id, 1, last))
    edges = {
        (spans[span.parent_span_id][0], name)
        for name, span in spans.values()
        if span.parent_span_id in spans
    }
    for part in ("detect-trunk", "detect-head"):
        assert (last, f"infer: step {part}") in edges
        assert (f"infer: step {part}", "infer: run") in edges
    assert (last, "infer: run") not in edges
    batches = [span for name, span in spans.values() if name.startswith("infer: batch detect-")]
    assert batches
    steps = {spans[link.span_id][0] for batch in batches for link in batch.links}
    assert steps == {"infer: step detect-trunk", "infer: step detect-head"}
