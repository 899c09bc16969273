import json
from dataclasses import replace
from pathlib import Path

import pytest

from infer_svc.backends.trt_api import load_api
from infer_svc.build.manifest import (
    Manifest,
    external_data,
    file_hash,
    model_hash,
    profiles_json,
    target_of,
)
from mesh.errors import SettingsError
from tests.infer_svc.build.orders import FULL, RTX, key, manifest


def test_key_changes_with_each_of_its_parts() -> None:
    first = key()
    others = [
        replace(first, onnx="c" * 64),
        replace(first, target=FULL),
        replace(first, target=replace(RTX, version="1.5.1")),
        replace(first, target=replace(FULL, gpus="sm_80")),
        replace(first, recipe="c" * 64),
        replace(first, profiles="[{}]"),
        replace(first, plugins=("c" * 64,)),
    ]
    assert len({first.digest, *(other.digest for other in others)}) == 8
    assert replace(first).digest == first.digest


def test_manifest_comes_back_from_its_json() -> None:
    made = manifest(replace(key(), plugins=("d",)), b"plan")
    assert Manifest.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "key": {}}', '{"format": 1, "key": 3}',
        '{"format": 2, "key": {}}', "null",
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="manifest"):
        Manifest.from_json(text)


def test_nesting_that_is_too_deep_is_no_manifest() -> None:
    with pytest.raises(SettingsError, match="this is no manifest of an engine: RecursionError"):
        Manifest.from_json("[" * 200_000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", 7), ("recipe", ["precision"]), ("plan_bytes", "many"), ("created", None),
        ("build_s", "1.5"), ("gpu", {}),
    ],
)  # fmt: skip
def test_field_of_another_kind_is_refused_by_name(name: str, value: object) -> None:
    values = json.loads(manifest(key(), b"").to_json()) | {name: value}
    with pytest.raises(SettingsError, match=f"its {name} is "):
        Manifest.from_json(json.dumps(values))


def test_manifest_with_a_field_that_is_not_known_is_refused() -> None:
    values = json.loads(manifest(key(), b"").to_json()) | {"more": 1}
    with pytest.raises(SettingsError, match="more"):
        Manifest.from_json(json.dumps(values))


def test_plan_of_another_size_or_content_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    made = manifest(key(), b"plan")
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        made.check_plan(plan)
    plan.write_bytes(b"plan")
    made.check_plan(plan)
    plan.write_bytes(b"pla")
    with pytest.raises(SettingsError, match="has 3 bytes, its manifest says 4"):
        made.check_plan(plan)
    plan.write_bytes(b"plam")
    with pytest.raises(SettingsError, match="SHA-256"):
        made.check_plan(plan)


def test_rtx_is_portable_and_asks_no_gpu_but_is_of_one_kind_of_fp32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_gpu() -> tuple[int, int]:
        raise AssertionError("asked")

    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    target = target_of(load_api(), no_gpu)
    assert target.gpus == "portable"
    assert str(target) == f"tensorrt_rtx {target.version} on any GPU"
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    exact = target_of(load_api(), no_gpu)
    assert exact != target
    assert str(exact) == f"{target} with NVIDIA_TF32_OVERRIDE=0"


def test_full_tensorrt_is_for_one_compute_capability() -> None:
    api = load_api()
    api.is_rtx = False
    target = target_of(api, lambda: (9, 0))
    assert (target.flavour, target.gpus) == ("tensorrt", "sm_90")


def test_equal_profiles_are_equal_texts() -> None:
    shapes = ((1, 4), (2, 4), (2, 4))
    assert profiles_json([{"a": shapes, "b": shapes}]) == profiles_json(
        [{"b": shapes, "a": shapes}]
    )
    assert profiles_json([{"a": shapes}]) != profiles_json([{"b": shapes}])


def test_external_data_is_part_of_the_hash_and_other_files_are_not(tmp_path: Path) -> None:
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(b"...location\0weights/one.bin...")
    (tmp_path / "weights").mkdir()
    weights = tmp_path / "weights/one.bin"
    weights.write_bytes(b"1")
    (tmp_path / "other.txt").write_bytes(b"1")
    assert external_data(onnx) == [weights]
    before = model_hash(onnx)
    (tmp_path / "other.txt").write_bytes(b"2")
    assert model_hash(onnx) == before
    weights.write_bytes(b"2")
    assert model_hash(onnx) != before


def test_model_without_external_data_has_the_hash_of_its_file(tmp_path: Path) -> None:
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(b"x")
    assert model_hash(onnx) == file_hash([onnx])
    with pytest.raises(SettingsError, match="cannot be read"):
        model_hash(tmp_path / "no.onnx")
