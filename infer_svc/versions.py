"""Which versions of a model are served: Triton's `version_policy`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as triton

from mesh.errors import SettingsError


@dataclass(frozen=True)
class Policy:
    """Which of the versions that there are; without a field, all of them."""

    newest: int = 0
    """Only so many, those with the largest numbers; 0: as the others say."""
    named: tuple[int, ...] = ()
    """Only these, those of them that there are."""


NEWEST_ONE = Policy(newest=1)


def policy_of(message: triton.ModelConfig) -> Policy:
    """Return the policy of a config; without one, the newest version.

    Raises:
        ValueError: it names no version, or a number below 1.
    """
    given = message.version_policy
    kind = given.WhichOneof("policy_choice")
    if kind == "all":
        return Policy()
    if kind == "specific":
        versions = tuple(sorted(set(given.specific.versions)))
        if not versions or versions[0] < 1:
            raise ValueError(
                f"version_policy names the versions {list(versions)}, wanted at least one, from 1"
            )
        return Policy(named=versions)
    return Policy(newest=given.latest.num_versions or 1)


def versions_of(folder: Path) -> list[int]:
    """Return the versions that a folder has; as with Triton, a name from 0 on is none."""
    return sorted(
        int(child.name)
        for child in folder.iterdir()
        if child.is_dir() and re.fullmatch("[1-9][0-9]*", child.name)
    )


def wanted(folder: Path, there: Sequence[int], policy: Policy) -> list[int]:
    """Return the versions that are to be served, the smallest first.

    Args:
        folder: of the model.
        there: versions that there are, the smallest first.
        policy: of the model.

    Raises:
        SettingsError: there is none of them.
    """
    if not there:
        raise SettingsError(
            f"model {folder.name!r} has no version: wanted a folder {folder / '1'} with its file"
        )
    found = [version for version in there if not policy.named or version in policy.named]
    if not found:
        raise SettingsError(
            f"model {folder.name!r} has the versions {list(there)}, its version_policy wants "
            f"{list(policy.named)}"
        )
    return found[-policy.newest :] if policy.newest else found
