"""`trtmesh demo`: starts a mesh, asks it everything once, shows answers and a trace, stops it."""

import argparse
import asyncio
import os
import shlex
import sys
from pathlib import Path

from mesh.cli.options import Commands, say
from mesh.cli.up import check_models, wait_ready
from mesh.errors import MeshError, StageUnavailable
from mesh.port import free_ports
from mesh.supervisor import SERVICES, Supervisor

START_S = 90
DATE, NUMBER = "vendredi 27 novembre 2026", "48,213 ="
TEXTS = ("Guten Morgen, wie geht es Ihnen?", "Where is the station?", "Où est la gare ?")


def add_commands(commands: Commands) -> None:
    """Add `demo` to the command line."""
    parser = commands.add_parser("demo", help="start a mesh, ask it everything once, stop it")
    parser.add_argument("--models", type=Path, default=Path("models"), metavar="DIR")
    parser.add_argument("--save", type=Path, default=Path("build/demo.png"), metavar="PNG")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; not 0 when an answer is missing."""
    return asyncio.run(_demo(arguments.models, arguments.save))


async def _demo(models: Path, save: Path) -> int:
    check_models(models)
    gateway = f"127.0.0.1:{free_ports(1)[0]}"
    quiet = {f"{service.upper()}_LOG_LEVEL": "WARNING" for service in SERVICES}
    environment = {**quiet, **os.environ, "GATEWAY_METRICS_PORT": "0"}  # noqa: TID251 passed on
    supervisor = Supervisor(models, {}, environment, gateway, say)
    supervisor.start()
    try:
        if not await wait_ready(gateway, START_S):
            raise StageUnavailable(f"the mesh was not ready in {START_S} s; its log is above")
        save.parent.mkdir(parents=True, exist_ok=True)
        page = str(models / "digits-detect/samples/page.jpg")
        digit = str(models / "digits-classify/samples/digit.png")
        for command in (
            ["models"],
            ["classify", digit],
            ["language", *TEXTS],
            ["generate", DATE, "--pipeline", "dates"],
            ["generate", NUMBER, "--pipeline", "numbers"],
            ["detect", page, "--save", str(save)],
            ["trace"],
        ):
            await _ask(command, gateway)
    except MeshError as err:
        say(str(err))
        return 1
    finally:
        await supervisor.stop()
    return 0


async def _ask(command: list[str], gateway: str) -> None:
    """Run one command as a user would, in a process of its own."""
    print(f"\n$ trtmesh {shlex.join(command)}", flush=True)
    if command[0] == "trace":
        await asyncio.sleep(1.5)  # spans of the last request are on their way
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mesh.cli", *command, "--gateway", gateway
    )
    if await process.wait() != 0:
        raise StageUnavailable(f"trtmesh {command[0]} failed")
