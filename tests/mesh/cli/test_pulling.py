"""`trtmesh pull` brings a repository, once or again and again."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mesh.cli import main


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "from/m/1").mkdir(parents=True)
    (tmp_path / "from/m/1/model.onnx").write_text("one")
    return tmp_path / "from"


def test_repository_is_brought_once(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", f"file://{source}", str(tmp_path / "to")]) == 0
    assert capsys.readouterr().out == "m/1/model.onnx\n"
    assert (tmp_path / "to/m/1/model.onnx").read_text() == "one"
    assert main(["pull", f"file://{tmp_path}/none", str(tmp_path / "to")]) == 1
    assert "cannot be read now" in capsys.readouterr().err
    assert main(["pull", "nowhere://x", str(tmp_path / "to")]) == 1


def test_repository_is_followed(source: Path, tmp_path: Path) -> None:
    words = ["pull", f"file://{source}", str(tmp_path / "to"), "--every", "0.1"]
    with subprocess.Popen(
        [sys.executable, "-m", "mesh.cli", *words], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "m/1/model.onnx\n"
        (source / "m/2").mkdir()
        (source / "m/2/model.onnx").write_text("two")
        assert process.stdout.readline() == "m/2/model.onnx\n"
        time.sleep(0.3)
        assert process.poll() is None
        process.terminate()
