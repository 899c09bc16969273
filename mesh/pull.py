"""A model repository of object storage, as a folder of this machine that follows it.

Files come into a folder beside it first. A version's folder appears whole, never half of one; so
whoever watches the repository sees complete versions only. What is here is compared with what was
noted when it came, so that a file that was damaged comes anew.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from mesh.errors import InvalidInput, StageUnavailable

NOTES = ".pulled.json"
"""In the folder: what each file was in the storage, and its hash."""
SCHEMES = {"s3": "s3fs", "az": "adlfs", "abfs": "adlfs", "gs": "gcsfs", "gcs": "gcsfs"}
"""Packages of storages, by the scheme of their addresses."""
MARKS = ("ETag", "etag", "checksum", "md5", "md5Hash", "mtime", "LastModified", "last_modified")
"""What storages tell of a file beside its size: it changes with the content."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Note:
    """A file that was pulled."""

    mark: str
    """What the storage told of it."""
    size: int
    sha256: str


class Puller:
    """Brings a repository to a folder.

    Args:
        url: as `s3://bucket/models`; its package's own settings (environment, files) say who asks.
        folder: of this machine; made where it is missing.

    Raises:
        InvalidInput: there is no such scheme, or its package is missing.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder
        try:
            self._storage, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as err:
            scheme = url.partition("://")[0]
            package = SCHEMES.get(scheme)
            fix = f"pip install {package}" if package else f"wanted one of {sorted(SCHEMES)}"
            raise InvalidInput(f"{url} cannot be read: {err}; {fix}") from err

    def pull(self) -> list[str]:
        """Bring what is new, remove what is gone, and return the paths of both.

        Raises:
            StageUnavailable: the storage cannot be read now; the folder is as before, but for
                whole versions that came already.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        notes = self._notes()
        try:
            there = self._list()
            changed = [
                path for path, (mark, size) in there.items()
                if not self._is_here(path, notes.get(path), mark, size)
            ]  # fmt: skip
            gone = [path for path in notes if path not in there]
            with tempfile.TemporaryDirectory(prefix=".pull-", dir=self._folder) as scratch:
                for group in _groups(changed):
                    for path in group:
                        notes[path] = self._fetch(path, Path(scratch), *there[path])
                    self._place(group, Path(scratch), notes)
        except (OSError, RuntimeError, ValueError) as err:
            raise StageUnavailable(f"{self._url} cannot be read now: {err}") from err
        self._remove(gone)
        for path in gone:
            del notes[path]
        if changed or gone:
            self._note(notes)
        return [*changed, *gone]

    def _list(self) -> dict[str, tuple[str, int]]:
        """Return the mark and the size of every file, by its path in the repository."""
        self._storage.invalidate_cache()
        found = self._storage.find(self._root, detail=True)
        files = {}
        for name, info in found.items():
            path = PurePosixPath(name.removeprefix(self._root).lstrip("/"))
            if ".." in path.parts or path.is_absolute() or not path.parts:
                raise ValueError(f"a file is named {name!r}")
            files[str(path)] = _mark(info), int(info["size"])
        if not files:
            raise ValueError("there are no files")
        return files

    def _is_here(self, path: str, note: Note | None, mark: str, size: int) -> bool:
        """Tell whether a file is here as it is in the storage, byte by byte."""
        if note is None or (note.mark, note.size) != (mark, size):
            return False
        try:
            return _hash(self._folder / path) == note.sha256
        except OSError:
            return False

    def _fetch(self, path: str, scratch: Path, mark: str, size: int) -> Note:
        target = scratch / path
        target.parent.mkdir(parents=True, exist_ok=True)
        self._storage.get_file(f"{self._root.rstrip('/')}/{path}", str(target))
        came = target.stat().st_size
        if came != size:
            raise OSError(f"{path} has {came} bytes, the storage says {size}")
        return Note(mark, size, _hash(target))

    def _place(self, group: Iterable[str], scratch: Path, notes: dict[str, Note]) -> None:
        """Move files to where they belong: a new version's folder in one step."""
        paths = list(group)
        version = _version_of(paths[0])
        if version is not None and not (self._folder / version).exists():
            (self._folder / version).parent.mkdir(parents=True, exist_ok=True)
            os.rename(scratch / version, self._folder / version)
        else:
            for path in paths:
                target = self._folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(scratch / path, target)
        self._note(notes)

    def _remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            target = self._folder / path
            target.unlink(missing_ok=True)
            for parent in target.parents:
                if parent == self._folder or any(parent.iterdir()):
                    break
                shutil.rmtree(parent, ignore_errors=True)

    def _notes(self) -> dict[str, Note]:
        try:
            given = json.loads((self._folder / NOTES).read_text(encoding="utf-8"))
            return {path: Note(**note) for path, note in given.items()}
        except (OSError, ValueError, TypeError):
            return {}  # everything comes anew

    def _note(self, notes: dict[str, Note]) -> None:
        text = json.dumps({path: asdict(note) for path, note in sorted(notes.items())})
        kept = self._folder / f"{NOTES}.new"
        kept.write_text(text, encoding="utf-8")
        os.replace(kept, self._folder / NOTES)


def _groups(paths: Iterable[str]) -> list[list[str]]:
    """Return the paths of each version together, after those that are of no version."""
    groups: dict[str, list[str]] = {}
    for path in sorted(paths):
        groups.setdefault(_version_of(path) or "", []).append(path)
    return [groups[key] for key in sorted(groups)]


def _version_of(path: str) -> str | None:
    """Return the folder of the version that a file belongs to; None: it is of none."""
    parts = PurePosixPath(path).parts
    return f"{parts[0]}/{parts[1]}" if len(parts) > 2 and parts[1].isdecimal() else None


def _mark(info: dict[str, Any]) -> str:
    return " ".join(f"{name}={info[name]}" for name in MARKS if info.get(name) is not None)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
