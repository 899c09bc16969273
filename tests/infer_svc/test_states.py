"""Why a version is not served."""

import pytest

from infer_svc.states import UNLOADED, State, Unloaded, Version, not_served
from mesh.errors import MeshError, Refused, StageUnavailable


@pytest.mark.parametrize(
    ("state", "reason", "kind", "text"),
    [
        ("LOADING", "", StageUnavailable, "version 3 is being loaded; try again"),
        ("UNAVAILABLE", "no file", Refused, "no file"),
        ("UNLOADING", "it does not fit", Refused, "it does not fit"),
        ("UNAVAILABLE", UNLOADED, Unloaded, "version 3 is unloaded; load it"),
        ("UNLOADING", UNLOADED, Unloaded, "version 3 is unloaded; load it"),
    ],
)
def test_each_state_has_its_error(
    state: State, reason: str, kind: type[MeshError], text: str
) -> None:
    error = not_served("version 3", Version(state, reason))
    assert type(error) is kind
    assert str(error).startswith(text)
