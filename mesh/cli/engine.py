"""`trtmesh engine`: the programs that make and measure engines, run as a person wants to see them.

They belong to infer_svc; this is only the terminal in front of them.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from mesh.cli.options import Commands, say

PROGRAM = (sys.executable, "-m", "infer_svc.build")
ACTIONS = {
    "build": "build a model's engine into the cache",
    "list": "list the engines in the cache",
    "profile": "time of each layer of an engine, on a GPU",
    "compare": "accuracy of each precision against FP32",
}
BAR = 24
"""Characters of the bar."""
WIDTH = 79
CLEANUP_S = 5.0
"""After Ctrl-C, before a program is killed."""


def add_commands(commands: Commands) -> None:
    """Add `engine` to the command line."""
    parser = commands.add_parser(
        "engine", help="build, list, measure and compare engines",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:<8} {text}" for name, text in ACTIONS.items())
        + "\n\n`trtmesh engine ACTION --help` tells the options of each.",
    )  # fmt: skip
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION")
    # The program parses them: what there is to say is written once.
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="…")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the program to its end; return its exit status."""
    words = [*PROGRAM, arguments.action, *arguments.rest]
    if arguments.action != "build":
        return follow(words)
    return build([*words, "--parent", str(os.getpid())], sys.stdout)


def follow(words: list[str]) -> int:
    """Run a program to its end; Ctrl-C reaches it too, and it may clean up after itself."""
    with subprocess.Popen(words) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            try:
                process.wait(CLEANUP_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise


def build(words: list[str], screen: TextIO) -> int:
    """Run a build and show its progress; Ctrl-C ends it.

    Args:
        words: of the command, which tells of itself in JSON lines.
        screen: one line is kept up to date where this is a terminal; else each phase has a line.
    """
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            result = show(process.stdout, screen)
            status = process.wait()
        except KeyboardInterrupt:
            process.kill()
            process.wait()
            say("stopped; there is no engine of this build")
            raise
    if "result" in result:
        _tell(result, screen)
    elif status < 0:
        say(f"the builder was killed by signal {-status}, as for want of memory")
    return status if status >= 0 else 1


def show(lines: Iterable[str], screen: TextIO) -> dict[str, Any]:
    """Show the phases of a build.

    Args:
        lines: JSON objects; anything else is passed on.
        screen: where they are shown.

    Returns:
        The line with the result; empty without one.
    """
    live = screen.isatty()
    last = ""
    result: dict[str, Any] = {}
    for line in lines:
        if not line.startswith("{"):
            screen.write(line)
            continue
        told = json.loads(line)
        if "result" in told:
            result = told
        elif live:
            screen.write("\r" + _state(told)[:WIDTH].ljust(WIDTH))
        elif told["phase"] != last:
            screen.write(told["phase"] + "\n")
        last = told.get("phase", last)
        screen.flush()
    if live and last:
        screen.write("\r" + " " * WIDTH + "\r")
    return result


def _state(told: dict[str, Any]) -> str:
    step, steps = told["step"], told["steps"]
    if not steps:
        return f"[{'.' * BAR}] {told['phase']}"
    full = BAR * min(step, steps) // steps
    return f"[{'#' * full}{'.' * (BAR - full)}] {told['phase']} {step}/{steps}"


def _tell(result: dict[str, Any], screen: TextIO) -> None:
    if "error" in result:
        say(f"{result['result']}: {result['error']}")
        return
    took = f"built in {result['build_s']:.1f} s" if result["result"] == "built" else "in the cache"
    screen.write(
        f"{result['model']}: {result['precision']} for {result['target']}, "
        f"{result['bytes'] / 2**20:.1f} MiB, {took}\n{result['folder']}\n"
    )
    if result.get("note"):
        say(result["note"])
