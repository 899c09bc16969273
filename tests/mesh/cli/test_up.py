"""How many processes `trtmesh up` starts; tests/e2e starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.cli.up import _workers
from mesh.cores import workers
from mesh.errors import InvalidInput, SettingsError
from mesh.supervisor import SERVICES
from tests.mesh.cli.libcuda import make_libcuda

VARIABLES = [f"{service.upper()}_WORKERS" for service in SERVICES]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_cores_decide_where_nobody_else_does() -> None:
    assert _workers([]) == {service: workers(service, 0) for service in SERVICES}
    assert _workers([])["infer"] == 1


def test_option_wins_over_the_variable_and_that_over_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREPROCESS_WORKERS", "7")
    monkeypatch.setenv("GATEWAY_WORKERS", "5")
    monkeypatch.setenv("POSTPROCESS_WORKERS", "auto")
    found = _workers(["gateway=3", "infer=2"])
    assert found == {
        "preprocess": 7, "gateway": 3, "postprocess": workers("postprocess", 0), "infer": 2
    }  # fmt: skip


@pytest.mark.parametrize("text", ["preprocess", "preprocess=0", "preprocess=-1", "x=1", "=", "1"])
def test_what_names_no_service_or_no_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"wanted SERVICE=N with one of"):
        _workers([text])


def test_variable_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_WORKERS", "many")
    with pytest.raises(SettingsError, match="GATEWAY_WORKERS"):
        _workers([])


def up(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it, for what is refused at once."""
    return subprocess.run(
        [sys.executable, "-m", "mesh.cli", "up", "--gpu-each", *words],
        env=os.environ | variables, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_gpus_that_there_are_not_cannot_be_had_by_each(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("no library")
    path = str(tmp_path)
    done = up("--models", path, LD_LIBRARY_PATH=path)
    assert done.returncode
    assert "--gpu-each came, and there is no NVIDIA driver: " in done.stderr + done.stdout
    make_libcuda(tmp_path)
    done = up("--models", path, LD_LIBRARY_PATH=path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode
    assert "--gpu-each came, and no GPU is visible" in done.stderr + done.stdout
