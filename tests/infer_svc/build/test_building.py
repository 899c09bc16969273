import argparse
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from infer_svc.build.building import Lines, add_model, cache_root, model_of, profiled
from infer_svc.build.recipe import Recipe
from infer_svc.config import LENGTHS, read_config
from mesh.errors import NotFound, SettingsError
from tests.infer_svc.build.orders import model_folder, unbuildable
from tests.infer_svc.graphs import write_model


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_model(parser)
    return parser.parse_args(words)


def run(*words: str) -> tuple[int, list[dict[str, object]]]:
    """Run the command in a process of its own, as it changes its process."""
    ran = subprocess.run(
        [sys.executable, "-m", "infer_svc.build", "build", *words], capture_output=True, text=True
    )
    return ran.returncode, [json.loads(line) for line in ran.stdout.splitlines()]


def test_without_wishes_the_config_counts(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    version, config = model_of(arguments("m", "--models", str(tmp_path)))
    assert version == folder / "1"
    assert config == read_config(folder)


def test_wishes_come_before_the_config(tmp_path: Path) -> None:
    model_folder(tmp_path)
    _, config = model_of(arguments(
        "m", "--models", str(tmp_path), "--precision", "int8", "--calibration", "d.npz",
        "--keep", "a", "b", "--tolerance", "0.5", "--workspace", "64", "--sparsity",
        "--profile", "16x8,4",
    ))  # fmt: skip
    assert config.recipe == Recipe(
        "int8", keep=("a", "b"), calibration=Path("d.npz"), tolerance=0.5, workspace_mbytes=64,
        sparsity=True,
    )  # fmt: skip
    assert (config.max_rows, config.lengths) == (16, (4, 8))


def test_profile_may_leave_the_lengths_as_they_are(tmp_path: Path) -> None:
    config = read_config(model_folder(tmp_path))
    assert profiled(config, "0").max_rows == 0
    assert profiled(config, "8").lengths == LENGTHS


@pytest.mark.parametrize("text", ["", "x16", "8x", "8x0", "8x16,", "1x16..8x32", "-1", "many"])
def test_profile_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    config = read_config(model_folder(tmp_path))
    with pytest.raises(SettingsError, match="came, wanted ROWS or ROWSxLENGTH"):
        profiled(config, text)


def test_unknown_model_is_not_found_and_those_there_are_are_named(tmp_path: Path) -> None:
    model_folder(tmp_path)
    with pytest.raises(NotFound, match=r"has no model 'n'; it has \['m'\]"):
        model_of(arguments("n", "--models", str(tmp_path)))


def test_ensemble_has_no_engine_and_its_models_are_named(tmp_path: Path) -> None:
    text = (
        'platform: "ensemble" input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ] '
        'output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ] ensemble_scheduling { step [ '
        '{ model_name: "part" input_map { key: "x" value: "x" } '
        'output_map { key: "y" value: "y" } } ] }'
    )
    write_model(tmp_path, "e", None, text)
    with pytest.raises(SettingsError, match=r"'e' is an ensemble.*build those of \['part'\]"):
        model_of(arguments("e", "--models", str(tmp_path)))


def test_model_that_generates_is_built_where_it_is_served(tmp_path: Path) -> None:
    write_model(tmp_path, "g", None, "model_transaction_policy { decoupled: true }")
    with pytest.raises(SettingsError, match="'g' generates; its engines are built when"):
        model_of(arguments("g", "--models", str(tmp_path)))


def test_precision_may_be_written_as_in_a_config(tmp_path: Path) -> None:
    model_folder(tmp_path)
    _, config = model_of(arguments("m", "--models", str(tmp_path), "--precision", "FP16"))
    assert config.recipe.precision == "fp16"


def test_engine_that_another_model_shares_is_told_by_the_name_that_was_asked(
    tmp_path: Path,
) -> None:
    for name in ("m", "n"):
        model_folder(tmp_path / "models", name)
    words = ("--models", str(tmp_path / "models"), "--cache", str(tmp_path / "engines"))
    assert run("m", *words)[1][-1]["result"] == "built"
    last = run("n", *words)[1][-1]
    assert (last["result"], last["model"]) == ("found", "n")


def test_wish_that_cannot_be_is_refused(tmp_path: Path) -> None:
    model_folder(tmp_path)
    with pytest.raises(SettingsError, match="'workspace_mbytes' is 0"):
        model_of(arguments("m", "--models", str(tmp_path), "--workspace", "0"))


def test_cache_is_where_the_setting_says_unless_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFER_ENGINE_CACHE", str(tmp_path))
    assert cache_root(arguments("m")) == tmp_path
    assert cache_root(arguments("m", "--cache", "/engines")) == Path("/engines")


def test_lines_that_come_fast_are_left_out_and_the_result_is_not() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    for step in range(1000):
        lines.tell("building", step, 1000)
    lines.write(result="built")
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert told[0] == {"phase": "building", "step": 0, "steps": 1000}
    assert told[-1] == {"result": "built"}
    assert len(told) < 100


def test_demo_model_is_built_in_fp16_and_found_the_second_time(tmp_path: Path) -> None:
    words = ("digits-classify", "--precision", "fp16", "--cache", str(tmp_path / "engines"))
    status, lines = run(*words)
    assert status == 0
    assert lines[-1]["result"] == "built"
    assert lines[-1]["precision"] == "fp16"
    assert (Path(str(lines[-1]["folder"])) / "report.json").exists()
    assert "config.pbtxt wants another engine" in str(lines[-1]["note"])
    status, lines = run(*words)
    assert (status, lines[-1]["result"]) == (0, "found")
    status, lines = run("digits-classify", "--cache", str(tmp_path / "engines"))
    assert (status, lines[-1]["result"], lines[-1]["note"]) == (0, "built", "")


@pytest.mark.parametrize(
    ("name", "status", "result", "text"),
    [("m", 1, "failed", "cannot build"), ("n", 3, "refused", "has no model 'n'")],
    ids=["failed", "refused"],
)
def test_exit_status_and_last_line_tell_the_result(
    tmp_path: Path, name: str, status: int, result: str, text: str
) -> None:
    model_folder(tmp_path / "models", content=unbuildable())
    words = (name, "--models", str(tmp_path / "models"), "--cache", str(tmp_path / "engines"))
    found, lines = run(*words)
    assert (found, lines[-1]["result"]) == (status, result)
    assert text in str(lines[-1]["error"])
