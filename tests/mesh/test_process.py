"""What the operating system is told about a process."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, resource, sys
from mesh.process import tune
if sys.argv[1] != "untuned":
    tune(batch=sys.argv[1] == "batch")
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


@pytest.mark.parametrize("kind", ["batch", "interactive"])
def test_scheduling_and_switch_interval(kind: str) -> None:
    assert run(kind)[:2] == [str(kind == "batch"), "True"]


def test_large_buffers_keep_their_pages() -> None:
    untuned, tuned = (int(run(kind)[2]) for kind in ("untuned", "batch"))
    assert untuned > 50 * 4 * 700  # each buffer of 732 pages fetched anew
    assert tuned < untuned / 20
