from pathlib import Path

import pytest

from infer_svc.build.cache import CachedEngine
from infer_svc.build.manifest import Target
from infer_svc.build.selection import foreign, model_file, plan_of, source_of
from infer_svc.config import read_config
from mesh.errors import EngineError
from tests.infer_svc.build.orders import FULL, RTX, key, manifest

MAP = (
    'backend: "tensorrt" cc_model_filenames { key: "9.0" value: "h100.plan" } '
    'cc_model_filenames { key: "8.0" value: "a100.plan" }'
)
PLAIN = 'backend: "tensorrt"'


def version(tmp_path: Path, *names: str) -> Path:
    folder = tmp_path / "m/1"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"plan")
    return folder


def choose(
    folder: Path, config: str, capability: tuple[int, int] = (9, 0), target: Target = FULL
) -> CachedEngine | None:
    (folder.parent / "config.pbtxt").write_text(config)
    return plan_of(folder, read_config(folder.parent), target, lambda: capability)


def test_plan_of_the_compute_capability_comes_first(tmp_path: Path) -> None:
    folder = version(tmp_path, "model.plan", "h100.plan", "a100.plan", "model.onnx")
    names = {
        capability: found.plan.name
        for capability in ((9, 0), (8, 0), (8, 6))
        if (found := choose(folder, MAP, capability)) is not None
    }
    assert names == {(9, 0): "h100.plan", (8, 0): "a100.plan", (8, 6): "model.plan"}


def test_without_a_plan_an_engine_is_built(tmp_path: Path) -> None:
    folder = version(tmp_path, "model.onnx")
    assert choose(folder, PLAIN) is None
    assert choose(folder, MAP, (7, 5)) is None
    assert choose(folder, "instance_group [ { kind: KIND_GPU } ]") is None


def test_without_a_map_no_gpu_is_asked(tmp_path: Path) -> None:
    folder = version(tmp_path, "model.plan")
    (folder.parent / "config.pbtxt").write_text(PLAIN)
    found = plan_of(folder, read_config(folder.parent), FULL, lambda: pytest.fail("asked"))
    assert found == CachedEngine(folder / "model.plan", None)


def test_plan_that_the_map_names_must_be_there(tmp_path: Path) -> None:
    folder = version(tmp_path, "model.plan", "model.onnx")
    with pytest.raises(EngineError, match=r"names 'h100\.plan' for this GPU, .* is missing"):
        choose(folder, MAP)


@pytest.mark.parametrize("name", ["manifest.json", "model.manifest.json"])
def test_plan_with_a_manifest_that_fits_is_taken(tmp_path: Path, name: str) -> None:
    folder = version(tmp_path, "model.plan")
    made = manifest(key(target=FULL), b"plan")
    (folder / name).write_text(made.to_json())
    assert choose(folder, PLAIN) == CachedEngine(folder / "model.plan", made)


@pytest.mark.parametrize(
    ("built", "text"),
    [
        (RTX, "built for tensorrt_rtx 1.5.0 on any GPU; here runs tensorrt 10.16.1 on sm_90"),
        (Target("tensorrt", "10.15", "sm_90"), "built for tensorrt 10.15 on sm_90; here"),
        (Target("tensorrt", "10.16.1", "sm_80"), "built for tensorrt 10.16.1 on sm_80; here"),
    ],
    ids=["flavour", "version", "gpu"],
)
def test_foreign_plan_is_refused_with_where_it_is_from_and_what_to_do(
    tmp_path: Path, built: Target, text: str
) -> None:
    folder = version(tmp_path, "model.plan", "model.onnx")
    (folder / "manifest.json").write_text(manifest(key(target=built), b"plan").to_json())
    with pytest.raises(EngineError, match=f"{text}.*trtmesh engine build"):
        choose(folder, PLAIN)


def test_plan_that_is_not_that_of_its_manifest_is_refused(tmp_path: Path) -> None:
    folder = version(tmp_path, "model.plan")
    (folder / "manifest.json").write_text(manifest(key(target=FULL), b"plam").to_json())
    with pytest.raises(EngineError, match="cannot be trusted"):
        choose(folder, PLAIN)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(EngineError, match="no manifest"):
        choose(folder, PLAIN)


def test_model_file_is_any_that_an_engine_can_come_from(tmp_path: Path) -> None:
    folder = version(tmp_path)
    (folder.parent / "config.pbtxt").write_text(MAP)
    config = read_config(folder.parent)
    assert model_file(folder, config) == folder / "model.plan"
    for name in ("model.onnx", "a100.plan", "model.plan"):
        (folder / name).touch()
        assert model_file(folder, config) == folder / name


def test_source_is_the_onnx_file(tmp_path: Path) -> None:
    folder = version(tmp_path, "net.onnx")
    (folder.parent / "config.pbtxt").write_text('default_model_filename: "net.onnx"')
    assert source_of(folder, read_config(folder.parent)) == folder / "net.onnx"
    (folder.parent / "config.pbtxt").write_text(PLAIN)
    with pytest.raises(EngineError, match=r"neither a plan for this GPU nor .*model\.onnx"):
        source_of(folder, read_config(folder.parent))


def test_plan_of_unknown_origin_is_refused_with_what_runs_here() -> None:
    error = foreign(Path("m/1/model.plan"), RTX, "it is broken")
    assert "it is broken; here runs tensorrt_rtx 1.5.0 on any GPU" in str(error)
