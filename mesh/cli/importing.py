"""`trtmesh import`: the program that makes a model's folder, which belongs to infer_svc."""

import argparse
import sys

from mesh.cli.engine import follow
from mesh.cli.options import Commands

PROGRAM = (sys.executable, "-m", "infer_svc.generation")


def add_commands(commands: Commands) -> None:
    """Add `import` to the command line."""
    parser = commands.add_parser(
        "import", help="make a model's folder from one of Hugging Face",
        epilog="`trtmesh import hf --help` tells the options.",
    )  # fmt: skip
    parser.add_argument("format", choices=["hf"], help="what the folder is")
    # The program parses them: what there is to say is written once.
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="FOLDER …", help="and options")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the program to its end; return its exit status."""
    return follow([*PROGRAM, *arguments.rest])
