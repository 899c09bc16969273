"""Processes that belong together: started, watched, started again, stopped in order."""

import asyncio
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import attrgetter

from mesh.process import LIBRARIES, die_with_parent

BACKOFF_S = 0.25
MAX_BACKOFF_S = 8.0
SETTLED_S = 20.0
"""A process that lived so long starts again at once."""
GRACE_S = 45.0
BAD_SETTINGS = 2
"""Exit status of a process that cannot start as configured: starting it again is no help."""


@dataclass(eq=False)
class Child:
    """One process of a crew."""

    name: str
    module: str
    environment: Mapping[str, str]
    rank: int = 0
    """Stopped after all of a lower rank have ended."""
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    keeper: asyncio.Task[None] | None = field(default=None, repr=False)


class Crew:
    """Keeps processes running until it is stopped; they do not outlive it.

    Args:
        children: the processes; each is `python -m` its module.
        report: called with one line for each event worth telling.
    """

    def __init__(self, children: Iterable[Child], report: Callable[[str], None]) -> None:
        self.children = list(children)
        self._report = report
        self._stopping = False
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done when a process cannot start as configured; the text says which."""

    def start(self) -> None:
        """Start every process and keep it running."""
        for child in self.children:
            child.keeper = asyncio.create_task(self._keep(child))

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """Stop the processes, those of a lower rank first, so that what is under way is answered.

        Args:
            grace_s: seconds for each rank; who has not ended then is killed.
        """
        self._stopping = True
        rank = attrgetter("rank")
        for _, group in groupby(sorted(self.children, key=rank), rank):
            await asyncio.gather(*(self._end(child, grace_s) for child in group))

    async def _keep(self, child: Child) -> None:
        """Run a process again and again, with a growing pause while it keeps dying young."""
        pause = BACKOFF_S
        while not self._stopping:
            started = time.monotonic()
            status = await _run(child)
            if self._stopping:
                return
            if status == BAD_SETTINGS:
                if not self.failed.done():
                    self.failed.set_result(f"{child.name} cannot start, its log line says why")
                return
            if time.monotonic() - started > SETTLED_S:
                pause = BACKOFF_S
            child.restarts += 1
            self._report(f"{child.name} ended with status {status}; starts again")
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, MAX_BACKOFF_S)

    async def _end(self, child: Child, grace_s: float) -> None:
        process = child.process
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), grace_s)
            except TimeoutError:
                self._report(f"{child.name} did not stop in {grace_s:.0f} s and is killed")
                process.kill()
                await process.wait()
        if child.keeper is not None:
            child.keeper.cancel()
            await asyncio.gather(child.keeper, return_exceptions=True)


async def _run(child: Child) -> int | str:
    """Run a process to its end; return its exit status, or why it could not begin."""
    try:
        child.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", child.module,
            env={**LIBRARIES, **child.environment}, start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )  # fmt: skip
    except OSError as err:  # no memory or no process id free just now
        return str(err)
    return await child.process.wait()
