"""What several commands have in common."""

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = object

DEFAULT_GATEWAY = "127.0.0.1:8001"


def add_gateway(parser: argparse.ArgumentParser, timeout_s: float = 30.0) -> None:
    """Add the options that say where the gateway is, and how long to wait for it."""
    parser.add_argument(
        "--gateway", default=DEFAULT_GATEWAY, metavar="HOST:PORT",
        help=f"default: {DEFAULT_GATEWAY}",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=float, default=timeout_s, metavar="SECONDS",
        help=f"default: {timeout_s:g}",
    )  # fmt: skip


def say(line: str) -> None:
    """Tell the person at the terminal something that is no answer."""
    print(f"trtmesh: {line}", file=sys.stderr, flush=True)
