"""The engine cache: a folder for each key, checked before anything in it is loaded."""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infer_svc.build.manifest import Key, Manifest
from mesh.errors import SettingsError

log = logging.getLogger(__name__)

PLAN, MANIFEST, LOG = "model.plan", "manifest.json", "build.log"
REPORT, RANGES = "report.json", "ranges.json"
"""The accuracy of an engine that is not in FP32, and the calibration of one in INT8."""
RUNTIME_CACHE = "runtime.cache"
_DIGEST_LENGTH = 64
KEPT_FAILURES = 50
"""Logs of failed builds; older ones are removed."""


@dataclass(frozen=True)
class CachedEngine:
    """An engine that may be loaded."""

    plan: Path
    manifest: Manifest | None
    """None: a plan of the model repository that has none beside it."""
    runtime_cache: Path | None = None
    """Where the kernels that TensorRT-RTX compiled at run time are kept; the file may be missing.
    None: nowhere."""


class EngineCache:
    """Engines by key. Nothing is made or read before `open`.

    Args:
        root: the folder; `~` stands for the home folder.
    """

    def __init__(self, root: Path) -> None:
        self._given = root
        self.root = root

    def open(self) -> None:
        """Make the folder, for its owner only, or see that it is so.

        Raises:
            SettingsError: it cannot be made or written, or others could change what is in it: a
                plan is a program.
        """
        fix = "set INFER_ENGINE_CACHE, or give --cache, to a folder of your own"
        try:
            self.root = self._given.expanduser().absolute()
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            state = self.root.stat()
        except (OSError, RuntimeError) as err:
            raise SettingsError(f"engine cache {self._given} cannot be made: {err}; {fix}") from err
        if state.st_uid != os.geteuid():
            raise SettingsError(
                f"engine cache {self.root} belongs to user {state.st_uid}, this process is user "
                f"{os.geteuid()}; {fix}, as one in that folder"
            )
        if state.st_mode & 0o022:
            raise SettingsError(
                f"engine cache {self.root} can be written by others (mode "
                f"{state.st_mode & 0o777:03o}), wanted 700: a plan is a program; {fix}"
            )
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise SettingsError(f"engine cache {self.root} cannot be written; {fix}")
        try:
            for name in ("locks", "work", "failed"):
                (self.root / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as err:
            raise SettingsError(f"engine cache {self.root} cannot be used: {err}; {fix}") from err

    def find(self, key: Key) -> CachedEngine | None:
        """Return the engine of a key; one that is broken or of another key is as good as missing.

        Read in full for its hash: about a second for a gigabyte.
        """
        folder = self.root / key.digest
        if not folder.exists():
            return None
        try:
            manifest = read_manifest(folder / MANIFEST)
            if manifest.key != key:
                raise SettingsError("its manifest is of another key")
            manifest.check_plan(folder / PLAN)
        except SettingsError as err:
            log.warning("engine ignored", extra={"folder": str(folder), "error": str(err)})
            return None
        return CachedEngine(folder / PLAN, manifest, folder / RUNTIME_CACHE)

    def entries(self) -> list[tuple[Path, Manifest | SettingsError]]:
        """Return the folder of each engine with its manifest, or why that cannot be read."""
        found: list[tuple[Path, Manifest | SettingsError]] = []
        for folder in sorted(self.root.iterdir()):
            if len(folder.name) != _DIGEST_LENGTH or not folder.is_dir():
                continue
            try:
                manifest = read_manifest(folder / MANIFEST)
                if manifest.key.digest != folder.name:
                    raise SettingsError("its manifest is of another key")
                manifest.check_size(folder / PLAN)
                found.append((folder, manifest))
            except SettingsError as err:
                found.append((folder, err))
        return found

    @contextmanager
    def locked(self, key: Key, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Be the only process that builds a key.

        Args:
            key: of the engine.
            waiting: called when another process is building it, before waiting for that.
        """
        with self._lock_file(key.digest) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def begin(self, key: Key) -> Path:
        """Return an empty folder to build a key in; only for who has its lock."""
        folder = self.work(key)
        if folder.exists():  # its builder was killed
            self.abandon(key)
        folder.mkdir(mode=0o700)
        return folder

    def commit(self, key: Key, manifest: Manifest, plan: bytes) -> CachedEngine:
        """Make what was built in the key's folder an entry of the cache, all at once.

        Raises:
            SettingsError: the disk is full, or the cache is gone.
        """
        folder, final = self.work(key), self.root / key.digest
        try:
            _write(folder / PLAN, plan)
            _write(folder / MANIFEST, manifest.to_json().encode())
            if final.exists():  # broken, or it would have been found
                shutil.rmtree(final)
            folder.rename(final)
        except OSError as err:
            raise SettingsError(f"engine cache {self.root} cannot be written: {err}") from err
        return CachedEngine(final / PLAN, manifest, final / RUNTIME_CACHE)

    def abandon(self, key: Key) -> None:
        """Remove the key's folder and keep only its log; only for who has its lock."""
        self._abandon(key.digest)

    def salvage(self, key: Key) -> None:
        """Do the same for a builder that was killed, unless the next one does so already."""
        self._salvage(key.digest)

    def sweep(self) -> None:
        """Do the same for every builder that was killed."""
        for folder in sorted((self.root / "work").iterdir()):
            self._salvage(folder.name)

    def work(self, key: Key) -> Path:
        """Return the folder that a key is built in."""
        return self.root / "work" / key.digest

    def failed_log(self, key: Key) -> Path:
        """Return where the log of a key's last failed build is."""
        return self.root / "failed" / f"{key.digest}.log"

    def _forget_old_failures(self) -> None:
        logs = sorted((self.root / "failed").iterdir(), key=lambda log: log.stat().st_mtime)
        for old in logs[:-KEPT_FAILURES]:
            old.unlink(missing_ok=True)

    def _abandon(self, digest: str) -> None:
        folder = self.root / "work" / digest
        if (folder / LOG).exists():
            os.replace(folder / LOG, self.root / "failed" / f"{digest}.log")
            self._forget_old_failures()
        shutil.rmtree(folder, ignore_errors=True)

    def _salvage(self, digest: str) -> None:
        with self._lock_file(digest) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            if (self.root / "work" / digest).exists():
                self._abandon(digest)

    @contextmanager
    def _lock_file(self, digest: str) -> Iterator[int]:
        # It stays: who removes a lock's file takes it from those that wait for it.
        path = self.root / "locks" / f"{digest}.lock"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield file
        finally:
            os.close(file)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of an engine.

    Raises:
        SettingsError: there is none, or it is broken.
    """
    try:
        return Manifest.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as err:
        raise SettingsError(f"manifest {path} cannot be read: {err}") from err


def _write(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
