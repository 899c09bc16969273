"""The picture has a line per system, and only what was answered."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.peers.plot import COLOURS, write_plot


def point(
    rate: float, answered: int = 100, *, p50: float = 5.0, p99: float = 20.0
) -> dict[str, Any]:
    return {
        "offered_per_s": rate, "requests": 100, "answered": answered, "p50_ms": p50, "p99_ms": p99
    }  # fmt: skip


def drawn(path: Path, tag: str) -> list[ElementTree.Element]:
    return ElementTree.parse(path).findall(f".//{{http://www.w3.org/2000/svg}}{tag}")


def test_every_system_has_its_name_and_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "results/plot.svg"
    write_plot(path, {"trtmesh": [point(50), point(100)], "Triton": [point(50)]}, 700.0)
    texts = [element.text for element in drawn(path, "text")]
    assert {"trtmesh", "Triton", "in-process loop", "median, ms"} <= set(texts)
    assert len(drawn(path, "polyline")) == 4
    assert len(drawn(path, "circle")) == 6


def test_slower_is_higher_and_more_is_further_right(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    write_plot(path, {"a": [point(50, p50=5), point(100, p50=50)]}, None)
    slow, fast = drawn(path, "circle")[1], drawn(path, "circle")[0]
    assert float(slow.attrib["cy"]) < float(fast.attrib["cy"])
    assert float(slow.attrib["cx"]) > float(fast.attrib["cx"])


def test_rate_that_was_not_answered_is_not_drawn(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    write_plot(path, {"a": [point(50), point(100, answered=98), point(150, answered=0)]}, None)
    assert len(drawn(path, "circle")) == 2


def test_line_ends_where_it_leaves_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    late = [point(rate, p50=2e3, p99=3e3) for rate in (100, 150)]
    write_plot(path, {"a": [point(50), *late]}, None)
    assert len(drawn(path, "circle")) == 4


@pytest.mark.parametrize("count", [0, len(COLOURS) + 1], ids=str)
def test_more_lines_than_colours_or_none_are_refused(count: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{count} curves came"):
        write_plot(tmp_path / "plot.svg", {str(n): [point(1)] for n in range(count)}, None)
