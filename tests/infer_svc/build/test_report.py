"""A report survives JSON, reads as a table, and refuses."""

import json
import math

import pytest

from infer_svc.build.report import LayerError, OutputError, Report, check
from mesh.errors import Refused, SettingsError


def report(error: float = 0.5, agreement: float | None = 0.75) -> Report:
    return Report(
        "models/m/1/model.onnx", "fp16", "data.npz", 64, 0.1, ("/kept",),
        (
            OutputError("logits", error, 3.0, 0.9, agreement),
            OutputError("score", 0.01, 0.1, 1.0, None),
        ),
        tuple(LayerError(f"t{n}", f"/node/{n}", "MatMul", error / (n + 1), 0.1) for n in range(12)),
    )  # fmt: skip


@pytest.mark.parametrize("error", [0.5, 0.0, math.inf], ids=str)
def test_report_survives_json_which_every_reader_takes(error: float) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = report(error).to_json()
    json.loads(text, parse_constant=refuse)
    assert Report.from_json(text) == report(error)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kept": []}', "null"], ids=str)
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="no accuracy report"):
        Report.from_json(text)


def test_text_shows_outputs_and_the_worst_layers() -> None:
    text = report().text(3)
    for part in ("fp16", "64 rows of data.npz", "exceeded by 'logits'", "75.00%", "(3 of 12)",
                 "MatMul /node/2", "kept in FP32: /kept"):  # fmt: skip
        assert part in text
    assert "/node/3" not in text
    assert "tolerance 0.1: holds" in report(0.1).text()


def test_error_at_the_tolerance_passes_and_above_is_refused_with_the_report() -> None:
    check(report(0.1))
    check(report(0.5), 0.5)
    with pytest.raises(Refused, match=r"output 'logits' has the error 0\.11, .*0\.1;") as caught:
        check(report(0.11))
    assert report(0.11).text() in str(caught.value)
    with pytest.raises(Refused):
        check(report(0.05), 0.04)


@pytest.mark.parametrize("error", [math.inf, math.nan], ids=str)
def test_error_that_is_no_number_is_refused_by_any_tolerance(error: float) -> None:
    with pytest.raises(Refused):
        check(report(error), 1e9)
