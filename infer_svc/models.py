"""The life of models: their versions are loaded, served, replaced and drained.

A new version serves once it is loaded and warmed up; from that moment requests go to it, and the
old one ends when what it runs is answered. What cannot be loaded says why, and the old one stays.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from infer_svc.backends.errors import DeviceLost
from infer_svc.budget import Budget, evictable
from infer_svc.folders import Files, Found, demand_name, look, only_lanes, without_config
from infer_svc.opening import Opener
from infer_svc.repository import Model
from infer_svc.served import Served, resize
from infer_svc.states import NOWHERE, UNLOADED, Listed, Version, not_served
from infer_svc.steps import load_order, with_parts
from mesh.errors import MeshError, NotFound, Refused, StageUnavailable

log = logging.getLogger(__name__)

DRAIN_S = 60.0
"""Longest wait for what a version runs that is served no more."""
LOADS = 4
"""Models that are loaded at a time, as Triton's."""


class Models:
    """All models of a repository, by name and version. Lives in the event loop.

    Args:
        root: the repository.
        opener: loads versions.
        lose: called when only a new process helps, with the reason.
        on_health: called with a model's name when it begins to serve, or stops.
        on_change: called when a request may get another answer than before.
    """

    def __init__(
        self,
        root: Path,
        opener: Opener,
        lose: Callable[[str], None],
        on_health: Callable[[str, bool], None],
        on_change: Callable[[], None],
    ) -> None:
        self._root, self._opener, self._lose = root, opener, lose
        self._on_health, self._on_change = on_health, on_change
        self.on_close: Callable[[Served], None] = lambda served: None
        """Called after a version has ended."""
        self.budget = Budget(0, lambda gpu: 0)
        """Of GPU memory."""
        self._versions: dict[str, dict[int, Version]] = {}
        self._routes: dict[str, Served] = {}
        """By `name` and by `name/version`."""
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._loads = asyncio.Semaphore(LOADS)
        self._draining: set[asyncio.Task[None]] = set()
        self._overlays: dict[str, Path] = {}
        self._parts: dict[str, tuple[str, ...]] = {}
        """Models of the steps of each ensemble."""

    def find(self, target: str) -> Served:
        """Return a version that serves.

        Args:
            target: name of a model, or `name/version`; without, its newest.

        Raises:
            NotFound: there is no such model or version.
            Refused: it cannot be loaded.
            StageUnavailable: it is being loaded, or is unloaded.
        """
        served = self._routes.get(target)
        if served is not None:
            return served
        name, _, number = target.partition("/")
        versions = self._versions.get(name)
        if versions is None:
            raise NotFound(
                f"model {name!r} is not in the repository; there are {self.names(ready=True)}"
            )
        if number:
            found = versions.get(int(number)) if number.isdecimal() else None
            if found is None:
                known = sorted(key for key in versions if key != NOWHERE)
                raise NotFound(f"model {name!r} has no version {number!r}; there are {known}")
            raise not_served(f"version {number} of model {name!r}", found)
        newest = max(versions, key=lambda key: (versions[key].state == "LOADING", key))
        raise not_served(f"model {name!r}", versions[newest])

    def names(self, *, ready: bool = False) -> list[str]:
        """Return the names of all models, or of those that serve."""
        return sorted(name for name in self._versions if not ready or name in self._routes)

    def served(self) -> list[Served]:
        """Return all versions that serve."""
        return list({id(served): served for served in self._routes.values()}.values())

    def numbers(self, name: str) -> list[str]:
        """Return the versions of a model that serve, the smallest first."""
        versions = self._versions.get(name, {})
        return [str(key) for key in sorted(versions) if versions[key].state == "READY"]

    def index(self) -> Iterator[Listed]:
        """Tell of every version of every model."""
        for name, versions in sorted(self._versions.items()):
            for number, version in sorted(versions.items()):
                yield Listed(name, str(number or ""), version.state, version.reason)

    def announce(self, name: str) -> None:
        """Tell that a model will be loaded later."""
        self._versions.setdefault(name, {NOWHERE: Version("LOADING")})

    def forget(self, name: str) -> None:
        """Tell no more of a model that is neither in the repository nor served."""
        if name not in self._routes:
            self._versions.pop(name, None)

    def folder(self, name: str) -> Path:
        """Return where a model's files are."""
        return self._overlays.get(name, self._root / name)

    def overlay(self, name: str, folder: Path | None) -> None:
        """Let a model's files be those of another folder; None: those of the repository."""
        self._overlays.pop(name, None)
        if folder is not None:
            self._overlays[name] = folder

    async def load(self, name: str) -> None:
        """Load the versions of a model that its policy wants, and end the others.

        What is served already from the same files is left as it is. Ensembles that have the model
        as a part are compared with it again.

        Raises:
            NotFound: there is no such model.
            MeshError: a version cannot be loaded; what was served before still is.
        """
        demand_name(name)
        folder = self.folder(name)
        if not await asyncio.to_thread(folder.is_dir):
            raise NotFound(f"model {name!r} is not in the repository {self._root}")
        before = self._routes.get(name)
        async with self._locks[name]:
            await self._load(name, folder)
        if self._routes.get(name) is not before:
            await self._compare_ensembles(name)

    async def load_with_parts(self, name: str) -> None:
        """Load a model, and of an ensemble those of its steps that are not served before it.

        Raises:
            NotFound, MeshError: as `load`.
        """
        for folder in await asyncio.to_thread(with_parts, self.folder(name), self.folder):
            if folder.name != name and folder.name not in self._routes:
                await self.try_to_load(folder.name)
        await self.load(name)

    async def unload(self, name: str, *, parts: bool = False) -> None:
        """Serve a model no more; what it runs is answered.

        Args:
            name: of the model.
            parts: of an ensemble, those of its steps too.

        Raises:
            NotFound: there is no such model.
        """
        if name not in self._versions:
            raise NotFound(f"model {name!r} is not known; there are {self.names()}")
        inner = self._parts.get(name, ()) if parts else ()
        async with self._locks[name]:
            for version in self._versions[name].values():
                self._retire(version)
            self._publish(name)
        await self._compare_ensembles(name)
        for part in inner:
            if part in self._routes:
                await self.unload(part, parts=True)

    async def load_all(self, folders: Sequence[Path]) -> None:
        """Load models one after the other; those that cannot be are named, and others serve."""
        for folder in load_order(folders):
            await self.try_to_load(folder.name)

    async def try_to_load(self, name: str) -> None:
        """Load a model; an error is logged, and told to whoever asks for the model."""
        try:
            await self.load(name)
        except MeshError as err:
            log.debug("not loaded", extra={"model": name, "error": str(err)})

    async def drain(self) -> None:
        """Wait for versions that are served no more."""
        while self._draining:
            await asyncio.wait(self._draining)

    def close(self) -> None:
        """End all versions: lanes finish, and their threads end."""
        ending = self.served()
        self._routes.clear()
        for served in ending:
            served.close()
            self.on_close(served)

    async def _load(self, name: str, folder: Path, *, anew: bool = False) -> None:
        versions = self._versions.setdefault(name, {})
        try:
            found = await asyncio.to_thread(look, folder)
        except MeshError as err:
            self._refuse(name, NOWHERE, Version("UNAVAILABLE", str(err)))
            raise
        self._parts[name] = found.parts
        failed: MeshError | None = None
        old: list[Version] = []
        for number, files in found.versions.items():
            known = versions.get(number)
            if known is not None and known.state == "READY" and known.files == files and not anew:
                continue
            try:
                if known is not None and not anew and await self._resized(known, found, files):
                    continue
                fresh = await self._open(name, folder, number, files)
                fresh.config = found.config
            except MeshError as err:
                failed = err
                continue
            if known is not None:
                old.append(known)
            versions[number] = fresh
        versions.pop(NOWHERE, None)
        if failed is None:
            for number in versions.keys() - found.versions.keys():
                old.append(versions[number])
                if number not in found.there:
                    del versions[number]
        for version in old:
            self._retire(version)
        self._publish(name)
        if failed is not None:
            raise failed

    async def _resized(self, version: Version, found: Found, files: Files) -> bool:
        """Give a version more or fewer lanes, where its config wants just that; tell whether so.

        Raises:
            MeshError: a lane cannot be opened.
        """
        served, config = version.served, version.config
        if served is None or config is None or served.pool is None:
            return False
        lanes = only_lanes(config, found.config)
        if lanes is None or without_config(version.files) != without_config(files):
            return False
        before = served.pool.size
        await resize(served, lanes)
        version.files, version.config = files, found.config
        name = found.config.name
        log.info("lanes changed", extra={"model": name, "before": before, "lanes": lanes})
        return True

    async def _open(self, name: str, folder: Path, number: int, files: Files) -> Version:
        versions = self._versions[name]
        if number not in versions or versions[number].state != "READY":
            versions[number] = Version("LOADING")
        started = time.monotonic()
        loop = asyncio.get_running_loop()

        def health(serving: bool) -> None:
            self._on_health(name, serving)

        try:
            async with self._loads:
                served = await asyncio.to_thread(
                    self._opener.open, folder, number, loop, self._part, health
                )
        except DeviceLost as err:
            self._refuse(name, number, Version("UNAVAILABLE", str(err), kept=err))
            self._lose(str(err))
            raise
        except MeshError as err:
            self._refuse(name, number, Version("UNAVAILABLE", str(err)))
            raise
        except Exception as err:  # a boundary: one model must not end the others
            text = f"model {name!r} cannot be loaded: {type(err).__name__}; see the log"
            self._refuse(name, number, Version("UNAVAILABLE", text), err)
            raise Refused(text) from err
        fields = {
            "model": name, "version": number, "lanes": served.pool.size if served.pool else 0,
            "s": round(time.monotonic() - started, 3),
        }  # fmt: skip
        await self._make_room(name, number, served)
        log.info("model ready", extra=fields)
        return Version("READY", served=served, files=files)

    async def _make_room(self, name: str, number: int, fresh: Served) -> None:
        """Let models go that nobody asks for, until the new one fits the budget.

        Raises:
            Refused: it does not, and is closed again.
        """
        while over := await asyncio.to_thread(self.budget.excess, fresh):
            older = [one for one in self.served() if one.name != name]
            going = evictable(older, set(over))
            if not going:
                await asyncio.to_thread(fresh.close)
                self.on_close(fresh)
                text = f"model {name!r} has no room: {self.budget.text(over)}"
                self._refuse(name, number, Version("UNAVAILABLE", text))
                raise Refused(text)
            gone = going[0].name
            log.warning("model goes", extra={"model": gone, "for": name, "why": "GPU memory"})
            self._end(gone, f"{UNLOADED}, as another model needed its memory")
            await self.drain()

    def _end(self, name: str, reason: str) -> None:
        """Serve a model no more, for a reason."""
        for version in self._versions[name].values():
            if version.served is not None:
                self._retire(version, reason)
        self._publish(name)

    def _refuse(
        self, name: str, number: int, version: Version, unexpected: Exception | None = None
    ) -> None:
        """Note why a version is not served, unless one of that number is."""
        fields = {"model": name, "version": number, "error": version.reason}
        log.error("model refused", extra=fields, exc_info=unexpected)
        known = self._versions[name].get(number)
        if known is None or known.state != "READY":
            self._versions[name][number] = version
        else:
            known.reason = f"its files were changed, but {version.reason}"

    def _retire(self, version: Version, reason: str = UNLOADED) -> None:
        """Let a version end in the background, once what it runs is answered."""
        served, version.served = version.served, None
        version.reason = reason
        if served is None:
            version.state = "UNAVAILABLE"
            return
        version.state = "UNLOADING"
        task = asyncio.create_task(self._drain(version, served))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    async def _drain(self, version: Version, served: Served) -> None:
        await served.finish(DRAIN_S)
        await asyncio.to_thread(served.close)
        self.on_close(served)
        version.state = "UNAVAILABLE"
        log.info("model ended", extra={"model": served.name, "version": served.model.version})

    def _publish(self, name: str) -> None:
        """Let requests find the versions that serve now."""
        versions = self._versions[name]
        ready = {key: one.served for key, one in versions.items() if one.served is not None}
        routes = {f"{name}/{key}": served for key, served in ready.items()}
        if ready:
            routes[name] = ready[max(ready)]
        stale = [key for key in self._routes if key == name or key.startswith(f"{name}/")]
        before = {key: self._routes[key] for key in stale}
        if before == routes:
            return
        for key in before.keys() - routes.keys():
            del self._routes[key]
        self._routes |= routes
        if (name in before) != (name in routes):
            self._on_health(name, name in routes)
        self._on_change()

    def _part(self, name: str) -> Model:
        try:
            return self.find(name).model
        except StageUnavailable as err:  # once it is loaded, the ensemble is looked at again
            raise NotFound(str(err)) from err

    async def _compare_ensembles(self, part: str) -> None:
        """Compare ensembles that have a model as a part with what it is now."""
        for name in [name for name, parts in self._parts.items() if part in parts]:
            before = self._routes.get(name)
            async with self._locks[name]:
                await self._compare(name)
            if self._routes.get(name) is not before:
                await self._compare_ensembles(name)

    async def _compare(self, name: str) -> None:
        if all(version.reason.startswith(UNLOADED) for version in self._versions[name].values()):
            return
        try:
            await self._load(name, self.folder(name), anew=True)
        except MeshError as err:  # it is logged; its steps would fail
            self._end(name, str(err))
