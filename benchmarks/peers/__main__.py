"""`python -m benchmarks.peers`: the mesh and its peers, in turn, on the same input.

Each system has the machine for itself during its turn: its server starts, gives the answers of its
reference, is loaded by a client in a process of its own, and stops. Rounds are A B C A B C, so that
a machine that slows down slows all.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environment import keep
from benchmarks.peers.plot import write_plot
from benchmarks.peers.server import ServerFailed
from benchmarks.peers.systems import SYSTEMS, Place, System
from benchmarks.peers.table import curve, ratio_rows, show, system_row
from benchmarks.peers.turn import ClientFailed, Plan, Turn, WrongAnswers, take
from benchmarks.peers.venvs import Venv

RATES = (50.0, 100.0, 150.0, 200.0, 250.0, 300.0, 400.0, 500.0, 600.0, 700.0)
QUICK_RATES = (100.0, 250.0)
ROUNDS = 3
SECONDS = 2.0
QUICK_SECONDS = 1.2
IDLE_LOAD = 0.3
PLOT = Path(__file__).parent.parent / "results/peers.svg"


def parse(words: list[str]) -> argparse.Namespace:
    names = [system.name for system in SYSTEMS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, nothing is kept")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SYSTEM")
    return parser.parse_args(words)


def plans(job: argparse.Namespace) -> list[Plan]:
    """Return the plan of each round; each takes its share of the rates."""
    if job.quick:
        return [Plan(QUICK_SECONDS, QUICK_RATES)]
    return [Plan(job.seconds, RATES[index :: job.rounds]) for index in range(job.rounds)]


def measure(
    systems: Sequence[System], place: Place, rounds: Sequence[Plan], lost: dict[str, str]
) -> dict[str, list[Turn]]:
    """Return the turns of each system that had all of them; say in `lost` why others had not."""
    turns: dict[str, list[Turn]] = {system.name: [] for system in systems}
    for number, plan in enumerate(rounds, 1):
        for system in systems:
            if system.name in lost:
                continue
            try:
                turn = take(system, place, plan)
            except (ServerFailed, ClientFailed, WrongAnswers, subprocess.TimeoutExpired) as err:
                lost[system.name] = f"{type(err).__name__}: {err}"
                print(f"{system.name} is lost: {lost[system.name]}", flush=True)
                continue
            turns[system.name].append(turn)
            print(
                f"round {number}  {system.name:22} {turn.busy['per_s']:8.1f}/s  "
                f"alone {turn.alone['p50_ms']:6.2f} ms  {turn.total_cpu_us:6.0f} us",
                flush=True,
            )
    return {name: found for name, found in turns.items() if name not in lost}


def make(venvs: set[Venv]) -> dict[str, str]:
    """Make the environments; return why each that could not be made could not."""
    failed = {}
    for venv in sorted(venvs, key=lambda venv: venv.name):
        try:
            venv.make()
        except subprocess.CalledProcessError as err:
            failed[venv.name] = (err.stderr.strip().splitlines() or ["pip failed"])[-1]
    return failed


def main(words: list[str]) -> int:
    job = parse(words)
    load = os.getloadavg()[0]
    if load > IDLE_LOAD:
        print(f"this machine is not idle (load {load:.1f}): take the figures for a rehearsal")
    systems = [system for system in SYSTEMS if system.name in job.only]
    venvs = {venv for system in systems for venv in system.venvs}
    failed = make(venvs)
    lost = {
        system.name: f"no environment {venv.name}: {failed[venv.name]}"
        for system in systems
        for venv in system.venvs
        if venv.name in failed
    }
    with tempfile.TemporaryDirectory(prefix="trtmesh-peers-") as folder:
        place = Place(Path(folder))
        place.prepare()
        rounds = measure(systems, place, plans(job), lost)
    titles = {system.name: system.title for system in systems}
    show(titles, rounds)
    for name, why in lost.items():
        print(f"\nnot run: {name}: {why}")
    if job.quick:
        print("\n--quick: a rehearsal, nothing is written")
        return bool(lost)
    curves = {name: curve(turns) for name, turns in rounds.items() if curve(turns)}
    limit = system_row(rounds["loop"])["per_s"] if "loop" in rounds else None
    write_plot(PLOT, {titles[name]: points for name, points in curves.items()}, limit)
    keep(
        "peers",
        {
            "systems": {name: system_row(turns) for name, turns in rounds.items()},
            "ratios": ratio_rows(rounds),
            "curves": curves,
            "not_run": lost,
            "load_before": round(load, 2),
            "environments": {venv.name: [*venv.bare, *venv.requirements()] for venv in venvs},
            "rounds": {name: [turn.record() for turn in turns] for name, turns in rounds.items()},
        },
    )
    return bool(lost)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
