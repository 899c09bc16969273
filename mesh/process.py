"""How the operating system treats a process of the mesh: its time slices, threads and memory."""

import asyncio
import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

SWITCH_INTERVAL_S = 0.0005
"""Measured: a thread woken beside a busy loop is 0.7 ms late; 5.2 with Python's default."""
MMAP_THRESHOLD = 4 * 1024 * 1024
TRIM_THRESHOLD = 32 * 1024 * 1024
"""Pictures and messages come from the heap, which keeps its pages: glibc would fetch, zero and
return them anew for each. Measured in `benchmarks/pipeline.py`: 8 to 12 % more requests/s."""
MALLOC_ARENAS = 2

LIBRARIES = {
    # Processes are the replicas; a pool of threads in each would only fight over the cores.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Tokenizers need no PyTorch, so nobody has to be told that it is not there.
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    # Without it gRPC writes a line to stderr for each process that is started beside its threads.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
}
"""Variables that libraries read when they are imported or first used."""

PR_SET_PDEATHSIG = 1
PR_GET_PDEATHSIG = 2


def _parent() -> int | None:
    """Return the process that this one dies with; None: with nobody."""
    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(number))
    return os.getppid() if number.value else None


PARENT = _parent()
SOCKETS = "trtmesh-"
"""How the names of folders begin in which the processes of one mesh have their sockets."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
"""From glibc's malloc.h."""


def die_with_parent(parent: int) -> None:
    """Run in a child before its program: the kernel ends it when its parent dies.

    Args:
        parent: who started it.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # not 1: in a container that is the parent itself
        os._exit(1)


def is_orphan() -> bool:
    """Tell whether the process that this one dies with is dead, or about to be."""
    if PARENT is None or os.getppid() != PARENT:
        return PARENT is not None
    # Its first thread may be gone, which is told here already, while others still end.
    try:
        stat = Path(f"/proc/{PARENT}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def remove_orphaned(folder: Path) -> None:
    """Remove a folder of sockets whose maker was this process's parent and is dead.

    The last one of its children finds it empty.
    """
    if is_orphan() and folder.name.startswith(SOCKETS):
        with suppress(OSError):
            folder.rmdir()


def pin() -> None:
    """Keep libraries from threads of their own; call it before any of them is imported.

    What is set already stays.
    """
    for name, value in LIBRARIES.items():
        os.environ.setdefault(name, value)  # noqa: TID251 for libraries


def hide(package: str) -> None:
    """Make a package look as if it were not installed; for one that others import needlessly.

    Where PyTorch is installed, transformers imports it for tokenizers, too: that took 10 s and
    300 MB.
    """
    sys.modules.setdefault(package, None)  # type: ignore[arg-type]


async def wait_for_signal() -> None:
    """Wait for SIGTERM or SIGINT; a second one ends the process at once."""
    stop = asyncio.Event()

    def on_signal() -> None:
        # The kernel tells a child of each of its parent's threads that dies.
        if stop.is_set() and PARENT is None:
            os._exit(130)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    await stop.wait()


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
