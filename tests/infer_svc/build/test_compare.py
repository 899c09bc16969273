"""`engine compare`: reports of a model of the repository, or of a file."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from infer_svc.build import compare
from infer_svc.build.__main__ import main
from infer_svc.build.compare import add_compare, model_file
from infer_svc.build.report import Report
from mesh.errors import NotFound, SettingsError
from tests.infer_svc.build.nets import overflowing, perceptron, rows
from tests.infer_svc.graphs import write_model


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_compare(parser.add_subparsers())
    arguments = parser.parse_args(["compare", *map(str, words)])
    return int(arguments.run(arguments))


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """The perceptron, with data.npz beside it."""
    np.savez(tmp_path / "data.npz", x=rows(16))
    return perceptron(tmp_path / "model.onnx")


def test_model_of_the_repository_is_compared(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("digits-classify", "--models", models) == 0
    text = capsys.readouterr().out
    assert "fp16 of " in text
    assert "digits-classify/1/model.onnx: 8 rows of random values" in text
    assert "tolerance 0.01: holds" in text
    assert "  logits " in text
    assert "Conv /body/" in text


def test_both_precisions_are_compared_where_there_is_data(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(net, "--calibration", tmp_path / "data.npz", "--json") == 0
    reports = [Report.from_json(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one.precision, one.rows) for one in reports] == [("fp16", 64), ("int8", 64)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "model.onnx"]


def test_options_reach_the_recipe(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--calibration", tmp_path / "data.npz"]
    assert run(net, *data, "--precision", "int8", "--keep", "wide", "fold", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == ["wide", "fold"]
    assert run(overflowing(tmp_path / "o.onnx"), "--auto", "--layers", "1") == 0
    assert "worst first (1 of 4)" in capsys.readouterr().out


def test_precision_that_loses_too_much_is_shown_and_is_status_1(
    net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(net, "--tolerance", "0") == 1
    assert "tolerance 0: exceeded by 'y'" in capsys.readouterr().out


def test_newest_version_counts(tmp_path: Path) -> None:
    write_model(tmp_path, "m", b"", 'name: "m"\n', versions=("2", "10", "9"))
    assert model_file("m", tmp_path) == tmp_path / "m/10/model.onnx"


def test_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    write_model(tmp_path, "m", None, 'name: "m"\n')
    with pytest.raises(NotFound, match=r"no model 'n'; it has \['m'\]"):
        model_file("n", tmp_path)
    with pytest.raises(NotFound, match=r"no file none\.onnx"):
        model_file("none.onnx", tmp_path)
    with pytest.raises(SettingsError, match=r"model 'm' has no model\.onnx in"):
        model_file("m", tmp_path)


def test_file_of_a_model_that_generates_has_to_be_named(tmp_path: Path) -> None:
    write_model(tmp_path, "g", None, "model_transaction_policy { decoupled: true }")
    with pytest.raises(SettingsError, match=r"'g' generates; name one of its files, as .*step"):
        model_file("g", tmp_path)


def test_command_line_tells_errors_in_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "infer_svc.build", "compare"]
    ended = subprocess.run([*words, "none", "--models", tmp_path], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"trtmesh: {tmp_path} has no model 'none'; it has []\n"


def test_ctrl_c_ends_the_command_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "compare_command", interrupted)
    monkeypatch.setattr(sys, "argv", ["trtmesh engine", "compare", "m"])
    assert main() == 130
    assert capsys.readouterr().err == ""
