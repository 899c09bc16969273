"""What a model's folder has: its versions, and the files that each is made from."""

from dataclasses import dataclass
from pathlib import Path

from infer_svc.config import read_config
from infer_svc.versions import versions_of, wanted

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


def look(folder: Path) -> Found:
    """Read a model's config, and list its files.

    Raises:
        SettingsError: the config cannot be read, or there is no version to serve.
    """
    config = read_config(folder)
    there = versions_of(folder)
    numbers = wanted(folder, there, config.policy)
    versions = {number: files_of(folder, number) for number in numbers}
    return Found(versions, frozenset(there), tuple(step.model for step in config.ensemble))


def all_files(folder: Path) -> Files:
    """Return all files of a model."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            status = path.stat()
            found.append((str(path.relative_to(folder)), status.st_size, status.st_mtime_ns))
    return frozenset(found)


def files_of(folder: Path, version: int) -> Files:
    """Return the files of a version, and those that all versions share."""
    others = {str(number) for number in versions_of(folder)} - {str(version)}
    return frozenset(one for one in all_files(folder) if one[0].partition("/")[0] not in others)
