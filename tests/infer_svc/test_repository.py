import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from infer_svc import repository
from infer_svc.backends.machine import Machine
from infer_svc.config import read_config
from infer_svc.repository import (
    Model,
    load_model,
    model_folders,
    places,
    preloaded,
    version_folder,
    warmup_inputs,
)
from mesh.errors import SettingsError
from mesh.tensor import TensorSpec, dtype_name
from tests.infer_svc import graphs
from tests.infer_svc.graphs import write_model

X = 'input [ { name: "x" data_type: TYPE_FP32 dims: [ %s ] } ]'
Y = 'output [ { name: "y" data_type: TYPE_FP32 dims: [ %s ] } ]'


def names(root: Path) -> list[str]:
    return [folder.name for folder in model_folders(root)]


def test_lanes_are_those_of_every_group_on_each_of_its_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "visible_gpus", lambda: 3)
    text = "instance_group [ { count: 2 gpus: [ 2, 0 ] }, { kind: KIND_GPU } ]"
    config = read_config(write_model(tmp_path, "m", None, text))
    assert places(config) == {2: 3, 0: 3, 1: 1}


def test_lanes_without_a_gpu_are_on_the_cpu(tmp_path: Path) -> None:
    text = "instance_group [ { count: 2 }, { count: 1 kind: KIND_CPU } ]"
    assert places(read_config(write_model(tmp_path, "m", None, text))) == {None: 3}


@pytest.mark.parametrize("visible", [0, 1])
def test_gpu_that_is_not_there_is_refused_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: int
) -> None:
    monkeypatch.setattr(repository, "visible_gpus", lambda: visible)
    config = read_config(write_model(tmp_path, "m", None, "instance_group [ { gpus: [ 1 ] } ]"))
    with pytest.raises(SettingsError, match=rf"wants the GPUs \[1\], this process sees {visible}"):
        places(config)


def test_model_that_wants_a_gpu_without_a_driver_is_refused_with_its_name_and_both_fixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    text = "instance_group [ { kind: KIND_GPU } ]"
    config = read_config(write_model(tmp_path, "m", None, text))
    with pytest.raises(
        SettingsError, match=r"'m' wants a GPU: no PyCUDA: .*trtmesh doctor --gpu.*KIND_CPU"
    ):
        places(config)


