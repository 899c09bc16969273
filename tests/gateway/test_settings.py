"""Settings of the gateway come from variables that begin with `GATEWAY_`."""

import os

import pytest

from gateway.settings import GatewaySettings
from mesh.errors import SettingsError
from mesh.settings import load


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)


def test_defaults_are_those_of_the_readme() -> None:
    found = load(GatewaySettings)
    assert (found.bind, found.metrics_port) == ("127.0.0.1:8001", 8002)
    assert (found.preprocess, found.infer, found.postprocess) == (
        "127.0.0.1:8011", "127.0.0.1:8012", "127.0.0.1:8013"
    )  # fmt: skip
    assert found.trace_store is True
    assert found.slow_ms == 1000


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_INFER", "dns:///infer:8012")
    monkeypatch.setenv("GATEWAY_TRACE_STORE", "false")
    monkeypatch.setenv("GATEWAY_DRAIN_S", "3")
    found = load(GatewaySettings)
    assert (found.infer, found.trace_store, found.drain_s) == ("dns:///infer:8012", False, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GATEWAY_MAX_WAITING", "0"),
        ("GATEWAY_MAX_REQUEST_MBYTES", "0"),
        ("GATEWAY_MAX_REQUEST_MBYTES", "1025"),
        ("GATEWAY_MAX_STREAM_ITEMS", "-1"),
        ("GATEWAY_METRICS_PORT", "http"),
        ("GATEWAY_TRACE_STORE", "perhaps"),
        ("GATEWAY_SLOW_MS", "-1"),
    ],
    ids=str,
)
def test_wrong_value_names_its_variable(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name}: "):
        load(GatewaySettings)


def test_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_INFERR", "a:1")
    with pytest.raises(SettingsError, match="GATEWAY_INFERR"):
        load(GatewaySettings)
