"""A CPU stage is one process or a parent of several; test_director.py starts such."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.errors import SettingsError
from mesh.settings import load
from postprocess_svc.settings import PostprocessSettings
from preprocess_svc.settings import PreprocessSettings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("given", "found"), [("auto", 0), ("0", 0), ("5", 5)])
def test_number_of_workers_may_be_left_to_the_cores(
    given: str, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREPROCESS_WORKERS", given)
    assert load(PreprocessSettings).workers == found
    monkeypatch.delenv("PREPROCESS_WORKERS")
    assert load(PreprocessSettings).workers == 0


@pytest.mark.parametrize("given", ["-1", "many", "257", ""])
def test_number_of_workers_that_cannot_be_is_named(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTPROCESS_WORKERS", given)
    with pytest.raises(SettingsError, match="POSTPROCESS_WORKERS"):
        load(PostprocessSettings)


@pytest.mark.parametrize(
    ("bind", "text"),
    [
        ("unix:/nowhere/x.sock", "2 workers cannot share unix:/nowhere/x.sock"),
        ("127.0.0.1:65500", "wanted host:port with room up to port 65535"),
    ],
)
def test_workers_without_addresses_end_with_one_line_and_status_2(bind: str, text: str) -> None:
    environment = {**os.environ, "POSTPROCESS_BIND": bind, "POSTPROCESS_WORKERS": "2"}
    words = [sys.executable, "-m", "postprocess_svc"]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_parent_loads_no_library_of_the_work() -> None:
    program = (
        "import sys, mesh.workers, preprocess_svc.settings;"
        "print({'cv2', 'transformers', 'tokenizers'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout == "set()\n"
