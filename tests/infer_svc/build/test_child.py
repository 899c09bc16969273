import subprocess
import sys
import threading
from pathlib import Path

import psutil

from infer_svc.build.child import Child, Outcome
from tests.conftest import eventually
from tests.infer_svc.build.orders import builder, order, unbuildable

READ = "import json, sys, time; order = json.load(sys.stdin)\n"
Told = list[tuple[str, int, int]]


def follow(tmp_path: Path, source: str, limit_s: float = 20.0) -> tuple[Outcome, Told]:
    told: Told = []
    outcome = builder(source)(order(tmp_path), limit_s).follow(
        lambda phase, step, steps: told.append((phase, step, steps))
    )
    return outcome, told


def test_phases_and_result_are_told(tmp_path: Path) -> None:
    source = READ + (
        "print(json.dumps({'phase': order['model'], 'step': 1, 'steps': 2}))\n"
        "print(json.dumps({'result': 'built'}))"
    )
    assert follow(tmp_path, source) == (Outcome("built", ""), [("m", 1, 2)])


def test_error_of_a_build_is_told(tmp_path: Path) -> None:
    source = READ + "print(json.dumps({'result': 'failed', 'error': 'no'})); sys.exit(1)"
    assert follow(tmp_path, source)[0] == Outcome("failed", "no")


def test_child_that_hangs_is_ended_at_its_limit(tmp_path: Path) -> None:
    outcome, _ = follow(tmp_path, READ + "time.sleep(60)", limit_s=0.5)
    assert outcome.result == ""
    assert outcome.error == "it took longer than 0.5 s; see INFER_BUILD_LIMIT_S"


def test_child_that_closes_its_output_and_hangs_is_ended_too(tmp_path: Path) -> None:
    source = READ + "import os; os.close(1); time.sleep(60)"
    assert "longer than 0.5 s" in follow(tmp_path, source, limit_s=0.5)[0].error


def test_child_that_is_killed_is_an_error_with_its_signal(tmp_path: Path) -> None:
    source = READ + "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert "killed by signal 9, as for want of memory" in follow(tmp_path, source)[0].error


def test_child_that_fails_without_a_word_is_an_error_with_what_it_wrote(tmp_path: Path) -> None:
    outcome, _ = follow(tmp_path, READ + "sys.exit('no such thing')")
    assert outcome.error == "the builder ended with status 1; it said no such thing"


def test_child_that_does_not_read_its_order_is_an_error(tmp_path: Path) -> None:
    assert "ended with status 5" in follow(tmp_path, "raise SystemExit(5)")[0].error


def test_child_that_tells_no_json_is_an_error(tmp_path: Path) -> None:
    outcome, _ = follow(tmp_path, READ + "print('hello', flush=True); time.sleep(60)")
    assert outcome.error == "it told what is no JSON"


def test_child_that_is_ended_from_another_thread_tells_why(tmp_path: Path) -> None:
    child = builder(READ + "time.sleep(60)")(order(tmp_path), 60.0)
    threading.Timer(0.2, child.kill, ["stopping"]).start()
    assert child.follow(lambda *_: None) == Outcome("", "stopping")


PARENT = """
import os, subprocess, sys
words = [sys.executable, "-m", "infer_svc.build", "order", "--parent", str(os.getpid())]
child = subprocess.Popen(words, stdout=subprocess.DEVNULL)
while os.getpriority(os.PRIO_PROCESS, child.pid) == 0:
    pass
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""


async def test_builder_has_a_lower_priority_and_ends_with_the_process_that_wanted_it() -> None:
    """It waits here for an order that never comes, as its standard input stays open."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        await eventually(lambda: gone(pid), 20)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_builder_that_came_too_late_for_its_parent_ends() -> None:
    words = [sys.executable, "-m", "infer_svc.build", "order", "--parent", "1"]
    ran = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "the process that wanted this build is gone" in ran.stderr


def test_order_reaches_the_real_builder(tmp_path: Path) -> None:
    outcome = Child(order(tmp_path, unbuildable()), 60.0).follow(lambda *_: None)
    assert outcome.result == "failed"
    assert "cannot build" in outcome.error
