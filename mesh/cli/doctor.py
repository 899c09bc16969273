"""`trtmesh doctor`: what serving needs on this machine, and how to get what is missing."""

import argparse
import os
from collections.abc import Iterator

from mesh.cli import checks, gpu_checks
from mesh.cli.checks import Finding
from mesh.cli.options import Commands


def add_commands(commands: Commands) -> None:
    """Add `doctor` to the command line."""
    parser = commands.add_parser("doctor", help="check what serving needs on this machine")
    parser.add_argument("--gpu", action="store_true", help="also what serving on a GPU needs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each thing; 1 if something is missing."""
    missing = False
    for finding in _findings(arguments.gpu):
        print(finding, flush=True)
        missing = missing or finding.state == "missing"
    return 1 if missing else 0


def _findings(gpu: bool) -> Iterator[Finding]:
    yield checks.python()
    yield from checks.packages()
    yield checks.onnxruntime()
    yield checks.shared_memory()
    if gpu:
        yield from gpu_checks.everything(
            os.environ.get("CUDA_VISIBLE_DEVICES"),  # noqa: TID251  shown, the driver obeys it
        )
