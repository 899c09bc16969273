"""How many processes a rate needs, and what they take."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mesh.cli.size import FIGURES
from mesh.errors import InvalidInput, NotFound, SettingsError
from mesh.sizing import HOPS, SERVICES, Costs, read_costs

COSTS = Costs({"gateway": 0.0005, "preprocess": 0.002, "infer": 0.0003, "postprocess": 0.0}, 0.0002)


@pytest.mark.parametrize(
    ("rate", "load", "wanted"),
    [
        (1, 0.7, (1, 1, 1, 1)),
        (500, 1.0, (1, 1, 1, 1)),
        (501, 1.0, (1, 2, 1, 1)),
        (500, 0.7, (1, 2, 1, 1)),
        (5000, 0.5, (5, 20, 3, 1)),
    ],
)
def test_each_service_has_processes_for_its_share_of_the_time(
    rate: float, load: float, wanted: tuple[int, ...]
) -> None:
    assert tuple(COSTS.needed(rate, load).values()) == wanted


@pytest.mark.parametrize(("rate", "load"), [(0, 0.7), (-1, 0.7), (float("nan"), 1), (5, 0), (5, 2)])
def test_rate_and_load_that_are_none_are_refused(rate: float, load: float) -> None:
    with pytest.raises(InvalidInput, match="wanted over 0"):
        COSTS.needed(rate, load)


@pytest.mark.parametrize(
    ("preprocess", "cores", "wanted"),
    [(1, 16, (500, "preprocess")), (2, 16, (1000, "preprocess")), (8, 16, (2000, "gateway")),
     (8, 3, (1000, "cores"))],
)  # fmt: skip
def test_what_is_busy_first_is_the_limit(
    preprocess: int, cores: int, wanted: tuple[float, str]
) -> None:
    processes = {"gateway": 1, "preprocess": preprocess, "infer": 1, "postprocess": 1}
    rate, busy = COSTS.limit(processes, cores)
    assert (round(rate), busy) == wanted


def test_process_that_can_be_busier_than_a_core_is_needed_less_often() -> None:
    wide = replace(COSTS, busiest={"preprocess": 1.25})
    assert wide.needed(1000, 1.0)["preprocess"] == 2
    assert wide.needed(1300, 1.0)["preprocess"] == 3
    processes = {"gateway": 4, "preprocess": 1, "infer": 1, "postprocess": 1}
    assert wide.limit(processes, 16) == (625, "preprocess")


def test_what_is_needed_takes_the_rate() -> None:
    for rate in (10, 333, 4321):
        assert COSTS.limit(COSTS.needed(rate, 0.7), 1000)[0] >= rate / 0.7


def write_figures(path: Path, **changes: Any) -> Path:
    found: dict[str, Any] = {
        "cpu_ms": {"gateway": 0.5, "preprocess": 2, "infer": 0.3, "postprocess": 0.2},
        "client_cpu_ms": 0.2,
        "busiest_cores": {"gateway": 1, "preprocess": 1.25, "infer": 1.5, "postprocess": 1},
    }
    machine = {"cpu": "a CPU", "cores": 4}
    figures = {"bench": {"shared": found | changes}}
    path.write_text(json.dumps({"environment": machine, "figures": figures}))
    return path


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"figures": {}, "environment": 3}'])
def test_file_that_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "figures.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match="no figures can be read"):
        read_costs(path, "bench", "shared")


def test_figures_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no figures of 'bench' over shared"):
        read_costs(write_figures(tmp_path / "f.json", cpu_ms={"gateway": 1}), "bench", "shared")
    with pytest.raises(NotFound):
        read_costs(write_figures(tmp_path / "f.json"), "other", "shared")


@pytest.mark.parametrize("pipeline", ["bench", "language"])
@pytest.mark.parametrize("hops", HOPS)
def test_runs_that_the_figures_were_not_fitted_on_are_predicted_within_a_fifth(
    pipeline: str, hops: str
) -> None:
    """Of the committed record, with the code of today."""
    record = json.loads(FIGURES.read_text())
    found = record["figures"][pipeline][hops]
    costs, _ = read_costs(FIGURES, pipeline, hops)
    others = [run for run in found["runs"] if run["processes"] not in found["fitted_on"]]
    assert others
    for run in others:
        assert set(run["processes"]) == set(SERVICES)
        predicted, _ = costs.limit(run["processes"], record["environment"]["cores"])
        assert abs(predicted - run["per_s"]) <= 0.2 * run["per_s"]
