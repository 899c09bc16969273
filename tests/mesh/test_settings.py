"""Settings are read once, and a wrong one is told by the name of its variable."""

import os
from pathlib import Path

import pytest
from pydantic import Field, ValidationError
from pydantic_settings import SettingsConfigDict

from mesh.errors import SettingsError
from mesh.settings import ServiceSettings, TelemetrySettings, load


class FakeSettings(ServiceSettings):
    """Settings of a service that tests make up."""

    model_config = SettingsConfigDict(env_prefix="FAKE_", frozen=True)

    bind: str = "127.0.0.1:1"
    fast: bool = False
    max_items: int = Field(8, ge=1)
    name: str


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("FAKE_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FAKE_NAME", "n")


def loaded(monkeypatch: pytest.MonkeyPatch, **variables: str) -> FakeSettings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load(FakeSettings)


def test_variables_and_defaults_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    found = loaded(monkeypatch, FAKE_MAX_ITEMS="3", FAKE_MODELS="/m", FAKE_DRAIN_S="0.5")
    assert (found.max_items, found.models, found.drain_s) == (3, Path("/m"), 0.5)
    assert (found.bind, found.metrics_port, found.log_level) == ("127.0.0.1:1", 0, "INFO")


def test_settings_cannot_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        loaded(monkeypatch).max_items = 9


@pytest.mark.parametrize("text", ["true", "True", "1", "yes", "on"])
def test_true(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(monkeypatch, FAKE_FAST=text).fast is True


@pytest.mark.parametrize("text", ["false", "False", "0", "no", "off"])
def test_false(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(monkeypatch, FAKE_FAST=text).fast is False


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FAKE_FAST", "maybe"),
        ("FAKE_FAST", ""),
        ("FAKE_MAX_ITEMS", "many"),
        ("FAKE_MAX_ITEMS", "0"),
        ("FAKE_METRICS_PORT", "65536"),
        ("FAKE_METRICS_PORT", "-1"),
        ("FAKE_DRAIN_S", "0"),
        ("FAKE_DRAIN_S", "long"),
        ("FAKE_LOG_LEVEL", "LOUD"),
    ],
    ids=str,
)
def test_wrong_value_names_its_variable_and_itself(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(monkeypatch, **{variable: value})
    assert str(caught.value).startswith(f"{variable}: ")
    assert f"(came {value!r})" in str(caught.value)


def test_every_wrong_value_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="FAKE_MAX_ITEMS") as caught:
        loaded(monkeypatch, FAKE_MAX_ITEMS="x", FAKE_FAST="x")
    assert "FAKE_FAST" in str(caught.value)


def test_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAKE_NAME")
    with pytest.raises(SettingsError, match="FAKE_NAME: Field required"):
        load(FakeSettings)


def test_unknown_variable_with_our_prefix_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SettingsError, match=r"unknown setting \['FAKE_MAX_ITEM'\]") as caught:
        loaded(monkeypatch, FAKE_MAX_ITEM="3")
    assert "FAKE_MAX_ITEMS" in str(caught.value)


def test_variable_of_another_prefix_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(monkeypatch, FAKER_X="1", OTHER_MAX_ITEMS="3", MAX_ITEMS="4").max_items == 8


@pytest.mark.parametrize("level", ["DEBUG", "info", "Warning", "ERROR", "CRITICAL"])
def test_level_of_logging(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(monkeypatch, FAKE_LOG_LEVEL=level).log_level == level


@pytest.mark.parametrize(
    ("variables", "exports"),
    [
        pytest.param({}, False, id="none"),
        pytest.param({"ENDPOINT": "http://a:1"}, True, id="endpoint"),
        pytest.param({"TRACES_ENDPOINT": "http://a:1"}, True, id="traces_endpoint"),
        pytest.param({"EXPORTER": "otlp"}, True, id="otlp_without_endpoint"),
        pytest.param({"EXPORTER": "none", "ENDPOINT": "http://a:1"}, False, id="none_wins"),
        pytest.param({"DISABLED": "true", "ENDPOINT": "http://a:1"}, False, id="disabled"),
        pytest.param({"DISABLED": "false", "ENDPOINT": "http://a:1"}, True, id="not_disabled"),
    ],
)
def test_otel_variables_say_whether_spans_are_exported(
    variables: dict[str, str], exports: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {
        "ENDPOINT": "OTEL_EXPORTER_OTLP_ENDPOINT",
        "TRACES_ENDPOINT": "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "EXPORTER": "OTEL_TRACES_EXPORTER",
        "DISABLED": "OTEL_SDK_DISABLED",
    }
    for name, value in variables.items():
        monkeypatch.setenv(names[name], value)
    assert load(TelemetrySettings).exports is exports


def test_otel_variables_that_only_the_sdk_knows_are_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    load(TelemetrySettings)


def test_wrong_otel_value_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", "many")
    with pytest.raises(SettingsError, match=r"OTEL_SPAN_LINK_COUNT_LIMIT: .*'many'"):
        load(TelemetrySettings)


@pytest.mark.parametrize(
    ("variables", "off"),
    [
        ({}, False),
        ({"OTEL_SDK_DISABLED": "true"}, True),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, True),
        ({"OTEL_TRACES_SAMPLER": "Always_Off"}, True),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, False),
    ],
    ids=["default", "disabled", "always_off", "other_case", "as_callers_ask"],
)
def test_off_is_off_for_late_traces_too(
    variables: dict[str, str], off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert load(TelemetrySettings).off is off


@pytest.mark.parametrize(
    "name", ["OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"], ids=str
)
def test_bound_of_the_spans_that_wait_is_read_and_checked(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "7")
    assert 7 in load(TelemetrySettings).model_dump().values()
    monkeypatch.setenv(name, "0")
    with pytest.raises(SettingsError, match=name):
        load(TelemetrySettings)
