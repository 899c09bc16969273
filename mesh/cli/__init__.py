"""The command `trtmesh`."""

import argparse
import sys
from collections.abc import Sequence

from mesh.cli import calls, demo, health, traces, up
from mesh.errors import MeshError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="trtmesh", description="Serve models as a mesh of gRPC services."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up.add_command(commands)
    calls.add_commands(commands)
    traces.add_command(commands)
    health.add_command(commands)
    demo.add_command(commands)
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except MeshError as err:
        print(f"trtmesh: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status
