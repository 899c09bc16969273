"""How a version of a model is, in Triton's words."""

from dataclasses import dataclass
from typing import Literal

from infer_svc.config import ModelConfig
from infer_svc.folders import Files
from infer_svc.served import Served
from mesh.errors import MeshError, Refused, StageUnavailable

State = Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]
"""In Triton's words."""
UNLOADED = "unloaded"
NOWHERE = 0
"""Stands for the version of what tells of none."""


class Unloaded(StageUnavailable):
    """Somebody has unloaded it here; another replica may have it."""


@dataclass(eq=False)
class Version:
    """A version of a model, and how it is."""

    state: State
    reason: str = ""
    """Why it is not served."""
    served: Served | None = None
    files: Files = frozenset()
    """That it was loaded from."""
    config: ModelConfig | None = None
    """As its file said."""
    kept: BaseException | None = None
    """What must not be ended any more, as its GPU is lost."""


@dataclass(frozen=True)
class Listed:
    """A version of a model, as `index` tells of it."""

    name: str
    version: str
    """Empty: none is known."""
    state: State
    reason: str


def not_served(what: str, version: Version) -> MeshError:
    """Return why a version is not served.

    Args:
        what: names it.
        version: that it is.
    """
    if version.state == "LOADING":
        return StageUnavailable(f"{what} is being loaded; try again in a moment")
    if not version.reason.startswith(UNLOADED):
        return Refused(version.reason)
    return Unloaded(f"{what} is {version.reason}; load it, or ask for another")
