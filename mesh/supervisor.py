"""The processes of a mesh on one machine: started, watched, restarted, stopped in order."""

import asyncio
import ctypes
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

STAGES = ("preprocess", "infer", "postprocess")
PR_SET_PDEATHSIG = 1
BACKOFF_S = 0.25
MAX_BACKOFF_S = 8.0
SETTLED_S = 20.0
"""A process that lived so long starts again at once."""
BAD_SETTINGS = 2
"""Exit status of a process that cannot start as configured: starting it again is no help."""


@dataclass(eq=False)
class Child:
    """One process of the mesh."""

    name: str
    module: str
    environment: Mapping[str, str]
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    keeper: asyncio.Task[None] | None = field(default=None, repr=False)


class Supervisor:
    """Runs the stages at unix sockets, or at ports, and the gateway in front of them.

    Args:
        models: the model repository.
        replicas: how many processes of each stage; 1 where a stage is not named.
        environment: for all processes, beside the supervisor's own.
        gateway: `host:port` of the public service.
        report: called with one line for each event worth telling.
        tcp: the stages listen at free ports of 127.0.0.1 and share no memory, as if each was on a
            machine of its own.
    """

    def __init__(
        self,
        models: Path,
        replicas: Mapping[str, int],
        environment: Mapping[str, str],
        gateway: str,
        report: Callable[[str], None],
        tcp: bool = False,
    ) -> None:
        self._report = report
        self._tcp = tcp
        self._sockets = tempfile.TemporaryDirectory(prefix="trtmesh-")
        self._stopping = False
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done when a process cannot start as configured; the text says which."""
        self.children = self._plan(models.resolve(), replicas, dict(environment), gateway)

    def start(self) -> None:
        """Start every process and keep it running."""
        for child in self.children:
            child.keeper = asyncio.create_task(self._keep(child))

    async def stop(self, grace_s: float = 45.0) -> None:
        """Stop the gateway first, so that what is under way is answered; then the stages."""
        self._stopping = True
        gateways = [child for child in self.children if child.name == "gateway"]
        stages = [child for child in self.children if child.name != "gateway"]
        for group in (gateways, stages):
            await asyncio.gather(*(self._end(child, grace_s) for child in group))
        self._sockets.cleanup()

    def _plan(
        self, models: Path, replicas: Mapping[str, int], environment: dict[str, str], gateway: str
    ) -> list[Child]:
        children = []
        addresses = {}
        for stage, binds in self._binds(replicas).items():
            addresses[f"GATEWAY_{stage.upper()}"] = ",".join(binds)
            for index, bind in enumerate(binds):
                prefix = stage.upper()
                own = {f"{prefix}_BIND": bind, f"{prefix}_MODELS": str(models)}
                if self._tcp and stage == "infer":
                    own["INFER_ARENA_MBYTES"] = "0"
                # Stages send their spans to the gateway's store, unless told another place.
                traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{gateway}"}
                children.append(
                    Child(f"{stage}-{index}", f"{stage}_svc", traces | environment | own)
                )
        own = {"GATEWAY_BIND": gateway, "GATEWAY_MODELS": str(models)}
        children.append(Child("gateway", "gateway", environment | addresses | own))
        return children

    def _binds(self, replicas: Mapping[str, int]) -> dict[str, list[str]]:
        names = {stage: range(replicas.get(stage, 1)) for stage in STAGES}
        if self._tcp:
            ports = iter(_free_ports(sum(map(len, names.values()))))
            return {stage: [f"127.0.0.1:{next(ports)}" for _ in names[stage]] for stage in STAGES}
        folder = self._sockets.name
        return {
            stage: [f"unix:{folder}/{stage}-{i}.sock" for i in names[stage]] for stage in STAGES
        }

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
            env=child.environment, preexec_fn=partial(_die_with_parent, os.getpid()),
            start_new_session=True,
        )  # fmt: skip
    except OSError as err:  # no memory or no process id free just now
        return str(err)
    return await child.process.wait()


def _free_ports(count: int) -> list[int]:
    """Return distinct ports at which nobody listens."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _die_with_parent(parent: int) -> None:
    """Run in the child before its program: the kernel ends it when the supervisor dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # not 1: in a container that is the supervisor itself
        os._exit(1)
