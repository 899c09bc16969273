"""Medians of rounds, and the ratios that issues name, with both sides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.peers.turn import Turn

Rounds = Mapping[str, Sequence[Turn]]
"""The turns of each system, one a round, in order."""


@dataclass(frozen=True)
class Ratio:
    """One ratio: the median over rounds, as both sides of each round are measured together."""

    what: str
    figure: str
    """Of `FIGURES`."""
    over: str
    under: str
    bar: str
    """Words: what it should be."""


def rate(turn: Turn) -> float:
    """Return answers per second, 32 requests under way."""
    return float(turn.busy["per_s"])


def alone(turn: Turn) -> float:
    """Return the median latency in ms, one request at a time."""
    return float(turn.alone["p50_ms"])


def cpu(turn: Turn) -> float:
    """Return microseconds of CPU of the whole server per answer, 32 requests under way."""
    return turn.total_cpu_us


FIGURES = {"per_s": rate, "alone_p50_ms": alone, "cpu_us": cpu}
RATIOS = (
    Ratio("JPEG, 32 at a time, requests/s", "per_s", "mesh", "triton-docs", ">= 2"),
    Ratio("JPEG, 32 at a time, requests/s", "per_s", "mesh", "triton-no-delay", ""),
    Ratio("JPEG, 32 at a time, requests/s", "per_s", "mesh", "triton-2-decoders", ""),
    Ratio("JPEG, 32 at a time, requests/s", "per_s", "mesh", "triton-own-ops", ">= 1.6"),
    Ratio("JPEG, 32 at a time, requests/s", "per_s", "mesh", "loop", ">= 0.9"),
    Ratio("JPEG, 32 at a time, requests/s", "per_s", "mesh", "fastapi", ""),
    Ratio("JPEG, 32 at a time, requests/s", "per_s", "mesh", "fastapi-2", ""),
    Ratio("JPEG, 32 at a time, requests/s", "per_s", "mesh", "litserve", ""),
    Ratio("JPEG, 32 at a time, CPU per request", "cpu_us", "mesh", "loop-own-ops", "<= 1.4"),
    Ratio("JPEG, alone, median latency", "alone_p50_ms", "mesh", "triton-docs", "<= 0.5"),
    Ratio("JPEG, alone, median latency", "alone_p50_ms", "mesh", "triton-own-ops", "<= 0.75"),
    Ratio("text, 32 at a time, requests/s", "per_s", "mesh-text", "triton-docs-text", ">= 2"),
    Ratio("JPEG, every hop over TCP, requests/s", "per_s", "mesh-tcp", "mesh", ">= 0.75"),
)


def ratio_rows(rounds: Rounds) -> list[dict[str, Any]]:
    """Return each ratio of which both sides ran, with the medians of both."""
    rows = []
    for ratio in RATIOS:
        over, under = rounds.get(ratio.over), rounds.get(ratio.under)
        if not over or not under:
            continue
        figure = FIGURES[ratio.figure]
        pairs = [(figure(a), figure(b)) for a, b in zip(over, under, strict=True)]
        rows.append(
            {
                "what": ratio.what, "over": ratio.over, "under": ratio.under,
                "over_median": round(median(a for a, _ in pairs), 2),
                "under_median": round(median(b for _, b in pairs), 2),
                "ratio": round(median(a / b for a, b in pairs), 3), "bar": ratio.bar,
            }
        )  # fmt: skip
    return rows


def system_row(turns: Sequence[Turn]) -> dict[str, Any]:
    """Return the medians of one system."""
    kinds = sorted({kind for turn in turns for kind in turn.cpu_us})
    return {
        "per_s": round(median(map(rate, turns)), 1),
        "p50_ms": round(median(turn.busy["p50_ms"] for turn in turns), 2),
        "p99_ms": round(median(turn.busy["p99_ms"] for turn in turns), 2),
        "alone_p50_ms": round(median(map(alone, turns)), 2),
        "cpu_us": round(median(map(cpu, turns))),
        "cpu_us_by_process": {
            kind: round(median(turn.cpu_us.get(kind, 0.0) for turn in turns)) for kind in kinds
        },
        "client_cpu_us": round(median(turn.busy["client_cpu_us"] for turn in turns)),
        "errors": sum(turn.busy["requests"] - turn.busy["answered"] for turn in turns),
    }


def curve(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Return the open loop's reports by rising rate; of a rate measured twice, the later."""
    points = {rate: report for turn in turns for rate, report in turn.swept.items()}
    return [{"offered_per_s": rate, **points[rate]} for rate in sorted(points)]


def show(titles: Mapping[str, str], rounds: Rounds) -> None:
    """Print both tables."""
    head = ("requests/s", "p50 ms", "p99 ms", "alone ms", "CPU us", "client us", "errors")
    keys = ("per_s", "p50_ms", "p99_ms", "alone_p50_ms", "cpu_us", "client_cpu_us", "errors")
    print("\n| system | " + " | ".join(head) + " |\n|---" + "|---" * len(head) + "|")
    for name, turns in rounds.items():
        row = system_row(turns)
        print(f"| {titles[name]} | " + " | ".join(str(row[key]) for key in keys) + " |")
    print("\n| what | a | b | a | b | a / b | bar |\n|---|---|---|---|---|---|---|")
    for row in ratio_rows(rounds):
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    for name in rounds:
        if name.startswith("mesh"):
            print(f"\n{name}, CPU us by process: {system_row(rounds[name])['cpu_us_by_process']}")
