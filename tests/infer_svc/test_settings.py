import math
import os
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from infer_svc.settings import InferSettings
from mesh.errors import SettingsError
from mesh.settings import load


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever the machine sets is not part of a test."""
    for name in list(os.environ):
        if name.startswith("INFER_"):
            monkeypatch.delenv(name)
    yield


def test_defaults_listen_on_this_machine_only() -> None:
    settings = load(InferSettings)
    assert settings.bind == "127.0.0.1:8012"
    assert (settings.max_items, settings.max_mbytes) == (1024, 512)
    assert math.isinf(settings.max_age_s)


def test_half_of_the_cores_are_left_for_the_cpu_services() -> None:
    assert load(InferSettings).cpu_threads == max(1, (os.cpu_count() or 1) // 2)


def test_every_setting_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "BIND": "unix:/tmp/infer", "CPU_THREADS": "3", "MAX_ITEMS": "5", "MAX_MBYTES": "7",
        "MAX_AGE_S": "2.5", "MODELS": "/models", "DRAIN_S": "1", "LOG_LEVEL": "DEBUG",
        "METRICS_PORT": "9000",
    }  # fmt: skip
    assert {name.upper() for name in InferSettings.model_fields} >= given.keys()
    for name, value in given.items():
        monkeypatch.setenv(f"INFER_{name}", value)
    settings = load(InferSettings)
    assert settings.cpu_threads == 3
    assert {name: str(getattr(settings, name.lower())) for name in given} == given | {
        "DRAIN_S": "1.0"
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CPU_THREADS", "0"),
        ("MAX_ITEMS", "0"),
        ("MAX_MBYTES", "-1"),
        ("MAX_AGE_S", "0"),
        ("MAX_ITEMS", "many"),
        ("ENGINE_CACHE", ""),
    ],
    ids=["threads", "items", "mbytes", "age", "no-number", "no-folder"],
)
def test_wrong_value_is_refused_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"INFER_{name}", value)
    with pytest.raises(SettingsError, match=f"INFER_{name}: .*came .*'{value}'"):
        load(InferSettings)


def test_misspelt_variable_is_refused_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFER_MAXITEMS", "1")
    with pytest.raises(SettingsError, match=r"INFER_MAXITEMS.*INFER_MAX_ITEMS"):
        load(InferSettings)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load(InferSettings).max_items = 2


def test_names_of_models_to_preload_have_commas_between(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(InferSettings).preloaded == ()
    monkeypatch.setenv("INFER_PRELOAD", "digits-detect, language,")
    assert load(InferSettings).preloaded == ("digits-detect", "language")