def test_model_file_that_is_no_file_is_missing_and_nobody_waits_for_it(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m", None, "")
    os.mkfifo(folder / "1/model.onnx")
    with pytest.raises(SettingsError, match=r"'m' has no file .*model\.onnx"):
        load_model(folder, Machine())


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_repository_that_is_no_folder_is_refused(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "models"
    if kind == "file":
        root.write_text("")
    with pytest.raises(SettingsError, match=f"model repository {root} is no folder"):
        model_folders(root)


def test_repository_may_be_empty(tmp_path: Path) -> None:
    assert names(tmp_path) == []


def test_folders_without_a_model_are_passed_over(tmp_path: Path) -> None:
    write_model(tmp_path, "with-version", graphs.identity())
    write_model(tmp_path, "with-config", None, "", versions=())
    (tmp_path / "only-pipeline").mkdir()
    (tmp_path / "only-pipeline" / "pipeline.yaml").write_text("model: with-version")
    (tmp_path / ".git" / "hooks").mkdir(parents=True)
    (tmp_path / "readme.md").write_text("")
    assert names(tmp_path) == ["with-config", "with-version"]


def test_model_without_config_is_as_its_file_declares(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m", graphs.addition(dims=(2, "n")))
    model = load_model(folder, Machine())
    assert model.version == 1
    assert model.config.max_rows == 0
    assert model.config.inputs == model.placements[0].engine.inputs
    assert model.config.inputs[0] == TensorSpec("left", "FP32", (2, -1))
    assert model.config.outputs == (TensorSpec("sum", "FP32", (2, -1)),)


def test_config_that_agrees_with_the_file_is_taken(tmp_path: Path) -> None:
    text = f"max_batch_size: 4 {X % 4} {Y % 4}"
    config = load_model(write_model(tmp_path, "m", graphs.identity(), text), Machine()).config
    assert config.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert config.outputs == (TensorSpec("y", "FP32", (-1, 4)),)


@pytest.mark.parametrize(
    ("dims", "given", "shape"),
    [(("n", 4), -1, (-1, 4)), (("n", "k"), 4, (-1, 4)), (("n", "k"), -1, (-1, -1))],
    ids=["open-in-config", "open-in-file", "open-in-both"],
)
def test_size_left_open_on_one_side_is_the_other_sides(
    tmp_path: Path, dims: tuple[int | str, ...], given: int, shape: tuple[int, ...]
) -> None:
    text = f"max_batch_size: 4 {X % given} {Y % given}"
    config = load_model(
        write_model(tmp_path, "m", graphs.identity(dims=dims), text), Machine()
    ).config
    assert config.inputs[0].shape == config.outputs[0].shape == shape


def test_newest_version_by_number_is_chosen(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m", b"no model", versions=("2", "10", "9"))
    (folder / "10" / "model.onnx").write_bytes(graphs.identity())
    assert load_model(folder, Machine()).version == 10


def test_folder_names_that_are_no_version_are_passed_over(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m", graphs.identity(), versions=("3", "007", "0", "4a", "²"))
    (folder / "12").write_text("a file, no folder")
    assert load_model(folder, Machine()).version == 3


def test_file_name_of_the_config_is_used(tmp_path: Path) -> None:
    text = 'default_model_filename: "net.onnx"'
    folder = write_model(tmp_path, "m", graphs.identity(), text, filename="net.onnx")
    assert load_model(folder, Machine()).placements[0].engine.outputs[0].name == "y"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('backend: "python"', r"'m' wants the backend 'python', this machine has \['onnxruntime"),
        ('platform: "tensorflow_graphdef"', "wants the backend 'tensorflow_graphdef'"),
        ("max_batch_size: [", r"config\.pbtxt is no ModelConfig"),
        ('default_model_filename: "no.onnx"', r"'m' has no file .*/m/1/no\.onnx"),
        ('input [ { name: "z" data_type: TYPE_FP32 dims: [ -1, 4 ] } ]', "has the input z: FP32"),
        ('input [ { name: "x" data_type: TYPE_FP16 dims: [ -1, 4 ] } ]', "the input x: FP16"),
        (X % "-1, 5", r"has the input x: FP32\[-1,5\], the model file has \['x: FP32\[-1,4\]'\]"),
        (X % "4", r"has the input x: FP32\[4\], the model file has"),
        (Y % "-1, 5", r"has the output y: FP32\[-1,5\], the model file has"),
    ],
    ids=[
        "backend", "platform", "config", "file", "input-name", "input-dtype", "input-size",
        "input-rank", "output-size",
    ],
)  # fmt: skip
def test_model_that_does_not_fit_its_config_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    folder = write_model(tmp_path, "m", graphs.identity(), text)
    with pytest.raises(SettingsError, match=message):
        load_model(folder, Machine())


def test_config_that_lacks_an_input_is_refused(tmp_path: Path) -> None:
    text = 'input [ { name: "left" data_type: TYPE_FP32 dims: [ -1, 4 ] } ]'
    folder = write_model(tmp_path, "m", graphs.addition(), text)
    with pytest.raises(SettingsError, match=r"lacks the inputs \['right'\]"):
        load_model(folder, Machine())


def test_config_may_leave_out_an_output(tmp_path: Path) -> None:
    text = 'output [ { name: "flag_out" data_type: TYPE_BOOL dims: [ -1, 2 ] } ]'
    config = load_model(write_model(tmp_path, "m", graphs.many_kinds(), text), Machine()).config
    assert [spec.name for spec in config.outputs] == ["flag_out"]


def test_model_without_version_is_refused_with_the_folder_it_needs(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m", None, "", versions=())
    with pytest.raises(SettingsError, match=f"'m' has no version: wanted a folder {folder / '1'}"):
        load_model(folder, Machine())


def test_version_without_file_is_refused_with_its_path(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m", None, "")
    with pytest.raises(SettingsError, match=rf"'m' has no file {folder}/1/model\.onnx"):
        load_model(folder, Machine())


@pytest.mark.parametrize("dims", [(1, 4), (8, 4), ()], ids=["one", "eight", "scalar"])
def test_batching_of_a_fixed_batch_dimension_is_refused(
    tmp_path: Path, dims: tuple[int, ...]
) -> None:
    folder = write_model(tmp_path, "m", graphs.identity(dims=dims), "max_batch_size: 8")
    with pytest.raises(SettingsError, match="has no batch dimension of any size; set max_batch_si"):
        load_model(folder, Machine())


def loaded(tmp_path: Path, serialized: bytes, text: str = "") -> Model:
    return load_model(write_model(tmp_path, "m", serialized, text), Machine())


def warmup(tensor: str, extra: str = "") -> str:
    return f' model_warmup [ {{ name: "w" {extra} inputs {{ key: "x" value {{ {tensor} }} }} }} ]'


@pytest.mark.parametrize("text", ["", "max_batch_size: 8"], ids=["unbatched", "batched"])
def test_without_warmups_one_row_of_zeros_is_run_once(tmp_path: Path, text: str) -> None:
    ((tensors, count),) = warmup_inputs(loaded(tmp_path, graphs.identity(), text))
    assert count == 1
    np.testing.assert_array_equal(tensors["x"], np.zeros((1, 4), np.float32))
    assert tensors["x"].dtype == np.float32


def test_zeros_of_strings_are_empty_strings(tmp_path: Path) -> None:
    model = loaded(tmp_path, graphs.many_kinds(), "max_batch_size: 8")
    ((tensors, _),) = warmup_inputs(model)
    assert tensors["text"].tolist() == [[b"", b""]]
    assert model.placements[0].engine.open().run([tensors])["text_out"].tolist() == [[b"", b""]]


def test_without_warmups_a_model_of_open_sizes_is_not_warmed_up(tmp_path: Path) -> None:
    assert warmup_inputs(loaded(tmp_path, graphs.total(), "max_batch_size: 8")) == []


def test_configured_zeros_have_their_rows_and_count(tmp_path: Path) -> None:
    text = "max_batch_size: 8" + warmup(
        "data_type: TYPE_FP32 dims: [ 4 ] zero_data: true", "batch_size: 8 count: 3"
    )
    ((tensors, count),) = warmup_inputs(loaded(tmp_path, graphs.identity(), text))
    assert count == 3
    np.testing.assert_array_equal(tensors["x"], np.zeros((8, 4), np.float32))


@pytest.mark.parametrize(
    ("dtype", "triton", "low", "high"),
    [
        ("FP32", "TYPE_FP32", 0, 1),
        ("FP16", "TYPE_FP16", 0, 1),
        ("UINT8", "TYPE_UINT8", 0, 100),
        ("INT64", "TYPE_INT64", 0, 100),
        ("BOOL", "TYPE_BOOL", 0, 1),
    ],
    ids=["FP32", "FP16", "UINT8", "INT64", "BOOL"],
)
def test_random_values_have_the_dtype_and_differ(
    tmp_path: Path, dtype: str, triton: str, low: int, high: int
) -> None:
    tensor = f"data_type: {triton} dims: [ 100 ] random_data: true"
    model = loaded(
        tmp_path, graphs.identity(dtype, ("n", 100)), "max_batch_size: 8" + warmup(tensor)
    )
    ((tensors, _),) = warmup_inputs(model)
    values = tensors["x"]
    assert dtype_name(values) == dtype
    assert values.shape == (1, 100)
    assert low <= values.min() <= values.max() <= high
    assert dtype == "BOOL" or len(np.unique(values)) > 20


def test_random_strings_are_empty(tmp_path: Path) -> None:
    tensor = "data_type: TYPE_STRING dims: [ 4 ] random_data: true"
    model = loaded(tmp_path, graphs.identity("BYTES"), "max_batch_size: 8" + warmup(tensor))
    ((tensors, _),) = warmup_inputs(model)
    assert tensors["x"].tolist() == [[b""] * 4]


def write_warmup(tmp_path: Path, raw: bytes) -> None:
    folder = tmp_path / "m" / "warmup"
    folder.mkdir()
    (folder / "a.bin").write_bytes(raw)


FROM_FILE = warmup('data_type: TYPE_FP32 dims: [ 4 ] input_data_file: "a.bin"', "batch_size: 3")


def test_file_gives_one_row_that_is_repeated(tmp_path: Path) -> None:
    model = loaded(tmp_path, graphs.identity(), "max_batch_size: 8" + FROM_FILE)
    row = np.array([1, 2, 3, 4], "<f4")
    write_warmup(tmp_path, row.tobytes())
    ((tensors, _),) = warmup_inputs(model)
    np.testing.assert_array_equal(tensors["x"], [row, row, row])


def test_file_gives_all_of_an_input_without_batch_dimension(tmp_path: Path) -> None:
    text = warmup('data_type: TYPE_FP32 dims: [ 1, 4 ] input_data_file: "a.bin"')
    model = loaded(tmp_path, graphs.identity(), text)
    write_warmup(tmp_path, np.arange(4, dtype="<f4").tobytes())
    ((tensors, _),) = warmup_inputs(model)
    np.testing.assert_array_equal(tensors["x"], [[0, 1, 2, 3]])


def test_file_of_strings_has_the_length_before_each(tmp_path: Path) -> None:
    text = warmup('data_type: TYPE_STRING dims: [ 1, 4 ] input_data_file: "a.bin"')
    model = loaded(tmp_path, graphs.identity("BYTES"), text)
    elements = [b"a", b"", b"ccc", b"dd"]
    write_warmup(tmp_path, b"".join(struct.pack("<I", len(e)) + e for e in elements))
    ((tensors, _),) = warmup_inputs(model)
    assert tensors["x"].tolist() == [elements]


@pytest.mark.parametrize(
    "raw",
    [None, b"", bytes(12), bytes(20), bytes(18)],
    ids=["missing", "empty", "short", "long", "uneven"],
)
def test_file_that_does_not_fill_a_row_is_refused_with_its_path(
    tmp_path: Path, raw: bytes | None
) -> None:
    model = loaded(tmp_path, graphs.identity(), "max_batch_size: 8" + FROM_FILE)
    if raw is not None:
        write_warmup(tmp_path, raw)
    with pytest.raises(SettingsError, match=r"warm-up file .*/m/warmup/a\.bin cannot be used"):
        warmup_inputs(model)


def test_warmup_of_an_unknown_input_is_refused_with_those_there_are(tmp_path: Path) -> None:
    tensor = "data_type: TYPE_FP32 dims: [ 4 ]"
    model = loaded(tmp_path, graphs.addition(), "max_batch_size: 8" + warmup(tensor))
    with pytest.raises(SettingsError, match=r"'w' names the input 'x', .* \['left', 'right'\]"):
        warmup_inputs(model)


def test_version_folder_is_that_of_the_newest_version(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m", graphs.identity(), versions=("1", "10", "9", "011"))
    assert version_folder(folder) == folder / "10"
    with pytest.raises(SettingsError, match="'n' has no version"):
        version_folder(write_model(tmp_path, "n", None, versions=()))


def test_preloaded_models_are_in_the_order_of_their_names_and_named_once() -> None:
    folders = [Path(name) for name in "abcd"]
    assert preloaded(folders, ()) == []
    assert preloaded(folders, ("d", "b", "d")) == [Path("d"), Path("b")]
    assert preloaded(folders, ("c", "*", "a")) == [Path(name) for name in "cbda"]
    with pytest.raises(SettingsError, match=r"INFER_PRELOAD names \['x'\]"):
        preloaded(folders, ("a", "x"))


def test_model_with_plans_by_compute_capability_alone_has_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "visible_gpus", lambda: 0)
    text = 'backend: "tensorrt" cc_model_filenames { key: "9.0" value: "h100.plan" }'
    folder = write_model(tmp_path, "m", b"plan", text, filename="h100.plan")
    with pytest.raises(SettingsError, match="wants a GPU, this process sees 0"):
        load_model(folder, Machine())
    (folder / "1/h100.plan").unlink()
    with pytest.raises(SettingsError, match=r"has no file .*model\.plan"):
        load_model(folder, Machine())


ENSEMBLE = f"""
platform: "ensemble" max_batch_size: 4 {X % 4} {Y % 4}
ensemble_scheduling {{ step [ {{
  model_name: "part" input_map {{ key: "x" value: "x" }} output_map {{ key: "y" value: "y" }}
}} ] }}
"""


def test_ensemble_needs_no_file_in_its_version(tmp_path: Path) -> None:
    model = load_model(write_model(tmp_path, "e", None, ENSEMBLE, versions=("1", "2")), Machine())
    assert names(tmp_path) == ["e"]
    assert (model.version, model.placements) == (2, ())
    assert [step.model for step in model.config.ensemble] == ["part"]


def test_ensemble_without_a_version_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "e", None, ENSEMBLE, versions=())
    with pytest.raises(SettingsError, match=r"'e' has no version: wanted a folder .*/e/1"):
        load_model(folder, Machine())


LIGHT = """
import sys
from pathlib import Path
import infer_svc.__main__
from infer_svc.backends.machine import Machine
from infer_svc.build.builds import Builds
from infer_svc.repository import load_model
root = Path(sys.argv[1])
load_model(root / "m", Machine(builds=Builds(root / "engines")))
heavy = {"onnx", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "pycuda", "transformers"}
print(sorted(heavy & sys.modules.keys()), (root / "engines").exists())
"""


def test_model_on_the_cpu_needs_neither_tensorrt_nor_onnx_nor_a_cache(tmp_path: Path) -> None:
    write_model(tmp_path, "m", graphs.identity(), "max_batch_size: 8")
    ran = subprocess.run(
        [sys.executable, "-c", LIGHT, str(tmp_path)], capture_output=True, text=True
    )
    assert ran.stdout == "[] False\n", ran.stderr


PRECISION = (
    'optimization { execution_accelerators { gpu_execution_accelerator : [ { name : "tensorrt" '
    'parameters { key: "precision_mode" value: "FP16" } } ] } }'
)


@pytest.mark.parametrize(("text", "warned"), [(PRECISION, True), ("", False)])
def test_precision_of_a_model_on_the_cpu_is_told_to_do_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, warned: bool
) -> None:
    load_model(write_model(tmp_path, "m", graphs.identity(), text), Machine())
    assert ("precision and plugins are for a GPU" in caplog.text) is warned
