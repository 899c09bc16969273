"""How the operating system treats a process of the mesh: its time slices and its memory."""

import ctypes
import os
import sys

SWITCH_INTERVAL_S = 0.0005
"""Measured: a thread woken beside a busy loop is 0.7 ms late; 5.2 with Python's default."""
MMAP_THRESHOLD = 4 * 1024 * 1024
TRIM_THRESHOLD = 32 * 1024 * 1024
"""Pictures and messages come from the heap, which keeps its pages: glibc would fetch, zero and
return them anew for each. Measured in `benchmarks/pipeline.py`: 8 to 12 % more requests/s."""
MALLOC_ARENAS = 2

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
"""From glibc's malloc.h."""


def tune() -> None:
    """Prepare this process for the mesh's kind of work; call it before any thread starts.

    With the batch policy a message does not interrupt whoever computes. While a core is free that
    changes nothing; when none is, messages gather until a time slice ends and are cheaper together:
    5 to 10 % more requests/s in `benchmarks/pipeline.py`.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl does not
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD)
        mallopt(_M_ARENA_MAX, MALLOC_ARENAS)
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
