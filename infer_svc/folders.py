"""What a model's folder has: its versions, and the files that each is made from."""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from infer_svc.config import ModelConfig, read_config
from infer_svc.versions import versions_of, wanted
from mesh.errors import InvalidInput, SettingsError

CONFIG = "config.pbtxt"
Files = frozenset[tuple[str, int, int]]
"""Paths, sizes, and when they were changed in nanoseconds."""


@dataclass(frozen=True)
class Found:
    """What a model's folder has."""

    versions: dict[int, Files]
    """Those that are to be served."""
    there: frozenset[int]
    """All versions that there are."""
    parts: tuple[str, ...]
    """Models of an ensemble's steps."""
    config: ModelConfig
    """As the file says."""


def look(folder: Path) -> Found:
    """Read a model's config, and list its files.

    Raises:
        SettingsError: the config cannot be read, or there is no version to serve.
    """
    config = read_config(folder)
    try:
        there = versions_of(folder)
        numbers = wanted(folder, there, config.policy)
        versions = files_of(folder, there, numbers)
    except OSError as err:
        raise SettingsError(f"the files of {folder} cannot be listed: {err}") from err
    parts = tuple(step.model for step in config.ensemble)
    return Found(versions, frozenset(there), parts, config)


def only_lanes(old: ModelConfig, new: ModelConfig) -> int | None:
    """Return how many lanes there are now, where nothing else of a config has changed.

    None: more has, or it runs in several places.
    """
    if replace(old, instances=()) != replace(new, instances=()):
        return None
    groups = {
        tuple(group.gpus or ()) if group.gpus is not None else None for group in new.instances
    }
    before = {
        tuple(group.gpus or ()) if group.gpus is not None else None for group in old.instances
    }
    one = groups == before and len(groups) == 1 and len(next(iter(groups)) or (0,)) == 1
    return sum(group.count for group in new.instances) if one else None


def without_config(files: Files) -> Files:
    """Return files but the config."""
    return frozenset(one for one in files if one[0] != CONFIG)


def demand_name(name: str) -> None:
    """Compare what a client calls a model with what a folder can be called.

    Raises:
        InvalidInput: it is a path, or no name at all.
    """
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise InvalidInput(f"a model is called {name!r}, wanted the name of its folder")


def all_files(folder: Path) -> Files:
    """Return all files of a model, and links to folders; what goes meanwhile is left out.

    Raises:
        OSError: a folder cannot be read.
    """
    found = []
    for at, folders, names in os.walk(folder, onerror=_demand_gone):
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]
        for path in (Path(at, name) for name in (*names, *links)):
            with suppress(FileNotFoundError):
                status = path.lstat() if path.is_dir() else path.stat()
                found.append((str(path.relative_to(folder)), status.st_size, status.st_mtime_ns))
    return frozenset(found)


def _demand_gone(err: OSError) -> None:
    if not isinstance(err, FileNotFoundError | NotADirectoryError):
        raise err


def files_of(folder: Path, there: Iterable[int], numbers: Iterable[int]) -> dict[int, Files]:
    """Return the files of versions, each with those that all versions share.

    Args:
        folder: of the model.
        there: all versions that it has.
        numbers: of the versions.
    """
    files = [(one[0].partition("/")[0], one) for one in all_files(folder)]
    names = set(map(str, there))
    return {
        number: frozenset(one for top, one in files if top == str(number) or top not in names)
        for number in numbers
    }
