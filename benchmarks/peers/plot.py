"""A picture of latency against offered load, one line per system, as SVG."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 980, 430
PANELS = {"p50_ms": (62, "median"), "p99_ms": (532, "99th percentile")}
"""Left edge and title of each panel."""
PANEL_WIDTH, TOP, BOTTOM = 420, 82, 372
LEAST_MS, MOST_MS = 1.0, 1000.0
COLOURS = ("#0b6e4f", "#5fb49c", "#c1121f", "#f4a261", "#3a5fcd", "#8e5ea2", "#555555", "#b8860b")
ANSWERED = 0.99
"""A rate at which fewer were answered is not drawn, and nothing beyond `MOST_MS`."""

Curves = Mapping[str, Sequence[Mapping[str, Any]]]
"""By title: reports of `benchmarks.load` with `offered_per_s`, by rising rate."""


def write_plot(path: Path, curves: Curves, limit: float | None) -> None:
    """Write the picture.

    Args:
        path: of the SVG file.
        curves: one line each.
        limit: requests per second of the in-process loop, drawn as a vertical line; None: none.

    Raises:
        ValueError: no curve, or more than there are colours.
    """
    if not 1 <= len(curves) <= len(COLOURS):
        raise ValueError(f"{len(curves)} curves came, wanted 1 to {len(COLOURS)}")
    rates = [point["offered_per_s"] for points in curves.values() for point in points]
    most = max([*rates, limit or 0]) * 1.05
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13" fill="#222222">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        *_legend(list(curves)),
    ]
    for figure, (left, title) in PANELS.items():
        parts += _axes(left, title, most, limit)
        for colour, points in zip(COLOURS, curves.values(), strict=False):
            parts += _line(points, figure, left, most, colour)
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>", ""]))


def _x(rate: float, left: int, most: float) -> float:
    return round(left + PANEL_WIDTH * rate / most, 1)


def _y(milliseconds: float) -> float:
    inside = min(max(milliseconds, LEAST_MS), MOST_MS)
    share = math.log(inside / LEAST_MS) / math.log(MOST_MS / LEAST_MS)
    return round(BOTTOM - (BOTTOM - TOP) * share, 1)


def _legend(titles: Sequence[str]) -> Iterator[str]:
    for index, (colour, title) in enumerate(zip(COLOURS, titles, strict=False)):
        x, y = 62 + index % 3 * 310, 18 + index // 3 * 22
        yield f'<line x1="{x}" y1="{y}" x2="{x + 22}" y2="{y}" stroke="{colour}" stroke-width="3"/>'
        yield f'<text x="{x + 28}" y="{y + 4}">{title}</text>'


def _axes(left: int, title: str, most: float, limit: float | None) -> Iterator[str]:
    right = left + PANEL_WIDTH
    yield f'<text x="{left}" y="{TOP - 10}" font-weight="bold">{title}, ms</text>'
    for milliseconds in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000):
        y = _y(milliseconds)
        label = f"{milliseconds}+" if milliseconds == MOST_MS else str(milliseconds)
        yield f'<line x1="{left}" y1="{y}" x2="{right}" y2="{y}" stroke="#dddddd"/>'
        yield f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{label}</text>'
    for rate in range(0, int(most) + 1, 100 if most < 900 else 200):
        x = _x(rate, left, most)
        yield f'<line x1="{x}" y1="{BOTTOM}" x2="{x}" y2="{BOTTOM + 5}" stroke="#222222"/>'
        yield f'<text x="{x}" y="{BOTTOM + 19}" text-anchor="middle">{rate}</text>'
    middle = left + PANEL_WIDTH / 2
    yield f'<text x="{middle}" y="{BOTTOM + 40}" text-anchor="middle">offered requests/s</text>'
    if limit is not None:
        x = _x(limit, left, most)
        yield (
            f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{BOTTOM}" stroke="#222222" '
            'stroke-dasharray="5 4"/>'
        )
        yield f'<text x="{x - 5}" y="{BOTTOM - 8}" text-anchor="end">in-process loop</text>'


def _line(
    points: Sequence[Mapping[str, Any]], figure: str, left: int, most: float, colour: str
) -> Iterator[str]:
    places = []
    for point in points:
        if point["answered"] < ANSWERED * point["requests"]:
            continue
        places.append((_x(point["offered_per_s"], left, most), _y(point[figure])))
        if point[figure] >= MOST_MS:
            break
    path = " ".join(f"{x},{y}" for x, y in places)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2"/>'
    for x, y in places:
        yield f'<circle cx="{x}" cy="{y}" r="3.2" fill="{colour}"/>'
