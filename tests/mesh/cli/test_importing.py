"""`trtmesh import` hands its words to the program of infer_svc."""

from pathlib import Path

import pytest

from mesh.cli import main


def test_words_and_exit_status_are_those_of_the_program(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["hf", str(tmp_path), "--task", "text-generation", "--models", str(tmp_path)]
    assert main(["import", *words, "--name", "m"]) == 1
    assert f"{tmp_path}/config.json cannot be read" in capfd.readouterr().err


def test_help_is_that_of_the_program(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "hf", "--help"]) == 0
    assert "--source-length" in capfd.readouterr().out
