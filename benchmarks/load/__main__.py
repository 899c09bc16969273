"""`python -m benchmarks.load`: one client process; prints its report as JSON."""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.load.loops import Ask, closed_loop, open_loop
from benchmarks.load.schedule import due_times

PROTOCOLS = {
    "mesh": "mesh_client.unary", "mesh-stream": "mesh_client.stream", "oip": "oip_client.unary",
    "oip-versions": "oip_client.versions", "http-form": "http_client.form",
    "http-json": "http_client.plain_json",
}  # fmt: skip
"""Each imported only where it is used: a peer's environment has not all their packages."""
TIMEOUT_S = 10.0

Connect = Callable[[str, str, float], AbstractAsyncContextManager[Ask]]


def connect(protocol: str) -> Connect:
    """Return the function that opens a client, given address, work and time limit in seconds."""
    module, _, name = PROTOCOLS[protocol].partition(".")
    found: Connect = getattr(import_module(f"benchmarks.load.{module}"), name)
    return found


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--protocol", choices=PROTOCOLS, required=True)
    parser.add_argument("--address", required=True, metavar="HOST:PORT")
    parser.add_argument("--work", choices=("jpeg", "text"), default="jpeg")
    parser.add_argument("--inputs", type=Path, required=True, help="folder with one payload a file")
    modes = parser.add_subparsers(dest="mode", required=True)
    modes.add_parser("once", help="ask each payload once, one at a time, and print the classes")
    closed = modes.add_parser("closed", help="a number of requests always under way")
    closed.add_argument("--concurrency", type=int, required=True)
    opened = modes.add_parser("open", help="requests at a rate, whatever the server does")
    opened.add_argument("--rate", type=float, required=True, help="requests per second")
    opened.add_argument("--spacing", choices=("fixed", "poisson"), default="poisson")
    opened.add_argument("--seed", type=int, default=0)
    for mode in (closed, opened):
        mode.add_argument("--seconds", type=float, required=True)
    return parser.parse_args(words)


async def run(job: argparse.Namespace) -> Any:
    """Do one job; return what is printed."""
    payloads = [path.read_bytes() for path in sorted(job.inputs.iterdir())]
    async with connect(job.protocol)(job.address, job.work, TIMEOUT_S) as ask:
        if job.mode == "once":
            return [await ask(payload) for payload in payloads]
        await ask(payloads[0])  # the connection is open before anything counts
        if job.mode == "closed":
            return asdict(await closed_loop(ask, payloads, job.concurrency, job.seconds))
        due = due_times(job.rate, job.seconds, job.spacing, job.seed)
        return asdict(await open_loop(ask, payloads, due))


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(parse(sys.argv[1:])))))
