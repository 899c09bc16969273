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
        "client_cpu_ms": 0.2,
        "busiest_cores": {"gateway": 1, "preprocess": 1.25, "infer": 1.5, "postprocess": 1},
        "runs": [
            {
                "per_s": per_s,
                "cpu_ms": {"gateway": 0.5, "preprocess": taken, "infer": 0.3, "postprocess": 0.2},
            }
            for per_s, taken in ((1250, 1), (2500, 2))
        ],
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
        read_costs(write_figures(tmp_path / "f.json", runs=[]), "bench", "shared")
    with pytest.raises(NotFound):
        read_costs(write_figures(tmp_path / "f.json"), "other", "shared")


def test_request_takes_more_the_busier_the_machine_is(tmp_path: Path) -> None:
    costs, _ = read_costs(write_figures(tmp_path / "f.json"), "bench", "shared")
    assert costs.busy == pytest.approx((1250 * 0.0022, 2500 * 0.0032))
    one = {"gateway": 9, "preprocess": 1, "infer": 9, "postprocess": 9}
    assert costs.limit(one, 100)[0] == pytest.approx(1250)
    between = costs.limit(one | {"preprocess": 2}, 100)[0]
    assert 2 * 1.25 / 0.002 < between < 2 * 1.25 / 0.001
    rate, busy = costs.limit(one | {"preprocess": 50}, 8)
    assert busy == "cores"
    assert rate == pytest.approx(8 / 0.0032)


@pytest.mark.parametrize("path", [FIGURES, FIGURES.with_name("scaling_16_cores.json")], ids=str)
@pytest.mark.parametrize("pipeline", ["bench", "language"])
@pytest.mark.parametrize("hops", HOPS)
def test_runs_that_the_figures_were_not_fitted_on_are_predicted_within_a_fifth(
    path: Path, pipeline: str, hops: str
) -> None:
    """Of the committed records, with the code of today."""
    record = json.loads(path.read_text())
    found = record["figures"][pipeline][hops]
    costs, _ = read_costs(path, pipeline, hops)
    others = [run for run in found["runs"] if run["processes"] not in found["fitted_on"]]
    assert others
    for run in others:
        assert set(run["processes"]) == set(SERVICES)
        predicted, _ = costs.limit(run["processes"], record["environment"]["cores"])
        assert abs(predicted - run["per_s"]) <= 0.2 * run["per_s"]
