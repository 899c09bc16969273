"""Picks the version of each request in a data worker, and counts how it does."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

from prometheus_client import Counter, Histogram

from gateway.routing.figures import Figures, Key
from gateway.routing.routes import Route
from mesh.errors import Cancelled, InvalidInput, MeshError, NotFound, Overloaded
from mesh.item import Reply, Request

MOST_SHADOWS = 64
"""Copies under way; more are left out: they must not take the place of requests."""
STABLE, CANARY, SHADOW = "stable", "canary", "shadow"
CALLERS_FAULT = (InvalidInput, NotFound, Cancelled, Overloaded)

REQUESTS = Counter(
    "mesh_route_requests", "Requests of routed pipelines, by the version that was asked",
    ["pipeline", "version", "arm", "outcome"],
)  # fmt: skip
SECONDS = Histogram(
    "mesh_route_seconds", "Calls of a version's model, its queue included",
    ["pipeline", "version", "arm"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)  # fmt: skip
FALLBACKS = Counter(
    "mesh_route_fallbacks", "Requests that a canary failed and the stable version answered",
    ["pipeline"],
)  # fmt: skip

log = logging.getLogger(__name__)

Ask = Callable[[str], Awaitable[Reply]]
"""Runs the model's version with this number; empty: the newest."""


class Router:
    """The routes of a data worker. Lives in the event loop."""

    def __init__(self) -> None:
        self._routes: Mapping[str, Route] = {}
        self._figures: dict[Key, Figures] = {}
        self._shadows: set[asyncio.Task[None]] = set()

    def take(self, routes: Iterable[Route]) -> None:
        """Take the routes that there are now."""
        self._routes = {route.pipeline: route for route in routes}

    def of(self, pipeline: str) -> Route | None:
        """Return the route of a pipeline; None: it has none."""
        return self._routes.get(pipeline)

    def drain(self) -> dict[Key, Figures]:
        """Return what was counted since the last call."""
        found, self._figures = self._figures, {}
        return found

    async def run(self, route: Route, versions: Sequence[str], request: Request, ask: Ask) -> Reply:
        """Run a request on the version that its route says.

        What a canary fails by a fault of ours, the stable version answers.

        Args:
            route: of its pipeline.
            versions: that are served; others are not asked.
            request: whose metadata may have a sticky key.
            ask: runs a version; several times if need be.

        Raises:
            MeshError: as the stable version answered, or the caller's own fault.
        """
        served = set(versions)
        stable = route.stable if route.stable in served else ""
        answered: asyncio.Future[bytes] | None = None
        if route.shadow in served and len(self._shadows) < MOST_SHADOWS:
            answered = asyncio.get_running_loop().create_future()
            self._begin_shadow(route, ask, answered)
        try:
            reply = await self._answer(route, served, stable, request, ask)
        except BaseException:
            if answered is not None:
                answered.cancel()
            raise
        if answered is not None and not answered.done():
            answered.set_result(reply.payload)
        return reply

    async def _answer(
        self, route: Route, served: Collection[str], stable: str, request: Request, ask: Ask
    ) -> Reply:
        if route.canary in served and route.wants_canary(_key(route, request)):
            try:
                return await self._timed(route, route.canary, CANARY, ask)
            except CALLERS_FAULT:
                raise
            except MeshError as err:
                request.check_deadline()
                FALLBACKS.labels(route.pipeline).inc()
                fields = {"pipeline": route.pipeline, "version": route.canary, "error": str(err)}
                log.warning("canary failed", extra=fields)
        return await self._timed(route, stable, STABLE, ask)

    async def _timed(self, route: Route, version: str, arm: str, ask: Ask) -> Reply:
        began, outcome = time.monotonic(), "ok"
        try:
            return await ask(version)
        except CALLERS_FAULT:
            outcome = ""
            raise
        except MeshError:
            outcome = "failed"
            raise
        except asyncio.CancelledError:
            outcome = ""
            raise
        finally:
            if outcome:
                self._note(route, version, arm, time.monotonic() - began, outcome)

    def _note(self, route: Route, version: str, arm: str, seconds: float, outcome: str) -> None:
        key = route.pipeline, version, arm
        self._figures.setdefault(key, Figures()).note(seconds, failed=outcome == "failed")
        REQUESTS.labels(*key, outcome).inc()
        SECONDS.labels(*key).observe(seconds)

    def _begin_shadow(self, route: Route, ask: Ask, answered: "asyncio.Future[bytes]") -> None:
        task = asyncio.create_task(self._shadow(route, ask, answered))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _shadow(self, route: Route, ask: Ask, answered: "asyncio.Future[bytes]") -> None:
        try:
            reply = await self._timed(route, route.shadow, SHADOW, ask)
            if await answered == reply.payload:
                self._figures.setdefault(
                    (route.pipeline, route.shadow, SHADOW), Figures()
                ).same += 1
        except MeshError as err:
            fields = {"pipeline": route.pipeline, "version": route.shadow, "error": str(err)}
            log.debug("shadow failed", extra=fields)
        except asyncio.CancelledError:
            if not answered.cancelled():
                raise


def _key(route: Route, request: Request) -> str:
    """Return what a request's version depends on; empty: chance."""
    if not route.sticky:
        return ""
    name = route.sticky.lower()
    for key, value in request.metadata:
        if key.lower() == name:
            return value if isinstance(value, str) else value.decode("latin-1")
    return ""
