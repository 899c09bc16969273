"""What the operating system is told about a process."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from mesh import process
from mesh.process import LIBRARIES, die_with_parent, remove_orphaned

PROGRAM = """
import os, resource, sys
from mesh.process import tune
if sys.argv[1] == "tuned":
    tune()
keep = [bytes(3_000_000) for _ in range(4)]
del keep
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    keep = [bytearray(b"x") * 3_000_000 for _ in range(4)]
    del keep
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(os.sched_getscheduler(0) == os.SCHED_BATCH, sys.getswitchinterval() < 0.001, faults)
"""


def run(kind: str) -> list[str]:
    words = [sys.executable, "-c", PROGRAM, kind]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()


def test_scheduling_and_switch_interval() -> None:
    assert run("untuned")[:2] == ["False", "False"]
    assert run("tuned")[:2] == ["True", "True"]


def test_large_buffers_keep_their_pages() -> None:
    untuned, tuned = (int(run(kind)[2]) for kind in ("untuned", "tuned"))
    assert untuned > 50 * 4 * 700  # each buffer of 732 pages fetched anew
    assert tuned < untuned / 20


PINNED = """
import os, sys
from mesh.process import pin
assert not {"numpy", "cv2", "tokenizers"} & sys.modules.keys()
pin()
import cv2, numpy
numpy.ones((600, 600)) @ numpy.ones((600, 600))
print(len(os.listdir("/proc/self/task")), os.environ["RAYON_NUM_THREADS"])
"""


@pytest.mark.parametrize(("given", "found"), [({}, "1"), ({"RAYON_NUM_THREADS": "3"}, "3")])
def test_libraries_make_no_threads_and_what_is_set_already_stays(
    given: dict[str, str], found: str
) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in LIBRARIES} | given
    words = [sys.executable, "-c", PINNED]
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["1", found]


WAITS = """
import asyncio
from mesh.process import wait_for_signal

async def main():
    waiting = asyncio.create_task(wait_for_signal())
    await asyncio.sleep(0)
    print("waits", flush=True)
    await waiting
    print("ends", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_is_awaited_and_a_second_one_ends_the_process(number: int) -> None:
    words = [sys.executable, "-c", WAITS]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "waits\n"
        waiting.send_signal(number)
        assert waiting.stdout.readline() == "ends\n"
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(10) == 130


def test_child_that_is_told_of_each_thread_of_its_dying_parent_still_ends_in_good_order() -> None:
    words = [sys.executable, "-c", WAITS.replace("sleep(60)", "sleep(0.3)")]
    bound = partial(die_with_parent, os.getpid())
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=bound) as waiting:  # noqa: PLW1509
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "waits\n"
        waiting.terminate()
        assert waiting.stdout.readline() == "ends\n"
        waiting.terminate()
        assert waiting.wait(10) == 0


@pytest.mark.parametrize(
    ("name", "orphan", "stays"),
    [("trtmesh-a", True, False), ("trtmesh-a", False, True), ("run", True, True)],
    ids=["orphaned", "parent_lives", "not_ours"],
)
def test_only_sockets_whose_maker_is_dead_are_cleared_away(
    name: str, orphan: bool, stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "PARENT", -1 if orphan else None)
    folder = tmp_path / name
    folder.mkdir()
    remove_orphaned(folder)
    assert folder.exists() is stays


def test_parent_that_is_dying_is_as_good_as_dead() -> None:
    """Of its threads the first is gone, and the others keep it from being reaped."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    program = f"""
import os
from mesh import process
process.PARENT = {ended.pid}
os.getppid = lambda: {ended.pid}
print(process.is_orphan())
process.PARENT = {os.getpid()}
os.getppid = lambda: {os.getpid()}
print(process.is_orphan())
"""
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert ended.wait() == 0
    assert done.stdout.split() == ["True", "False"]


def test_sockets_of_a_sibling_that_still_lives_are_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "PARENT", -1)
    folder = tmp_path / "trtmesh-a"
    folder.mkdir()
    (folder / "infer-0.sock").touch()
    remove_orphaned(folder)
    assert folder.exists()


@pytest.mark.parametrize(("offset", "status"), [(0, 7), (1, 1)], ids=["its_own", "another"])
def test_child_whose_parent_is_gone_before_it_begins_ends_itself(offset: int, status: int) -> None:
    """Its parent may be process 1: in a container, the supervisor is."""
    program = [sys.executable, "-S", "-c", "raise SystemExit(7)"]
    preexec = partial(die_with_parent, os.getpid() + offset)
    assert subprocess.run(program, preexec_fn=preexec).returncode == status


def test_child_knows_whether_it_dies_with_its_parent() -> None:
    program = [sys.executable, "-c", "from mesh.process import PARENT; print(PARENT)"]
    alone = subprocess.run(program, capture_output=True, text=True, check=True)
    bound = subprocess.run(
        program, capture_output=True, text=True, check=True,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )  # fmt: skip
    assert (alone.stdout, bound.stdout) == ("None\n", f"{os.getpid()}\n")
