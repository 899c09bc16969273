"""Ratios are of one round's two sides; tables hold medians."""

from typing import Any

import pytest

from benchmarks.peers.table import curve, ratio_rows, show, system_row
from benchmarks.peers.turn import Turn


def turn(per_s: float, alone_ms: float = 1.0, cpu: float = 100.0, **more: Any) -> Turn:
    busy = {
        "per_s": per_s, "p50_ms": 2.0, "p99_ms": 9.0, "client_cpu_us": 50.0, "requests": 10,
        "answered": 9,
    }  # fmt: skip
    return Turn(busy, {"p50_ms": alone_ms}, {"a": cpu, "b": 1.0}, **more)


def ratio(rows: list[dict[str, Any]], what: str, under: str) -> dict[str, Any]:
    (row,) = [row for row in rows if what in row["what"] and row["under"] == under]
    return row


def test_ratio_is_the_median_of_ratios_not_the_ratio_of_medians() -> None:
    """The machine was three times slower in the second round: both sides were."""
    mesh = [turn(200), turn(60), turn(180)]
    docs = [turn(100), turn(20), turn(90)]
    row = ratio(ratio_rows({"mesh": mesh, "triton-docs": docs}), "requests/s", "triton-docs")
    assert (row["over_median"], row["under_median"], row["ratio"]) == (180, 90, 2)
    row = ratio(ratio_rows({"mesh": mesh[:2], "triton-docs": docs[:2]}), "s/s", "triton-docs")
    assert row["ratio"] == 2.5


def test_latency_and_cpu_have_ratios_of_their_own() -> None:
    rows = ratio_rows(
        {
            "mesh": [turn(1, alone_ms=3, cpu=139)],
            "triton-docs": [turn(1, alone_ms=6)],
            "loop-own-ops": [turn(1, cpu=99)],
        }
    )
    assert ratio(rows, "latency", "triton-docs")["ratio"] == 0.5
    assert ratio(rows, "CPU", "loop-own-ops")["ratio"] == 1.4


def test_ratio_with_a_side_that_did_not_run_is_left_out() -> None:
    assert ratio_rows({"mesh": [turn(1)], "triton-docs": []}) == []


def test_row_sums_the_processes_and_counts_what_failed() -> None:
    row = system_row([turn(10, cpu=100), turn(30, cpu=300), turn(20, cpu=200)])
    assert (row["per_s"], row["cpu_us"]) == (20, 201)
    assert row["cpu_us_by_process"] == {"a": 200, "b": 1}
    assert row["errors"] == 3


def test_curve_joins_the_rates_of_all_rounds_in_order() -> None:
    turns = [turn(1, swept={50: {"p50_ms": 1}, 300: {"p50_ms": 3}}), turn(1, swept={100: {}})]
    assert [point["offered_per_s"] for point in curve(turns)] == [50, 100, 300]
    assert curve(turns)[2]["p50_ms"] == 3


def test_table_names_both_sides_of_each_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    show({"mesh": "trtmesh", "loop": "a loop"}, {"mesh": [turn(90.0)], "loop": [turn(100.0)]})
    text = capsys.readouterr().out
    assert "| trtmesh | 90.0 |" in text
    assert "requests/s | mesh | loop | 90.0 | 100.0 | 0.9 | >= 0.9 |" in text
