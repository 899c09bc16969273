"""Routes and their audit lines in SQLite, so that they outlive the process."""

import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path

from gateway.routing.routes import Route
from mesh.errors import SettingsError
from protos.mesh.v1 import routes_pb2

SCHEMA = """
CREATE TABLE IF NOT EXISTS routes (pipeline TEXT PRIMARY KEY, route TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS changes (
    time REAL NOT NULL, pipeline TEXT NOT NULL, by TEXT NOT NULL, what TEXT NOT NULL
);
"""
MEMORY = ":memory:"
MOST_CHANGES = 1000
"""Audit lines that are told; the file keeps all."""


class RouteStore:
    """Routes by pipeline.

    Args:
        path: of the file; None: they are gone with the process.

    Raises:
        SettingsError: the file cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path or MEMORY)
            self._database.executescript(f"PRAGMA journal_mode=WAL;{SCHEMA}")
        except (sqlite3.Error, OSError) as err:
            raise SettingsError(
                f"routes cannot be kept in {path}: {err}; choose another file with GATEWAY_STATE"
            ) from err

    def routes(self) -> list[Route]:
        """Return all routes.

        Raises:
            SettingsError: the file has one that cannot be read.
        """
        rows = self._database.execute("SELECT route FROM routes ORDER BY pipeline")
        try:
            return [Route.model_validate_json(text) for (text,) in rows]
        except ValueError as err:
            raise SettingsError(f"{self._path} has a route that cannot be read: {err}") from err

    def put(self, route: Route, by: str, what: str) -> None:
        """Keep a route, with an audit line, in one step."""
        with self._database:
            self._database.execute(
                "INSERT INTO routes VALUES (?, ?) ON CONFLICT (pipeline) DO UPDATE SET route = ?",
                (route.pipeline, *[route.model_dump_json()] * 2),
            )
            self._note(route.pipeline, by, what)

    def remove(self, pipeline: str, by: str, what: str) -> None:
        """Forget a route, with an audit line, in one step."""
        with self._database:
            self._database.execute("DELETE FROM routes WHERE pipeline = ?", (pipeline,))
            self._note(pipeline, by, what)

    def changes(self, pipeline: str = "") -> Iterable[routes_pb2.RouteChange]:
        """Return the newest audit lines, the newest last.

        Args:
            pipeline: whose; empty: all.
        """
        rows = self._database.execute(
            "SELECT time, pipeline, by, what FROM changes WHERE ? IN ('', pipeline) "
            "ORDER BY rowid DESC LIMIT ?",
            (pipeline, MOST_CHANGES),
        ).fetchall()
        return [
            routes_pb2.RouteChange(time=at, pipeline=name, by=by, what=what)
            for at, name, by, what in reversed(rows)
        ]

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _note(self, pipeline: str, by: str, what: str) -> None:
        row = time.time(), pipeline, by, what
        self._database.execute("INSERT INTO changes VALUES (?, ?, ?, ?)", row)
