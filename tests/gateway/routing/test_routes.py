"""Routes as they are set, and read from a file."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.routing.routes import Route, Rule, complete_route, from_proto, read_routes
from mesh.errors import InvalidInput, SettingsError
from protos.mesh.v1 import routes_pb2

ROUTE = Route(
    pipeline="m", stable="1", canary="2", weight=10, sticky="x-user", shadow="3",
    rule=Rule(p99_ratio=2, min_samples=7),
)  # fmt: skip


def test_message_and_back() -> None:
    assert from_proto(ROUTE.to_proto()) == ROUTE
    plain = Route(pipeline="m")
    assert from_proto(plain.to_proto()) == plain


def test_rule_that_names_one_field_has_the_others() -> None:
    message = routes_pb2.Route(pipeline="m", rule=routes_pb2.RouteRule(p99_ratio=3))
    assert from_proto(message).rule == Rule(p99_ratio=3)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"weight": 101, "canary": "2"}, "weight"),
        ({"weight": 5}, "weight 5 came without a canary"),
        ({"stable": "2", "canary": "2"}, "'2' is stable and canary"),
    ],
)
def test_route_that_cannot_be_is_told(fields: dict[str, Any], part: str) -> None:
    with pytest.raises(InvalidInput, match=part):
        from_proto(routes_pb2.Route(pipeline="m", **fields))


@pytest.mark.parametrize("weight", [0, 1, 10, 50, 100])
def test_weight_is_that_of_chance_and_of_keys(weight: float) -> None:
    route = Route(pipeline="m", canary="2", weight=weight)
    by_chance = sum(route.wants_canary("") for _ in range(10_000)) / 100
    by_key = sum(route.wants_canary(f"user-{n}") for n in range(10_000)) / 100
    assert abs(by_chance - weight) < 3
    assert abs(by_key - weight) < 3
    assert len({route.wants_canary("one") for _ in range(50)}) == 1


def test_key_that_had_the_canary_keeps_it_when_the_weight_grows() -> None:
    small = Route(pipeline="m", canary="2", weight=10)
    large = small.model_copy(update={"weight": 40.0})
    keys = [f"user-{n}" for n in range(1000)]
    assert {k for k in keys if small.wants_canary(k)} < {k for k in keys if large.wants_canary(k)}


def test_canary_takes_over_or_goes() -> None:
    assert ROUTE.promoted().versions == ["2", "3"]
    assert ROUTE.rolled_back().versions == ["1", "3"]
    assert ROUTE.rolled_back().weight == 0


def test_versions_are_those_that_are_served() -> None:
    message = routes_pb2.Route(pipeline="m", canary="3", weight=5)
    complete_route(message, ["1", "2", "3"])
    assert message.stable == "2"
    with pytest.raises(InvalidInput, match=r"versions \['9'\] of 'm' are not served, but \['1'"):
        complete_route(routes_pb2.Route(pipeline="m", canary="9"), ["1", "2"])
    with pytest.raises(InvalidInput, match="has version 3 only"):
        complete_route(routes_pb2.Route(pipeline="m", canary="3"), ["3"])


def test_file_has_routes_by_pipeline(tmp_path: Path) -> None:
    path = tmp_path / "routes.yaml"
    path.write_text(
        "routes:\n  m: {stable: 1, canary: '2', weight: 10, rule: {p99_ratio: 2}}\n  n:\n"
    )
    found = read_routes(path)
    assert found["m"] == Route(
        pipeline="m", stable="1", canary="2", weight=10, rule=Rule(p99_ratio=2)
    )
    assert found["n"] == Route(pipeline="n")
    path.write_text("")
    with pytest.raises(SettingsError, match="wanted `routes"):
        read_routes(path)


@pytest.mark.parametrize(
    "text", ["routes: [m]", "x: {", "routes: {m: {weight: x}}", "routes: {m: {more: 1}}", "7"]
)
def test_file_that_has_no_routes_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "routes.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match="has no routes"):
        read_routes(path)
    with pytest.raises(SettingsError, match="has no routes"):
        read_routes(tmp_path / "none")


def test_fields_are_those_of_the_message() -> None:
    assert {f.name for f in routes_pb2.Route.DESCRIPTOR.fields} == Route.model_fields.keys()
    assert {f.name for f in routes_pb2.RouteRule.DESCRIPTOR.fields} == Rule.model_fields.keys()
    with pytest.raises(ValidationError):
        Route(pipeline="m", more=1)  # type: ignore[call-arg]
