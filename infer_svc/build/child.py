"""A build in a process of its own, followed by its lines to the end."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infer_svc.build.order import Order

SHOWN = 2000
"""Characters of what a child wrote, in an error."""


@dataclass(frozen=True)
class Outcome:
    """How a build ended."""

    result: str
    """`built`, `found`, `refused` or `failed`; empty: it told nothing."""
    error: str
    """Why there is no engine; empty: there is."""


class Child:
    """Runs one order.

    Args:
        order: what to build.
        limit_s: after that it is killed.
        program: command that reads an order and tells of it as `infer_svc.build` does.
    """

    def __init__(
        self, order: Order, limit_s: float, program: tuple[str, ...] | None = None
    ) -> None:
        self._limit_s = limit_s
        self._why_killed = ""
        self._said = tempfile.TemporaryFile(  # noqa: SIM115  `follow` closes it
            "w+", encoding="utf-8", errors="replace"
        )
        program = program or (sys.executable, "-m", "infer_svc.build", "order")
        self._process = subprocess.Popen(
            [*program, "--parent", str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        try:
            with self._process.stdin as pipe:
                pipe.write(order.to_json())
        except BrokenPipeError:
            pass  # it is gone already, and its status tells of that

    def kill(self, why: str) -> None:
        """End it at once.

        Args:
            why: the error that is told.
        """
        self._why_killed = self._why_killed or why
        self._process.kill()

    def follow(self, tell: Callable[[str, int, int], None]) -> Outcome:
        """Wait until it ends; whatever it does, no longer than its limit.

        Args:
            tell: is told the phase, its steps that are done, and how many it has.
        """
        process = self._process
        assert process.stdout is not None
        late = f"it took longer than {self._limit_s:g} s; see INFER_BUILD_LIMIT_S"
        timer = threading.Timer(self._limit_s, self.kill, [late])
        timer.start()
        last: dict[str, Any] = {}
        try:
            for line in process.stdout:
                last = json.loads(line)
                if "phase" in last:
                    tell(last["phase"], last["step"], last["steps"])
            status = process.wait()
        except ValueError:
            self.kill("it told what is no JSON")
            status = process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            process.stdout.close()
        with self._said:
            return self._outcome(last, status)

    def _outcome(self, last: dict[str, Any], status: int) -> Outcome:
        result = str(last.get("result", ""))
        if result:
            return Outcome(result, str(last.get("error", "")))
        if self._why_killed:
            return Outcome("", self._why_killed)
        self._said.seek(0)
        said = self._said.read()[-SHOWN:].strip() or "nothing"
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        why = ", as for want of memory" if status == -9 else ""
        return Outcome("", f"the builder {how}{why}; it said {said}")
