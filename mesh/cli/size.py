"""`trtmesh size`: how many processes of each service a rate needs."""

import argparse
import math
from pathlib import Path

from mesh.cli.options import Commands
from mesh.sizing import HOPS, read_costs

FIGURES = Path(__file__).parent.parent.parent / "benchmarks/results/scaling.json"
LOAD = 0.7
"""Beyond it requests wait longer for a free process than they take."""


def add_commands(commands: Commands) -> None:
    """Add `size` to the command line."""
    parser = commands.add_parser("size", help="how many processes and cores a rate needs")
    parser.add_argument("--rate", type=float, required=True, metavar="N", help="requests/s")
    parser.add_argument("--pipeline", required=True, metavar="NAME")
    parser.add_argument(
        "--hops", choices=HOPS, default="shared",
        help="shared: all on one machine; tcp: between machines",
    )  # fmt: skip
    parser.add_argument(
        "--load", type=float, default=LOAD, metavar="SHARE",
        help=f"how busy a process may be; default {LOAD}",
    )  # fmt: skip
    parser.add_argument(
        "--figures", type=Path, default=FIGURES, metavar="FILE",
        help="CPU time per request, as benchmarks.scaling wrote it",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a table; return the exit status.

    Raises:
        SettingsError, NotFound: there are no figures of that pipeline.
        InvalidInput: a rate or load that is none.
    """
    costs, machine = read_costs(arguments.figures, arguments.pipeline, arguments.hops)
    needed = costs.needed(arguments.rate, arguments.load)
    rows = [("SERVICE", "PROCESSES", "CORES BUSY", "CPU MS A REQUEST")]
    rows += [
        (name, str(needed[name]), f"{arguments.rate * seconds:.2f}", f"{1e3 * seconds:.3f}")
        for name, seconds in costs.services.items()
    ]
    for row in rows:
        print("".join(f"{cell:<13}" for cell in row).rstrip())
    busy = arguments.rate * sum(costs.services.values())
    print(
        f"cores: {busy:.1f} busy, so at least {max(1, math.ceil(busy / arguments.load))} with room "
        f"to spare (load {arguments.load:g}); of callers on the same machine "
        f"{arguments.rate * costs.client:.1f} more"
    )
    print(f"from CPU times on {machine}; the model's own time on a GPU is not in them")
    return 0
