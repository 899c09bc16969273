"""What several commands have in common."""

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = object

DEFAULT_GATEWAY = "127.0.0.1:8001"


def add_gateway(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the gateway is."""
    parser.add_argument("--gateway", default=DEFAULT_GATEWAY, metavar="HOST:PORT")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS")


def say(line: str) -> None:
    """Tell the person at the terminal something that is no answer."""
    print(f"trtmesh: {line}", file=sys.stderr, flush=True)
