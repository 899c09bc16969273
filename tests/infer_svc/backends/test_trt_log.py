"""TensorRT's lines come from any thread, and wait for nobody."""

import _thread
import ctypes
import logging
import shutil
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infer_svc.backends.trt_log import MAX_THREADS, QUEUED_LINES, Lines, make_logger
from tests.conftest import eventually


def foreign(work: Any) -> None:
    """Run something in a thread that Python's `threading` does not know, as those of C++."""
    done = threading.Event()

    def run() -> None:
        work()
        done.set()

    _thread.start_new_thread(run, ())
    assert done.wait(5)


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.__dict__["line"]) for record in caplog.records]


def test_lines_are_kept_for_each_thread_and_bounded() -> None:
    lines = Lines()
    lines.add(logging.ERROR, "mine")
    other: list[str] = []

    def work() -> None:
        other.append(lines.text())
        for number in range(100):
            lines.add(logging.WARNING, f"{number}\n")
        other.append(lines.text())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert other[0] == "it said nothing"
    assert other[1].split("; ") == [str(number) for number in range(50, 100)]
    assert lines.text() == "mine"
    lines.clear()
    assert lines.text() == "it said nothing"


def test_lines_of_tensorrts_own_threads_explain_an_error_without_lines() -> None:
    lines = Lines()
    foreign(lambda: lines.add(logging.ERROR, "no kernel"))
    assert lines.text() == "no kernel"
    lines.add(logging.ERROR, "mine")
    assert lines.text() == "mine"
    lines.clear()
    assert lines.text() == "it said nothing"


def test_what_is_no_warning_explains_nothing() -> None:
    lines = Lines()
    lines.add(logging.DEBUG, "fine")
    assert lines.text() == "it said nothing"


def test_threads_that_ended_leave_room_for_others() -> None:
    lines = Lines()
    gate = threading.Barrier(MAX_THREADS + 1)
    held = threading.Event()

    def work() -> None:
        lines.add(logging.ERROR, "one of many")
        gate.wait(5)
        held.wait(5)

    threads = [threading.Thread(target=work) for _ in range(MAX_THREADS)]
    for thread in threads:
        thread.start()
    gate.wait(5)
    lines.add(logging.ERROR, "one too many")
    assert lines.text() == "it said nothing"
    held.set()
    for thread in threads:
        thread.join()
    lines.clear()
    lines.add(logging.ERROR, "room again")
    assert lines.text() == "room again"


def test_only_flush_calls_logging_and_bounded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    lines = Lines()
    for number in range(QUEUED_LINES + 10):
        lines.add(logging.ERROR, f"{number}\n")
    lines.add(logging.DEBUG, "detail")
    lines.add(logging.NOTSET, "noise")
    assert not caplog.records
    lines.flush()
    assert len(caplog.records) == QUEUED_LINES
    assert said(caplog)[0] == (logging.INFO, "11")
    assert said(caplog)[-1] == (logging.DEBUG, "detail")
    caplog.clear()
    lines.flush()
    assert not caplog.records


class Base:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self.made = True


def test_severities_become_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    lines = Lines()
    logger = make_logger(SimpleNamespace(ILogger=Base), lines)
    for severity in (*range(5), "of a newer version"):
        logger.log(severity, str(severity))
    assert lines.text() == "0; 1; 2"
    lines.flush()
    assert said(caplog) == [
        (logging.INFO, "0"), (logging.INFO, "1"), (logging.INFO, "2"),
        (logging.DEBUG, "3"), (logging.DEBUG, "of a newer version"),
    ]  # fmt: skip


class Broken(Lines):
    def add(self, level: int, text: str) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("severity", [1, [], None], ids=["error", "unhashable", "none"])
def test_logger_never_raises(severity: Any) -> None:
    make_logger(SimpleNamespace(ILogger=Base), Broken()).log(severity, "text")


async def test_logger_waits_for_no_lock_that_another_thread_holds() -> None:
    """A handler of `logging` may be busy, and a thread may hold `threading`'s own lock."""
    lines = Lines()
    logger = make_logger(SimpleNamespace(ILogger=Base), lines)
    written: list[int] = []

    def write() -> None:
        for number in range(QUEUED_LINES):
            logger.log(1, str(number))
            written.append(number)

    with logging._lock, threading._active_limbo_lock:  # type: ignore[attr-defined]
        _thread.start_new_thread(write, ())
        await eventually(lambda: len(written) == QUEUED_LINES)


async def test_texts_and_clears_beside_writers_never_fail() -> None:
    lines = Lines()
    logger = make_logger(SimpleNamespace(ILogger=Base), lines)
    ended: list[int] = []
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            logger.log(1, "again")
        ended.append(1)

    for _ in range(3):
        _thread.start_new_thread(write, ())
    for _ in range(200):
        lines.text()
        lines.clear()
    stop.set()
    await eventually(lambda: len(ended) == 3)
    lines.flush()
    lines.clear()
    assert lines.text() == "it said nothing"


C_THREADS = r"""
#include <pthread.h>
typedef void (*call)(int);
static call it; static int calls;
static void *work(void *number) {
  for (int i = 0; i < calls; i++) it((int)(long)number);
  return 0; }
void run(call given, int threads, int count) {
  pthread_t made[64]; it = given; calls = count;
  for (long i = 0; i < threads; i++) pthread_create(&made[i], 0, work, (void *)i);
  for (int i = 0; i < threads; i++) pthread_join(made[i], 0); }
"""


def test_threads_made_by_c_may_call_the_logger_while_python_clears_and_flushes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if shutil.which("gcc") is None:
        pytest.fail("gcc is not there, which compiles threads of C; install the package gcc")
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-pthread", "-o", tmp_path / "threads.so", "-xc", "-"],
        input=C_THREADS, text=True, check=True,
    )  # fmt: skip
    caplog.set_level(logging.INFO)
    lines = Lines()
    sink = make_logger(SimpleNamespace(ILogger=Base), lines).log
    call = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: sink(1, f"C {number}"))
    library = ctypes.CDLL(str(tmp_path / "threads.so"))
    worker = threading.Thread(target=library.run, args=(call, 16, 60))
    worker.start()
    while worker.is_alive():
        lines.clear()
        lines.flush()
    worker.join()
    lines.flush()
    assert QUEUED_LINES >= 16 * 60
    found = [line for _, line in said(caplog)]
    assert {name: found.count(name) for name in found} == {f"C {n}": 60 for n in range(16)}
    library.run(call, 1, 1)
    assert lines.text().endswith("C 0")
    before = threading.active_count()
    library.run(call, 16, 10)
    assert threading.active_count() == before, "no thread of C becomes one of Python's"
