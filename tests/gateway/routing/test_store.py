"""Routes outlive the process, with who changed them."""

from pathlib import Path

import pytest

from gateway.routing.store import RouteStore
from mesh.errors import SettingsError
from tests.gateway.routing.test_routes import ROUTE


def test_routes_and_changes_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.db"
    store = RouteStore(path)
    store.put(ROUTE, "me", "first")
    store.put(ROUTE.rolled_back(), "rule", "it was slow")
    other = ROUTE.model_copy(update={"pipeline": "n"})
    store.put(other, "me", "second")
    store.close()
    again = RouteStore(path)
    assert again.routes() == [ROUTE.rolled_back(), other]
    assert [(one.pipeline, one.by, one.what) for one in again.changes()] == [
        ("m", "me", "first"), ("m", "rule", "it was slow"), ("n", "me", "second"),
    ]  # fmt: skip
    again.remove("m", "me", "gone")
    assert again.routes() == [other]
    assert [one.what for one in again.changes("m")] == ["first", "it was slow", "gone"]
    again.close()


def test_without_a_file_routes_are_kept_for_now() -> None:
    store = RouteStore(None)
    store.put(ROUTE, "me", "first")
    assert store.routes() == [ROUTE]
    store.close()


def test_file_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(SettingsError, match=r"cannot be kept in .*state.db.*GATEWAY_STATE"):
        RouteStore(path)
    with pytest.raises(SettingsError, match="cannot be kept"):
        RouteStore(path / "below")
