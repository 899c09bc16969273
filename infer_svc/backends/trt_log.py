"""What TensorRT says: kept for the texts of errors, and passed on to `logging` later.

TensorRT calls its logger on threads of its own (compilers, its pool), at any time, from functions
of C++ that no exception may leave. So that call only appends to bounded queues.
"""

import collections
import logging
import threading
from typing import Any

log = logging.getLogger(__name__)

KEPT_LINES = 50
QUEUED_LINES = 1000
"""More than that between two calls push out the oldest."""
MAX_THREADS = 64

Kept = collections.deque[str]


class Lines:
    """TensorRT's last lines, of each thread: its errors are nowhere else.

    Any thread may call `add`, which takes no lock; the others are for threads of Python.
    """

    def __init__(self) -> None:
        self._kept: dict[int, Kept] = {}
        self._queue: collections.deque[tuple[int, str]] = collections.deque(maxlen=QUEUED_LINES)

    def add(self, level: int, text: str) -> None:
        """Keep a line for `flush`, and for the texts of errors if it may explain one.

        Args:
            level: as `logging` counts; NOTSET is for nobody.
            text: of one line.
        """
        if level:
            self._queue.append((level, text))
        if level >= logging.WARNING:
            thread = threading.get_ident()
            if thread not in self._kept and len(self._kept) < MAX_THREADS:
                self._kept[thread] = collections.deque(maxlen=KEPT_LINES)
            kept = self._kept.get(thread)
            if kept is not None:
                kept.append(text)

    def clear(self) -> None:
        """Forget the lines of this thread, of TensorRT's own and of those that ended."""
        for thread in [threading.get_ident(), *self._foreign()]:
            self._kept.pop(thread, None)

    def text(self) -> str:
        """Return this thread's lines, or those of TensorRT's own threads if it has none."""
        found = [self._kept.get(thread, Kept()).copy() for thread in self._foreign()]
        lines = self._kept.get(threading.get_ident()) or [line for kept in found for line in kept]
        return "; ".join(line.strip() for line in lines) or "it said nothing"

    def _foreign(self) -> list[int]:
        """Return the threads that are not Python's."""
        known = {thread.ident for thread in threading.enumerate()}
        return [thread for thread in list(self._kept) if thread not in known]

    def flush(self) -> None:
        """Pass on what was said since the last time, warnings and errors as INFO, infos as DEBUG.

        None of it is more than an INFO: what matters becomes the text of an error.
        """
        while True:
            try:
                level, text = self._queue.popleft()
            except IndexError:
                return
            log.log(min(level, logging.INFO), "tensorrt", extra={"line": text.strip()})


def make_logger(trt: Any, lines: Lines) -> Any:
    """Return a logger that TensorRT may call on any thread.

    Args:
        trt: TensorRT's module.
        lines: where it writes.
    """
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR, trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING, trt.ILogger.INFO: logging.DEBUG,
        trt.ILogger.VERBOSE: logging.NOTSET,
    }  # fmt: skip

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            """Take a line."""
            try:
                lines.add(levels.get(severity, logging.DEBUG), text)
            except BaseException:  # noqa: BLE001  it would end the process, as C++ calls this
                return

    return Logger()
