"""Kernels are compiled in processes of their own, which may crash."""

import logging
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from infer_svc.backends.trt_api import Kernels
from infer_svc.build.builds import Builds
from infer_svc.build.cache import CachedEngine
from infer_svc.build.kernels import TRIES, Compiling
from tests.infer_svc.build.orders import key, manifest

WRITE = "import sys; open(sys.argv[2], 'wb').write(b'kernels')"
CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
REFUSE = "import sys; sys.exit('no such GPU')"
HANG = "import time; time.sleep(60)"


class Programs:
    """Starts one program after the other; the last again and again."""

    def __init__(self, *sources: str) -> None:
        self.commands: list[Sequence[str]] = []
        self.began = threading.Event()
        self._sources = sources

    def __call__(self, command: Sequence[str]) -> subprocess.Popen[str]:
        source = self._sources[min(len(self.commands), len(self._sources) - 1)]
        self.commands.append(command)
        self.began.set()
        return subprocess.Popen(
            [sys.executable, "-c", source, *command],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


class FakeApi:
    is_rtx = True


def kernels(
    tmp_path: Path, programs: Programs, when: Kernels = "eager", *, rtx: bool = True
) -> Path | None:
    """Return the file of the kernels of an engine in the cache."""
    api: Any = FakeApi()
    api.is_rtx = rtx
    builds = Builds(
        tmp_path / "engines", api=lambda: api, capability=lambda _: (9, 0),
        compiling=Compiling(10, programs),
    )  # fmt: skip
    builds._cache.open()
    (tmp_path / "engine").mkdir(exist_ok=True)
    folder = tmp_path / "engine"
    engine = CachedEngine(folder / "model.plan", manifest(key(), b"plan"), folder / "runtime.cache")
    return builds.kernels_for(engine, 0, when, graphs=True)


def test_kernels_are_compiled_once_for_each_kind_of_gpu(tmp_path: Path) -> None:
    programs = Programs(WRITE)
    for _ in range(2):
        found = kernels(tmp_path, programs)
        assert found == tmp_path / "engine/runtime-sm_90.cache"
        assert found.read_bytes() == b"kernels"
    (command,) = programs.commands
    assert command[:2] == [str(tmp_path / "engine/model.plan"), str(found)]
    assert command[2:6] == ["--gpu", "0", "--when", "eager"]


def test_compiler_that_crashes_is_started_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    programs = Programs(CRASH, CRASH, WRITE)
    found = kernels(tmp_path, programs)
    assert found is not None
    assert found.exists()
    assert [record.__dict__["status"] for record in caplog.records] == [-11, -11]


@pytest.mark.parametrize(("source", "times"), [(CRASH, TRIES), (REFUSE, 1)])
def test_kernels_that_cannot_be_compiled_are_left_to_the_process_that_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, source: str, times: int
) -> None:
    programs = Programs(source)
    found = kernels(tmp_path, programs)
    assert found is not None
    assert not found.exists()
    assert len(programs.commands) == times
    assert ("no such GPU" in {record.__dict__["said"] for record in caplog.records}) == (times == 1)


@pytest.mark.parametrize(("when", "rtx"), [("lazy", True), ("eager", False)])
def test_nothing_is_compiled_before_where_it_is_done_later_or_never(
    tmp_path: Path, when: Kernels, rtx: bool
) -> None:
    programs = Programs(WRITE)
    assert kernels(tmp_path, programs, when, rtx=rtx) is not None
    assert not programs.commands


def test_plan_of_the_repository_keeps_no_kernels(tmp_path: Path) -> None:
    builds = Builds(tmp_path, capability=lambda _: (9, 0))
    assert builds.kernels_for(CachedEngine(tmp_path / "model.plan", None), 0, "eager", True) is None


def test_compiler_that_takes_too_long_is_killed_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    programs = Programs(HANG)
    Compiling(0.2, programs).compile(tmp_path / "p", tmp_path / "k", 0, "eager", graphs=True)
    assert [record.__dict__["status"] for record in caplog.records] == [-9] * TRIES


def test_compiler_ends_when_the_builds_do(tmp_path: Path) -> None:
    programs = Programs(HANG)
    compiling = Compiling(60, programs)
    thread = threading.Thread(
        target=compiling.compile, args=(tmp_path / "p", tmp_path / "k", 0, "eager", True)
    )
    thread.start()
    assert programs.began.wait(10)
    compiling.close()
    thread.join(10)
    assert not thread.is_alive()
    compiling.compile(tmp_path / "p", tmp_path / "k", 0, "eager", graphs=True)
    assert len(programs.commands) == 1


def test_real_compiler_without_a_gpu_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    Compiling(60).compile(tmp_path / "p", tmp_path / "k", 99, "eager", graphs=False)
    (record,) = caplog.records
    assert record.__dict__["status"] == 1
    assert "trtmesh: " in record.__dict__["said"]
