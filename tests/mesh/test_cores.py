"""Workers are counted by the cores that a process may use."""

import os
from pathlib import Path

import pytest

from mesh.cores import MAX_WORKERS, cores, workers


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_a_limit_the_cores_are_those_of_the_affinity(tmp_path: Path) -> None:
    able = len(os.sched_getaffinity(0))
    assert cores(tmp_path / "nothing") == able
    assert cores(write(tmp_path, cpu_DOT_max="max 100000\n")) == able
    v1 = {"cpu__cpu.cfs_quota_us": "-1\n", "cpu__cpu.cfs_period_us": "100000\n"}
    assert cores(write(tmp_path / "v1", **v1)) == able


@pytest.mark.parametrize("quota", [5000, 50000, 100000])
def test_limit_of_the_container_counts_and_a_part_of_a_core_is_one(
    quota: int, tmp_path: Path
) -> None:
    assert cores(write(tmp_path / "v2", cpu_DOT_max=f"{quota} 100000\n")) == 1
    v1 = {"cpu__cpu.cfs_quota_us": f"{quota}\n", "cpu__cpu.cfs_period_us": "100000\n"}
    assert cores(write(tmp_path / "v1", **v1)) == 1


def test_limit_above_the_affinity_adds_no_cores(tmp_path: Path) -> None:
    root = write(tmp_path, cpu_DOT_max="100000000 100000\n")
    assert cores(root) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("count", "found"),
    [
        (1, (1, 1, 1, 1)),
        (2, (2, 1, 1, 1)),
        (4, (3, 1, 1, 1)),
        (8, (5, 2, 1, 1)),
        (16, (10, 4, 1, 1)),
        (64, (MAX_WORKERS, 16, 6, 1)),
    ],
)
def test_cores_are_shared_as_the_work_is(count: int, found: tuple[int, ...]) -> None:
    services = ("preprocess", "gateway", "postprocess", "infer")
    assert tuple(workers(service, 0, count) for service in services) == found


def test_given_number_wins() -> None:
    assert workers("gateway", 7, 1) == 7
    assert workers("preprocess", 200, 1) == 200
