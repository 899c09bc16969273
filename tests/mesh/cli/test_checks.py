"""Each check passes here, and trips where something is missing."""

import sys
from importlib import metadata
from pathlib import Path

import pytest

from mesh.cli import checks
from mesh.cli.checks import Finding


def test_finding_is_a_line_with_its_fix() -> None:
    assert str(Finding("ok", "Python 3.11")) == "ok       Python 3.11"
    assert str(Finding("missing", "no gcc", "install it")) == "missing  no gcc; install it"


def test_this_python_is_new_enough_and_an_old_one_is_not() -> None:
    assert checks.python() == Finding("ok", "Python " + ".".join(map(str, sys.version_info[:3])))
    assert checks.python((3, 10, 9)) == Finding(
        "missing", "Python 3.10.9 came, wanted 3.11 or newer", "install Python 3.11"
    )


def distribution(folder: Path, *requires: str) -> str:
    """Install a distribution `made-up` that needs others."""
    info = folder / "made_up-1.0.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: made-up", "Version: 1.0"]
    (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {r}" for r in requires)]))
    return "made-up"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_packages_that_fit_are_one_line(site: Path) -> None:
    name = distribution(site, "numpy>=2", "nowhere; extra == 'gpu'", "grpcio")
    assert list(checks.packages(name)) == [Finding("ok", "2 packages of made-up")]


def test_package_that_is_missing_or_too_old_is_named_with_the_command(site: Path) -> None:
    numpy = metadata.version("numpy")
    name = distribution(site, "numpy>=99", "no-such-package[extra]>=1", "grpcio")
    assert list(checks.packages(name)) == [
        Finding(
            "missing", f"package numpy: {numpy} came, wanted >=99", "pip install 'numpy>=99'"
        ),
        Finding(
            "missing", "package no-such-package: none came, wanted >=1",
            "pip install 'no-such-package[extra]>=1'",
        ),
    ]  # fmt: skip


def test_distribution_that_is_not_installed_is_a_warning() -> None:
    (found,) = checks.packages("no-such-distribution")
    assert (found.state, found.fix) == ("warn", "pip install .")


def test_onnxruntime_is_loaded_and_what_is_none_is_told() -> None:
    found = checks.onnxruntime()
    assert found.state == "ok"
    assert found.text.startswith(f"ONNX Runtime {metadata.version('onnxruntime')} ")
    found = checks.onnxruntime("no_such_runtime")
    assert found.state == "missing"
    assert "No module named 'no_such_runtime'" in found.text


def test_process_that_a_signal_ends_is_told() -> None:
    assert checks.ask("import os; os.abort()") == (-6, "ended with -6")


def test_shared_memory_with_and_without_room(tmp_path: Path) -> None:
    assert checks.shared_memory(tmp_path, needed=1).state == "ok"
    found = checks.shared_memory(tmp_path, needed=2**60)
    assert found.state == "warn"
    assert "a replica of infer wants 1099511627776" in found.text
    assert "--shm-size" in found.fix
    assert checks.shared_memory(tmp_path / "none").state == "warn"
