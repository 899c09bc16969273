"""A log line is one JSON object: who, when, what, and the fields of the event."""

import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from mesh.log import JsonFormatter, configure


def line(record: logging.LogRecord) -> dict[str, Any]:
    text = JsonFormatter("infer").format(record)
    assert "\n" not in text
    found: dict[str, Any] = json.loads(text)
    return found


def record(message: str = "event", *args: object, **fields: object) -> logging.LogRecord:
    logger = logging.getLogger("test")
    return logger.makeRecord("test", logging.INFO, "f.py", 1, message, args, None, extra=fields)


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """Put the root logger back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    exporter = logging.getLogger("opentelemetry.exporter")
    exporter_level = exporter.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)
    exporter.setLevel(exporter_level)


def test_line_has_time_level_service_and_event() -> None:
    found = line(record("model ready"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found == {"level": "info", "service": "infer", "event": "model ready"}


def test_extra_fields_are_fields_and_nothing_else_is() -> None:
    found = line(record("retry", stage="mesh.v1.Infer", attempt=2))
    assert found.keys() == {"time", "level", "service", "event", "stage", "attempt"}
    assert (found["stage"], found["attempt"]) == ("mesh.v1.Infer", 2)


def test_arguments_are_in_the_event() -> None:
    assert line(record("%d of %s", 3, "x"))["event"] == "3 of x"


@pytest.mark.parametrize(
    "value", ["two\nlines", "ü語😀", 'quote " and \\', "\x00\x1b[31m"], ids=ascii
)
def test_any_text_stays_one_line_and_comes_back(value: str) -> None:
    found = line(record(value, field=value))
    assert (found["event"], found["field"]) == (value, value)


def test_value_that_json_does_not_know_is_its_text() -> None:
    assert line(record("e", error=ValueError("why"), numbers={1}))["error"] == "why"


def test_traceback_is_a_field() -> None:
    try:
        raise ZeroDivisionError("secret")
    except ZeroDivisionError:
        failed = record("failed")
        failed.exc_info = sys.exc_info()
    found = line(failed)
    assert found["event"] == "failed"
    assert found["traceback"].startswith("Traceback (most recent call last)")
    assert found["traceback"].endswith("ZeroDivisionError: secret")


def test_configured_process_writes_lines_to_stderr(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("gateway", "info")
    logging.getLogger("mesh.client").info("retry", extra={"stage": "s"})
    logging.getLogger("mesh.client").debug("not shown")
    logging.getLogger("opentelemetry.exporter.otlp").warning("not shown each second")
    captured = capsys.readouterr()
    assert captured.out == ""
    (found,) = map(json.loads, captured.err.splitlines())
    assert (found["service"], found["event"], found["stage"]) == ("gateway", "retry", "s")


def test_second_configuration_replaces_the_first(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("gateway", "INFO")
    configure("gateway", "WARNING")
    logging.getLogger("x").info("not shown")
    logging.getLogger("x").warning("shown once")
    assert capsys.readouterr().err.count("shown once") == 1
    assert root_logger.level == logging.WARNING
