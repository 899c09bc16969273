"""`trtmesh size`: a table, or why there is none."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mesh.test_sizing import write_figures


def size(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mesh.cli", "size", *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_command_tells_processes_and_cores(tmp_path: Path) -> None:
    path = write_figures(tmp_path / "figures.json")
    done = size("--rate", "1000", "--pipeline", "bench", "--figures", str(path))
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[1:5] == [
        ["gateway", "1", "0.50", "0.500"], ["preprocess", "3", "2.00", "2.000"],
        ["infer", "1", "0.30", "0.300"], ["postprocess", "1", "0.20", "0.200"],
    ]  # fmt: skip
    assert "3.0 busy, so at least 5" in done.stdout
    assert "a CPU, 4 cores" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--pipeline", "none"), "no figures of pipeline 'none', but of ['bench']"),
        (("--pipeline", "bench", "--hops", "tcp"), "no figures of 'bench' over tcp"),
        (("--pipeline", "bench", "--rate", "-3"), "rate -3"),
        (("--pipeline", "bench", "--figures", "/nowhere"), "no figures can be read"),
    ],
)
def test_what_cannot_be_told_is_said_why(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    path = write_figures(tmp_path / "figures.json")
    done = size("--rate", "10", "--figures", str(path), *words)
    assert done.returncode == 1
    assert told in done.stderr
