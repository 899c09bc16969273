"""CPU time of a tree of processes, by what each of them is."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from benchmarks.load.cpu import cpu_seconds, cpu_us, kind_of

BURN_S = 0.4
CHILD = f"""
import sys, time
while time.process_time() < {BURN_S}:
    pass
print("burnt", flush=True)
sys.stdin.readline()
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "child.py"], stdin=subprocess.PIPE)
sys.stdin.readline()
child.communicate(b"end")
print("waited", flush=True)
sys.stdin.readline()
"""


@contextmanager
def tree(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A parent that does nothing, and its child that has just burnt its CPU time."""
    (folder / "child.py").write_text(CHILD)
    (folder / "parent.py").write_text(PARENT)
    command = [sys.executable, "parent.py"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, text=True, **pipes) as parent:  # type: ignore[call-overload]
        try:
            assert parent.stdout.readline() == "burnt\n"
            yield parent
        finally:
            parent.communicate("end\nend\n")


def test_cpu_of_a_child_is_counted_under_its_own_name(tmp_path: Path) -> None:
    with tree(tmp_path) as parent:
        used = cpu_seconds(parent.pid)
    assert used.keys() == {"parent.py", "child.py"}
    assert BURN_S - 0.05 <= used["child.py"] < BURN_S + 0.3
    assert used["parent.py"] < 0.3


def test_cpu_of_a_child_that_ended_is_not_lost(tmp_path: Path) -> None:
    with tree(tmp_path) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        parent.stdin.write("end\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "waited\n"
        used = cpu_seconds(parent.pid)
    assert used.keys() == {"parent.py"}
    assert used["parent.py"] >= BURN_S - 0.05


def test_process_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with tree(tmp_path) as parent:
        pass
    with pytest.raises(psutil.NoSuchProcess):
        cpu_seconds(parent.pid)


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        pytest.param(["/v/bin/python", "-m", "gateway"], "gateway", id="module"),
        pytest.param(["python3", "-m", "mesh.cli", "up", "--bind", "x"], "mesh.cli", id="words"),
        pytest.param(["/s/bin/tritonserver", "--model-repository=/r"], "tritonserver", id="binary"),
        pytest.param(["/b/triton_python_backend_stub", "/r/run/1/model.py", "x"],
                     "triton_python_backend_stub", id="stub"),
        pytest.param(["/v/bin/python", "/v/bin/uvicorn", "app"], "uvicorn", id="script"),
        pytest.param(["/v/bin/python", "-c", "from multiprocessing…"], "from multiprocessing…",
                     id="code"),
        pytest.param([], "ended", id="zombie"),
    ],
)  # fmt: skip
def test_process_is_named_after_what_it_runs(command: list[str], kind: str) -> None:
    assert kind_of(command) == kind


def test_cpu_per_answer_is_the_difference_of_two_looks() -> None:
    before = {"gateway": 1.0}
    after = {"gateway": 1.5, "infer_svc": 0.25}
    assert cpu_us(before, after, 1000) == {"gateway": 500, "infer_svc": 250}


def test_cpu_per_answer_without_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="no request was answered"):
        cpu_us({}, {"gateway": 1.0}, 0)
