"""What the operating system is told about a process."""

import subprocess
import sys

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
