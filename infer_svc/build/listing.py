"""`engine list`: what is in the engine cache."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from infer_svc.build.building import cache_root
from infer_svc.build.cache import EngineCache
from infer_svc.build.manifest import Manifest
from mesh.errors import SettingsError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = object

HEADINGS = ("MODEL", "PRECISION", "TENSORRT", "FOR GPU", "MIB", "BUILT (UTC)", "TOOK S", "KEY")
KEY_LENGTH = 12


def add_list(commands: Commands) -> None:
    """Add `list` to a command line."""
    parser = commands.add_parser("list", help="list the engines in the cache")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="default: INFER_ENGINE_CACHE")
    parser.set_defaults(run=list_command)


def list_command(arguments: argparse.Namespace) -> int:
    """Print a table of the engines; return the exit status.

    Raises:
        SettingsError: the cache cannot be used.
    """
    cache = EngineCache(cache_root(arguments))
    cache.open()
    entries = cache.entries()
    rows = sorted(_row(one) for _, one in entries if isinstance(one, Manifest))
    lines = table([HEADINGS, *rows]) if rows else [f"no engines in {cache.root}"]
    lines += [
        f"{folder} is broken: {one}" for folder, one in entries if isinstance(one, SettingsError)
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return lines with columns as wide as their longest word."""
    kept = list(rows)
    widths = [max(map(len, column)) for column in zip(*kept, strict=True)]
    return [
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in kept
    ]


def _row(manifest: Manifest) -> tuple[str, ...]:
    target = manifest.key.target
    return (
        manifest.model, str(manifest.recipe.get("precision")),
        f"{target.flavour} {target.version}", target.gpus, f"{manifest.plan_bytes / 2**20:.1f}",
        manifest.created.rstrip("Z").replace("T", " "), f"{manifest.build_s:.1f}",
        manifest.key.digest[:KEY_LENGTH],
    )  # fmt: skip
