"""One system's turn in a round: started, checked, loaded, stopped; alone on the machine."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import zip_longest
from typing import Any

from benchmarks.load.cpu import cpu_seconds, cpu_us
from benchmarks.peers.server import ROOT
from benchmarks.peers.systems import Place, System

CONCURRENCY = 32
CLIENT_LIMIT_S = 120.0


@dataclass(frozen=True)
class Plan:
    """How long, and how hard."""

    seconds: float
    """Of the closed loop with many requests under way, and of each rate of the open loop."""
    rates: tuple[float, ...] = ()
    """Of the open loop, requests per second; rates far above what the system can do are left
    out."""


@dataclass(frozen=True)
class Turn:
    """What one turn gave; reports as of `benchmarks.load.report`."""

    busy: dict[str, Any]
    """32 requests under way."""
    alone: dict[str, Any]
    """One request at a time."""
    cpu_us: dict[str, float]
    """CPU of the server per answer while busy, in microseconds, by process."""
    swept: dict[float, dict[str, Any]] = field(default_factory=dict)
    """The open loop, by rate."""

    @property
    def total_cpu_us(self) -> float:
        """CPU of all processes of the server per answer."""
        return sum(self.cpu_us.values())

    def record(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self) | {"total_cpu_us": round(self.total_cpu_us, 1)}


class WrongAnswers(Exception):
    """A system does not give the answers of its reference."""


class ClientFailed(Exception):
    """A client process ended with an error; the text is its last line."""


def take(system: System, place: Place, plan: Plan) -> Turn:
    """Let a system have its turn.

    Raises:
        ServerFailed, ClientFailed: it did not start, or does not answer.
        WrongAnswers: of 64 payloads one has another best class than the reference gives.
    """
    if not system.protocol:
        return _loop_turn(system, place, plan)
    with system.serve(place) as (pid, address):
        ask = client(system, place, address)
        _compare(system, ask("once"), _expected(system.reference, place))
        ask("closed", "--concurrency", CONCURRENCY, "--seconds", plan.seconds / 3)
        before = cpu_seconds(pid)
        busy = ask("closed", "--concurrency", CONCURRENCY, "--seconds", plan.seconds)
        # The client's one request before the loop is in the CPU time too.
        cpu = cpu_us(before, cpu_seconds(pid), busy["answered"] + 1)
        alone = ask("closed", "--concurrency", 1, "--seconds", plan.seconds / 2)
        rates = [rate for rate in plan.rates if system.swept and rate < 1.2 * busy["per_s"]]
        swept = {rate: ask("open", "--rate", rate, "--seconds", plan.seconds) for rate in rates}
    return Turn(busy, alone, cpu, swept)


@cache
def _expected(reference: str, place: Place) -> list[list[int]]:
    answers: list[list[int]] = loop(reference, place, "--once")
    return answers


def _loop_turn(system: System, place: Place, plan: Plan) -> Turn:
    seconds = str(plan.seconds)
    busy = loop(system.reference, place, "--threads", "2", "--seconds", seconds)
    alone = loop(system.reference, place, "--threads", "1", "--seconds", seconds)
    return Turn(busy, alone, {"loop": busy["client_cpu_us"]})


def loop(name: str, place: Place, *words: str) -> Any:
    """Run a loop of `benchmarks.peers.inprocess` in a process of its own; return what it prints.

    Raises:
        ClientFailed: it ended with an error.
    """
    inputs = place.inputs("text" if name == "text" else "jpeg")
    module = ["-m", "benchmarks.peers.inprocess", name, "--place", str(place.root)]
    return _run([sys.executable, *module, "--inputs", str(inputs), *words])


def client(system: System, place: Place, address: str) -> Callable[..., Any]:
    """Return what runs one client process with a mode of `benchmarks.load` and gives its report.

    It raises `ClientFailed` for a process that ended with an error.
    """
    words = ["--protocol", system.protocol, "--address", address, "--work", system.work]
    words += ["--inputs", str(place.inputs(system.work))]

    def ask(*mode: object) -> Any:
        module = [system.client_python, "-m", "benchmarks.load"]
        return _run([*module, *words, *map(str, mode)])

    return ask


def _compare(system: System, found: list[list[int]], expected: list[list[int]]) -> None:
    nothing: list[int] = []
    pairs = zip_longest(found, expected, fillvalue=nothing)
    wrong = [index for index, (a, b) in enumerate(pairs) if a[:1] != b[:1]]
    if wrong:
        raise WrongAnswers(
            f"{system.name}: payloads {wrong[:5]} of {len(wrong)} have another best class than the "
            f"loop {system.reference!r} gives"
        )


def _run(command: list[str]) -> Any:
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=CLIENT_LIMIT_S, check=False
    )
    if done.returncode:
        raise ClientFailed((done.stderr.strip().splitlines() or ["no word"])[-1])
    return json.loads(done.stdout)
