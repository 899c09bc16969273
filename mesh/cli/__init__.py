"""The command `trtmesh`."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from mesh.errors import MeshError

COMMANDS = {
    "up": "up", "demo": "demo", "detect": "calls", "classify": "calls", "language": "calls",
    "generate": "generate", "models": "calls", "model": "model", "import": "importing",
    "pull": "pulling", "trace": "traces", "health": "health", "engine": "engine",
    "doctor": "doctor", "size": "size",
}  # fmt: skip
"""The module of each command. Only the one that is wanted is imported: a health check has to be
light."""


INTERRUPTED, PIPE_BROKEN = 130, 141
"""Exit statuses, as a shell has them."""
NOBODY = "failed to connect to all addresses"
"""What gRPC says where nobody listens."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Without it gRPC writes a line to stderr for each process that is started beside its threads.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # noqa: TID251 for gRPC
    parser = argparse.ArgumentParser(
        prog="trtmesh", description="Serve models as a mesh of gRPC services."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    try:
        return _run(parser, commands, words)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # as `head` leaves it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_BROKEN


def _run(parser: argparse.ArgumentParser, commands: Any, words: list[str]) -> int:
    wanted = [COMMANDS[word] for word in words[:1] if word in COMMANDS]
    for module in wanted or dict.fromkeys(COMMANDS.values()):
        import_module(f"mesh.cli.{module}").add_commands(commands)
    arguments = parser.parse_args(words)
    try:
        status: int = arguments.run(arguments)
    except MeshError as err:
        print(f"trtmesh: {_explained(str(err), arguments)}", file=sys.stderr)
        return 1
    return status


def _explained(error: str, arguments: argparse.Namespace) -> str:
    """Return an error's text, where nobody is there with what to do."""
    if not error.startswith(NOBODY) or "gateway" not in arguments:
        return error
    return (
        f"nobody answers at {arguments.gateway}; start a mesh with `trtmesh up`, or say where it "
        f"is with --gateway ({error})"
    )
