"""Kernels of TensorRT-RTX, compiled in a process of its own before an engine is served.

The compiler of TensorRT-RTX 1.5 spoils the memory of its process now and then: on one H200 6 of 112
processes that compiled those of a small text model ended in a signal, some of them seconds after
it was done; of 84 that found the same kernels compiled, none did.
"""

import argparse
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from infer_svc.backends.cuda import device
from infer_svc.backends.machine import Machine
from infer_svc.backends.tensorrt import TensorRTEngine, tensorrt_api
from infer_svc.backends.trt_api import Kernels
from infer_svc.build import worker

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = object

log = logging.getLogger(__name__)

TRIES = 3
"""A process that ended in a signal is started anew."""
SHOWN = 1000
"""Characters of what a process wrote, in the log."""

Start = Callable[[Sequence[str]], subprocess.Popen[str]]


def add_kernels(commands: Commands) -> None:
    """Add `kernels` to a command line; serving processes use it."""
    parser = commands.add_parser("kernels", help="compile the kernels of an engine for a GPU")
    parser.add_argument("plan", type=Path)
    parser.add_argument("kernels", type=Path)
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--when", choices=get_args(Kernels), default="eager")
    parser.add_argument("--no-graphs", action="store_true")
    parser.add_argument("--parent", type=int, metavar="PID", help="end with this process")
    parser.set_defaults(run=kernels_command)


def kernels_command(arguments: argparse.Namespace) -> int:
    """Open a context, which runs every shape, and write the kernels to a file."""
    worker.prepare(arguments.parent)
    machine = Machine(kernels=arguments.when, graphs=not arguments.no_graphs)
    gpu = device(arguments.gpu)
    engine = TensorRTEngine(tensorrt_api(), gpu, arguments.plan, machine, arguments.kernels)
    context = engine.open()
    engine.settle()
    context.close()
    return 0


class Compiling:
    """Lets processes compile, one at a time.

    Args:
        limit_s: longest time for one of them.
        start: starts a process.
    """

    def __init__(self, limit_s: float, start: Start | None = None) -> None:
        self._limit_s = limit_s
        self._start = start or _start
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def close(self) -> None:
        """End what is being compiled; nothing is compiled after it."""
        self._closed = True
        if (process := self._process) is not None:
            process.kill()

    def compile(self, plan: Path, kernels: Path, gpu: int, when: Kernels, graphs: bool) -> None:
        """Compile the kernels of an engine into a file; no failure is an error.

        Where there is no file in the end, whoever opens the engine compiles by itself.

        Args:
            plan: of the engine.
            kernels: the file.
            gpu: number among the visible ones.
            when: which kernels are wanted; as `Machine.kernels`.
            graphs: as `Machine.graphs`.
        """
        command = [
            str(plan), str(kernels), "--gpu", str(gpu), "--when", when,
            "--parent", str(os.getpid()), *([] if graphs else ["--no-graphs"]),
        ]  # fmt: skip
        for _ in range(TRIES):
            if self._closed:
                return
            status, said = self._run(command)
            if status == 0:
                return
            fields = {"plan": str(plan), "status": status, "said": said[-SHOWN:].strip()}
            log.warning("kernels were not compiled", extra=fields)
            if status > 0:  # it would say the same again
                return

    def _run(self, command: Sequence[str]) -> tuple[int, str]:
        try:
            process = self._process = self._start(command)
        except OSError as err:
            return 1, str(err)
        if self._closed:
            process.kill()
        timer = threading.Timer(self._limit_s, process.kill)
        timer.start()
        try:
            said, _ = process.communicate()
        finally:
            timer.cancel()
            self._process = None
        return process.returncode, said


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "infer_svc.build", "kernels", *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace",
    )  # fmt: skip
