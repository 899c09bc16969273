"""Routes in the control process: set, kept, pushed to the data workers, judged."""

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from gateway.routing.figures import Window, unpack_figures
from gateway.routing.router import CANARY, SHADOW, STABLE
from gateway.routing.routes import Route, from_proto, read_routes
from gateway.routing.rules import Judge
from gateway.routing.store import RouteStore
from gateway.scrape import WORKER
from mesh.errors import InvalidInput, MeshError, NotFound, SettingsError
from mesh.item import Handler, Request
from mesh.messages import message_handler
from mesh.oip.settings import Settings
from mesh.unary import ask
from protos.mesh.v1 import routes_pb2

EVERY_S = 1.0
PUSH_S = 2.0
KEEP_S = 3600.0
DEFAULT_WINDOW_S = 30.0

log = logging.getLogger(__name__)


class RouteController:
    """The routes of a gateway. Lives in the event loop of its control process.

    Args:
        store: where they are kept.
        workers: addresses of the data workers.
        file: of routes that are watched; None: there is none.
    """

    def __init__(self, store: RouteStore, workers: Sequence[str], file: Path | None = None) -> None:
        self._store, self._workers, self._file = store, workers, file
        self._routes = {route.pipeline: route for route in store.routes()}
        self._judges: dict[str, tuple[Route, Judge]] = {}
        self._window = Window()
        self._file_seen: tuple[int, int] | None = None
        self._from_file: set[str] = set()
        self._changing = asyncio.Lock()
        self.settings = Settings()
        """Pushed along."""

    async def run(self) -> None:
        """Push routes, collect figures and judge canaries, until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:  # a boundary: routes must stay what they are
                log.exception("routes cannot be looked at")
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Do all that `run` does once."""
        async with self._changing:
            self._read_file()
            await self._push()
            before = dict(self._routes)
            for route in before.values():
                self._judge(route)
            if self._routes != before:
                await self._push()

    async def push(self) -> None:
        """Return once every data worker has the routes and settings that there are now."""
        async with self._changing:
            await self._push()

    async def set(self, message: routes_pb2.SetRouteRequest) -> routes_pb2.RoutesResponse:
        """Change a route; answered once every data worker has it.

        Raises:
            InvalidInput: the route cannot be, or comes from a file.
            NotFound: there is no such route to promote, roll back or remove.
        """
        name = message.route.pipeline
        async with self._changing:
            if name in self._from_file:
                raise InvalidInput(f"the route of {name!r} is in {self._file}; change it there")
            old = self._routes.get(name)
            ends_canary = message.promote or message.rollback
            if (message.remove or ends_canary) and old is None:
                raise NotFound(f"pipeline {name!r} has no route")
            if ends_canary and old is not None and not old.canary:
                raise NotFound(f"pipeline {name!r} has no canary")
            if message.remove:
                self._remove(name, message.by)
            elif ends_canary:
                assert old is not None
                new = old.promoted() if message.promote else old.rolled_back()
                word = "promoted" if message.promote else "rolled back"
                self._put(new, message.by, f"version {old.canary} is {word}")
            else:
                self._put(from_proto(message.route), message.by, "")
            await self._push()
        return self.get(routes_pb2.GetRoutesRequest(pipeline=name))

    def get(self, message: routes_pb2.GetRoutesRequest) -> routes_pb2.RoutesResponse:
        """Tell of routes, how their versions do, and who changed them."""
        response = routes_pb2.RoutesResponse(changes=self._store.changes(message.pipeline))
        for name, route in sorted(self._routes.items()):
            if message.pipeline not in ("", name):
                continue
            state = response.routes.add(route=route.to_proto())
            window = route.rule.window_s if route.rule is not None else DEFAULT_WINDOW_S
            versions = (route.stable, route.canary, route.shadow)
            for arm, version in zip((STABLE, CANARY, SHADOW), versions, strict=True):
                if arm != STABLE and not version:
                    continue
                found = self._window.of((name, version, arm), window)
                state.arms.add(
                    version=version, arm=arm, requests=found.requests, errors=found.errors,
                    p50_ms=1e3 * found.percentile(0.5), p99_ms=1e3 * found.percentile(0.99),
                    same=found.same,
                )  # fmt: skip
        return response

    async def _push(self) -> None:
        """Give each data worker the routes, and take what it has counted."""
        routes = [route.to_proto() for route in self._routes.values()]
        snapshot = routes_pb2.Snapshot(routes=routes, settings=self.settings.to_json())
        message = snapshot.SerializeToString()
        answers = await asyncio.gather(
            *(ask(at, f"{WORKER}/Take", message, PUSH_S) for at in self._workers),
            return_exceptions=True,
        )
        figures = []
        for at, answer in zip(self._workers, answers, strict=True):
            if isinstance(answer, MeshError | DecodeError):
                log.debug("no figures", extra={"worker": at, "error": str(answer)})
            elif isinstance(answer, BaseException):
                raise answer
            else:
                figures.append(unpack_figures(routes_pb2.RouteFigures.FromString(answer)))
        self._window.add(figures, KEEP_S)

    def _judge(self, route: Route) -> None:
        if route.rule is None or not route.canary:
            self._judges.pop(route.pipeline, None)
            return
        known = self._judges.get(route.pipeline)
        if known is None or known[0] != route:
            self._judges[route.pipeline] = known = route, Judge(route.rule, time.monotonic())
        window = route.rule.window_s
        stable = self._window.of((route.pipeline, route.stable, STABLE), window)
        canary = self._window.of((route.pipeline, route.canary, CANARY), window)
        verdict = known[1].look(stable, canary, time.monotonic())
        if verdict is not None:
            promote = verdict.what == "promote"
            new = route.promoted() if promote else route.rolled_back()
            word = "promoted" if promote else "rolled back"
            self._put(new, "rule", f"version {route.canary} is {word}: {verdict.reason}")

    def _put(self, route: Route, by: str, what: str) -> None:
        old = self._routes.get(route.pipeline)
        line = f"{what}; " if what else ""
        line += f"{_text(old)} -> {_text(route)}"
        self._store.put(route, by, line)
        self._routes[route.pipeline] = route
        if old is None or old.versions != route.versions:
            self._window.forget(route.pipeline)
        log.info("route", extra={"pipeline": route.pipeline, "by": by, "change": line})

    def _remove(self, name: str, by: str) -> None:
        line = f"removed; {_text(self._routes.pop(name))}"
        self._store.remove(name, by, line)
        self._window.forget(name)
        log.info("route", extra={"pipeline": name, "by": by, "change": line})

    def _read_file(self) -> None:
        """Take the routes of the file, where it has changed; a broken one changes nothing."""
        if self._file is None:
            return
        try:
            status = self._file.stat()
            seen = status.st_size, status.st_mtime_ns
            if seen == self._file_seen:
                return
            self._file_seen = seen
            routes = read_routes(self._file)
        except (OSError, SettingsError) as err:
            log.warning("routes stay as they are", extra={"error": str(err)})
            return
        for name in self._from_file - routes.keys():
            self._remove(name, "file")
        for name, route in routes.items():
            if self._routes.get(name) != route:
                self._put(route, "file", "")
        self._from_file = set(routes)


def route_handlers(controller: RouteController) -> dict[str, Handler]:
    """Return the handlers of the calls about routes, by method."""

    async def get(message: Any, _: Request) -> Any:
        return controller.get(message)

    async def set_(message: Any, _: Request) -> Any:
        return await controller.set(message)

    return {
        "GetRoutes": message_handler(routes_pb2.GetRoutesRequest, get),
        "SetRoute": message_handler(routes_pb2.SetRouteRequest, set_),
    }


def _text(route: Route | None) -> str:
    if route is None:
        return "none"
    text = f"stable {route.stable or 'newest'}"
    if route.canary:
        text += f", canary {route.canary} with {route.weight:g} %"
    if route.sticky:
        text += f", sticky by {route.sticky}"
    if route.shadow:
        text += f", shadow {route.shadow}"
    return text
