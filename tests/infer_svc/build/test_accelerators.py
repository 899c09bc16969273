from pathlib import Path

import pytest

from infer_svc.build.recipe import Recipe
from infer_svc.config import read_config
from mesh.errors import SettingsError


def recipe(tmp_path: Path, accelerators: str) -> Recipe:
    text = f"optimization {{ execution_accelerators {{ {accelerators} }} }}"
    (tmp_path / "config.pbtxt").write_text(text)
    return read_config(tmp_path).recipe


def tensorrt(**parameters: str) -> str:
    pairs = "".join(
        f'parameters {{ key: "{name}" value: "{value}" }}' for name, value in parameters.items()
    )
    return f'gpu_execution_accelerator : [ {{ name : "tensorrt" {pairs} }} ]'


def test_without_an_accelerator_a_model_is_built_in_fp32(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text("")
    assert read_config(tmp_path).recipe == Recipe()
    assert recipe(tmp_path, "") == Recipe()


def test_tritons_parameters_are_read(tmp_path: Path) -> None:
    text = tensorrt(precision_mode="FP16", max_workspace_size_bytes="1073741824")
    assert recipe(tmp_path, text) == Recipe("fp16", workspace_mbytes=1024)


def test_our_own_parameters_are_read(tmp_path: Path) -> None:
    text = tensorrt(
        precision_mode="int8", keep="/a/Conv, /b/*", calibration="data/rows.npz",
        tolerance="0.05", sparsity="true", tf32="0", auto="false",
    )  # fmt: skip
    assert recipe(tmp_path, text) == Recipe(
        "int8", keep=("/a/Conv", "/b/*"), calibration=tmp_path / "data/rows.npz", tolerance=0.05,
        sparsity=True, tf32=False,
    )  # fmt: skip


def test_auto_is_read(tmp_path: Path) -> None:
    assert recipe(tmp_path, tensorrt(precision_mode="FP16", auto="1")).auto


WRONG = {
    "name": ('gpu_execution_accelerator : [ { name : "openvino" } ]', r"\['openvino'\] came"),
    "two": (
        'gpu_execution_accelerator : [ { name : "tensorrt" }, { name : "cuda" } ]',
        r"wanted \['tensorrt'\]",
    ),
    "cpu": ('cpu_execution_accelerator : [ { name : "openvino" } ]', "leave it out"),
    "parameter": (tensorrt(max_cached_engines="3"), "'max_cached_engines' .* came, there are"),
    "precision": (tensorrt(precision_mode="BF16"), "'BF16', wanted FP32, FP16 or INT8"),
    "bytes": (tensorrt(max_workspace_size_bytes="1G"), "'1G', wanted bytes, at least 1048576"),
    "few-bytes": (tensorrt(max_workspace_size_bytes="7"), "'7', wanted bytes, at least"),
    "flag": (tensorrt(sparsity="yes"), "'yes', wanted true or false"),
    "number": (tensorrt(tolerance="low"), "'low', wanted a number"),
    "range": (tensorrt(tolerance="-1"), "'tolerance' is -1.0, wanted"),
    "path": (tensorrt(calibration=""), "'', wanted a path"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_not_known_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"config.pbtxt: .*{message}"):
        recipe(tmp_path, text)
