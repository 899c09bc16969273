"""A server's processes: started, waited for, measured, stopped."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

START_LIMIT_S = 90.0
STOP_LIMIT_S = 20.0
ROOT = Path(__file__).parent.parent.parent


class ServerFailed(Exception):
    """A server did not start; the text has the end of its log."""


@contextmanager
def running(
    command: list[str],
    environment: Mapping[str, str],
    log: Path,
    ready: Callable[[], bool],
    limit_s: float = START_LIMIT_S,
) -> Iterator[int]:
    """Run a server for the body of a `with`; give its process id once it is ready.

    Args:
        command: program and arguments, started in the repository's root.
        environment: variables beside this process's own.
        log: where its output goes.
        ready: asked again and again.
        limit_s: for that.

    Raises:
        ServerFailed: it ended, or was not ready in time.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, cwd=ROOT, start_new_session=True,
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        _wait(process, ready, log, limit_s)
        yield process.pid
    finally:
        _stop(process)


def listens(port: int) -> bool:
    """Tell whether somebody accepts connections at a port of 127.0.0.1."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _wait(
    process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path, limit_s: float
) -> None:
    end = time.monotonic() + limit_s
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            tail = log.read_text(errors="replace")[-1500:]
            raise ServerFailed(f"not ready (status {process.poll()}), its log ends: {tail}")
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End it as Ctrl-C would; then whatever is left of its session, which is all its own."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_LIMIT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
