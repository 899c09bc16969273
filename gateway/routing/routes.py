"""Routes as they are set, kept and read from a file."""

import random
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mesh.errors import InvalidInput, SettingsError
from mesh.validation import faults
from protos.mesh.v1 import routes_pb2

STEPS = 10_000
"""A weight is so fine."""


class Rule(BaseModel):
    """When a canary takes over, or goes. Fields as in `RouteRule`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    p99_ratio: float = Field(default=1.5, ge=0)
    error_rate: float = Field(default=0.02, ge=0, le=1)
    min_samples: int = Field(default=50, ge=1)
    window_s: float = Field(default=30.0, ge=1, le=3600)
    promote_after_s: float = Field(default=0.0, ge=0)


class Route(BaseModel):
    """Of one pipeline. Fields as in the message `Route`."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    pipeline: str
    stable: str = ""
    canary: str = ""
    weight: float = Field(default=0.0, ge=0, le=100)
    sticky: str = ""
    shadow: str = ""
    rule: Rule | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Route":
        if self.canary and self.canary == self.stable:
            raise ValueError(f"version {self.canary!r} is stable and canary, wanted two")
        if self.weight and not self.canary:
            raise ValueError(f"weight {self.weight:g} came without a canary")
        return self

    @property
    def versions(self) -> list[str]:
        """Those that it names."""
        return [version for version in (self.stable, self.canary, self.shadow) if version]

    def wants_canary(self, key: str) -> bool:
        """Tell whether a request goes to the canary.

        Args:
            key: of a sticky request; empty: it is left to chance.
        """
        if not self.canary or not self.weight:
            return False
        at = crc32(f"{self.pipeline}/{key}".encode()) if key else random.randrange(STEPS)
        return at % STEPS < self.weight / 100 * STEPS

    def promoted(self) -> "Route":
        """Return the route with the canary as the stable version."""
        return self.model_copy(update={"stable": self.canary, "canary": "", "weight": 0.0})

    def rolled_back(self) -> "Route":
        """Return the route without its canary."""
        return self.model_copy(update={"canary": "", "weight": 0.0})

    def to_proto(self) -> routes_pb2.Route:
        """Return the message."""
        message = routes_pb2.Route(**self.model_dump(exclude={"rule"}))
        if self.rule is not None:
            message.rule.CopyFrom(routes_pb2.RouteRule(**self.rule.model_dump()))
        return message


def from_proto(message: routes_pb2.Route) -> Route:
    """Return the route of a message; what a rule leaves out is as `Rule` has it.

    Raises:
        InvalidInput: a field cannot be used.
    """
    names = ("pipeline", "stable", "canary", "weight", "sticky", "shadow")
    values = {name: getattr(message, name) for name in names}
    if message.HasField("rule"):
        values["rule"] = {field.name: value for field, value in message.rule.ListFields()}
    try:
        return Route.model_validate(values)
    except ValidationError as err:
        raise InvalidInput(f"the route cannot be: {faults(err, 'route')}") from err


def complete_route(message: routes_pb2.Route, served: Sequence[str]) -> None:
    """Compare a route with the versions that are served, and name its stable one.

    Args:
        message: beside a canary, a stable version that is not named is the newest other one.
        served: versions of the pipeline's model.

    Raises:
        InvalidInput: it names a version that is not served.
    """
    route = from_proto(message)
    if missing := [version for version in route.versions if version not in served]:
        raise InvalidInput(
            f"versions {missing} of {route.pipeline!r} are not served, but {list(served)}; put "
            "them into the repository, and let its config.pbtxt have a version_policy that keeps "
            "several, as { all { } }"
        )
    if route.canary and not route.stable:
        others = [int(version) for version in served if version != route.canary]
        if not others:
            raise InvalidInput(
                f"{route.pipeline!r} has version {route.canary} only, wanted another one beside it"
            )
        message.stable = str(max(others))


def read_routes(path: Path) -> dict[str, Route]:
    """Return the routes of a file: YAML, `routes: {PIPELINE: {stable: …, canary: …}}`.

    Raises:
        SettingsError: it cannot be read, or a route cannot be.
    """
    try:
        text = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        given = text["routes"] or {}
        return {
            name: Route.model_validate({"pipeline": name, **(values or {})})
            for name, values in given.items()
        }
    except ValidationError as err:
        raise SettingsError(f"{path} has no routes: {faults(err, 'route')}") from err
    except (
        OSError,
        yaml.YAMLError,
        UnicodeDecodeError,
        KeyError,
        TypeError,
        AttributeError,
    ) as err:
        raise SettingsError(
            f"{path} has no routes ({type(err).__name__}: {err}); wanted "
            "`routes: {PIPELINE: {stable: …}}`"
        ) from err
