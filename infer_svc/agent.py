"""Keeps the models that are served as their repository has them.

In mode `poll` whoever copies a new version into the repository has it served a moment later. A
folder is taken when it was left alone for a while, and when the files that its `SHA256SUMS` names
are there as it says, where it has one.
"""

import asyncio
import hashlib
import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2 as triton
from watchfiles import awatch

from infer_svc.folders import Files, all_files, demand_name
from infer_svc.models import Models
from infer_svc.repository import model_folders
from mesh.errors import InvalidInput, MeshError, NotFound, Refused

Mode = Literal["none", "poll", "explicit"]
"""Triton's `--model-control-mode`: what is loaded at the start stays; the repository is watched;
models are loaded when somebody asks for it."""
MODES: tuple[Mode, ...] = get_args(Mode)
SETTLED_S = 1.0
"""A folder that was left alone for so long is not being copied any more."""
LOOK_EVERY_S = 15.0
"""Also without a notice: some network drives give none."""
AGAIN_AFTER_S = 3.0
SUMS = "SHA256SUMS"
"""As `sha256sum` writes it: a digest and a path in each line."""
FILE = "file:"
"""Begins the names of a load's parameters that are files, as `file:1/model.onnx`."""

log = logging.getLogger(__name__)


class Agent:
    """Loads and unloads models, as its mode says.

    Args:
        models: that there are.
        root: the repository.
        mode: see `Mode`.
        settled_s: see `SETTLED_S`.
    """

    def __init__(
        self, models: Models, root: Path, mode: Mode = "none", settled_s: float = SETTLED_S
    ) -> None:
        self._models, self._root, self._mode, self._settled_s = models, root, mode, settled_s
        self._seen: dict[str, Files] = {}
        self._overlays: dict[str, tempfile.TemporaryDirectory[str]] = {}

    def chosen(self, folders: Sequence[Path], names: Sequence[str]) -> list[Path]:
        """Return the folders of the models that are loaded at the start.

        Args:
            folders: of all models.
            names: of those to be loaded in mode `explicit`; `*` stands for all.

        Raises:
            NotFound: a name is none of theirs.
        """
        if self._mode != "explicit" or "*" in names:
            return list(folders)
        by_name = {folder.name: folder for folder in folders}
        if unknown := [name for name in names if name not in by_name]:
            raise NotFound(f"models {unknown} are to be loaded, there are {sorted(by_name)}")
        return [by_name[name] for name in names]

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Load a model, or load it anew, and return once it serves.

        Args:
            name: of the model.
            parameters: `config`, JSON of Triton's ModelConfig in place of the file, and
                `file:<version>/<name>`, bytes of a file; with a file, there are no others.

        Raises:
            Refused: the mode is `none`.
            InvalidInput: a parameter cannot be used.
            MeshError: it cannot be loaded; what was served before still is.
        """
        self._demand_control()
        demand_name(name)
        await asyncio.to_thread(self._note, name)
        overlay = await asyncio.to_thread(self._overlay, name, parameters)
        old = self._overlays.pop(name, None)
        before = self._models.folder(name) if old is not None else None
        self._models.overlay(name, Path(overlay.name) / name if overlay is not None else None)
        try:
            await self._models.load_with_parts(name)
        except MeshError:
            self._models.overlay(name, before)
            if old is not None:
                self._overlays[name] = old
            if overlay is not None:
                overlay.cleanup()
            raise
        if overlay is not None:
            self._overlays[name] = overlay
        if old is not None:
            old.cleanup()

    async def unload(self, name: str, *, parts: bool) -> None:
        """Serve a model no more, until somebody loads it or its folder changes.

        Args:
            name: of the model.
            parts: of an ensemble, its steps' models too.

        Raises:
            Refused: the mode is `none`.
            NotFound: there is no such model.
        """
        self._demand_control()
        if name in self._seen:
            await asyncio.to_thread(self._note, name)
        await self._models.unload(name, parts=parts)

    async def run(self) -> None:
        """Watch the repository, in mode `poll`, until cancelled."""
        if self._mode != "poll":
            return
        self._seen = await asyncio.to_thread(self._look)
        stop = asyncio.Event()
        try:
            while True:
                try:
                    await self.follow()  # what came while nobody watched
                    # yield_on_timeout: a look without a notice.
                    async for _ in awatch(
                        self._root, stop_event=stop, yield_on_timeout=True, debounce=200,
                        rust_timeout=int(LOOK_EVERY_S * 1e3),
                    ):  # fmt: skip
                        await self.follow()
                except Exception:  # a boundary: what is served must not depend on it
                    log.exception("the repository cannot be watched; trying again")
                    await asyncio.sleep(AGAIN_AFTER_S)
        finally:
            stop.set()

    async def follow(self) -> None:
        """Load and unload what has changed, once it was left alone for a while."""
        now = await asyncio.to_thread(self._look)
        while now != self._seen:
            await asyncio.sleep(self._settled_s)
            later = await asyncio.to_thread(self._look)
            still = {name for name, files in now.items() if later.get(name) == files}
            for name in sorted(self._seen.keys() - later.keys()):
                del self._seen[name]
                await self._gone(name)
            changed = [name for name in sorted(still) if self._seen.get(name) != later[name]]
            for name in changed:
                if await asyncio.to_thread(is_complete, self._root / name):
                    self._seen[name] = later[name]
                    await self._models.try_to_load(name)
            if not changed and still == later.keys():
                return  # only a manifest is waited for, and its files bring a notice
            now = later

    def close(self) -> None:
        """Remove files that came with requests."""
        while self._overlays:
            self._overlays.popitem()[1].cleanup()

    async def _gone(self, name: str) -> None:
        try:
            await self._models.unload(name)
        except MeshError as err:
            log.warning("not unloaded", extra={"model": name, "error": str(err)})
        self._models.forget(name)

    def _note(self, name: str) -> None:
        """See a model's folder as it is: what is asked for is not undone by a change before it."""
        folder = self._root / name
        with suppress(OSError):
            if folder.is_dir():
                self._seen[name] = all_files(folder)

    def _look(self) -> dict[str, Files]:
        found = {}
        for folder in model_folders(self._root):
            try:
                found[folder.name] = all_files(folder)
            except OSError as err:  # what is served goes on
                log.warning("not readable", extra={"model": folder.name, "error": str(err)})
                if folder.name in self._seen:
                    found[folder.name] = self._seen[folder.name]
        return found

    def _demand_control(self) -> None:
        if self._mode == "none":
            raise Refused(
                "models are neither loaded nor unloaded here; set INFER_MODEL_CONTROL to poll or "
                "explicit"
            )

    def _overlay(
        self, name: str, parameters: Mapping[str, Any]
    ) -> tempfile.TemporaryDirectory[str] | None:
        """Write what a request brings to a folder of its own; None: it brings nothing."""
        files = {key: value for key, value in parameters.items() if key.startswith(FILE)}
        unknown = parameters.keys() - files.keys() - {"config"}
        if unknown:
            raise InvalidInput(
                f"parameters {sorted(unknown)} came, wanted config and {FILE}<version>/<name>"
            )
        if not parameters:
            return None
        if files and "config" not in parameters:
            raise InvalidInput(f"{sorted(files)} came without a config, wanted both")
        kept = tempfile.TemporaryDirectory(prefix="trtmesh-model-")
        folder = Path(kept.name) / name
        try:
            folder.mkdir()
            config = _config(name, parameters["config"])
            if files:
                for key, content in files.items():
                    _write(folder, key.removeprefix(FILE), content)
            else:
                source = self._root / name
                for path in source.iterdir():
                    (folder / path.name).symlink_to(path.absolute())
                (folder / "config.pbtxt").unlink(missing_ok=True)
            (folder / "config.pbtxt").write_text(config, encoding="utf-8")
        except OSError as err:
            kept.cleanup()
            raise InvalidInput(f"model {name!r} cannot be loaded so: {err}") from err
        except MeshError:
            kept.cleanup()
            raise
        return kept


def is_complete(folder: Path) -> bool:
    """Tell whether all files are there that a folder, or one in it, says that it has."""
    try:
        for sums in folder.rglob(SUMS):
            for line in sums.read_text(encoding="utf-8").splitlines():
                digest, _, name = line.partition(" ")
                path = sums.parent / name.strip().removeprefix("*")
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != digest.lower():
                    log.warning("a file is not as its sum says", extra={"file": str(path)})
                    return False
    except (OSError, UnicodeDecodeError) as err:
        log.info("not complete", extra={"model": folder.name, "error": str(err)})
        return False
    return True


def _config(name: str, text: Any) -> str:
    """Return Triton's JSON of a config as the text of a file."""
    try:
        message = json_format.Parse(str(text), triton.ModelConfig())
    except json_format.ParseError as err:
        raise InvalidInput(f"the config of model {name!r} is no ModelConfig: {err}") from err
    message.name = name
    return text_format.MessageToString(message)


def _write(folder: Path, name: str, content: Any) -> None:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not isinstance(content, bytes):
        raise InvalidInput(f"file {name!r} came, wanted bytes for a path as 1/model.onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
