import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from infer_svc.backends.tensorrt import tensorrt_api
from infer_svc.build.cache import EngineCache
from infer_svc.build.manifest import target_of
from infer_svc.build.order import Order
from infer_svc.build.recipe import Recipe
from infer_svc.build.report import Report
from infer_svc.build.worker import logged, visible
from mesh.errors import EngineError, SettingsError
from tests.infer_svc.build.orders import order, product, unbuildable

WORDS = [sys.executable, "-m", "infer_svc.build", "order"]


def start(of: Order) -> "subprocess.Popen[str]":
    """Start the real builder with an order."""
    process = subprocess.Popen(
        WORDS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(of.to_json())
    process.stdin.close()
    process.stdin = None
    return process


def finish(process: "subprocess.Popen[str]") -> tuple[int, list[dict[str, object]]]:
    output, _ = process.communicate(timeout=60)
    return process.returncode, [json.loads(line) for line in output.splitlines()]


def work(of: Order) -> tuple[int, list[dict[str, object]]]:
    return finish(start(of))


def folder_of(line: dict[str, object]) -> Path:
    return Path(str(line["folder"]))


def test_engine_is_built_into_the_cache_and_found_the_second_time(tmp_path: Path) -> None:
    made = order(tmp_path)
    status, lines = work(made)
    assert status == 0
    assert lines[0]["phase"] == "building"
    assert lines[-1]["result"] == "built"
    folder = folder_of(lines[-1])
    assert sorted(path.name for path in folder.iterdir()) == [
        "build.log", "manifest.json", "model.plan",
    ]  # fmt: skip
    assert "a plan of" in (folder / "build.log").read_text()
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
    changed = (folder / "model.plan").stat().st_mtime_ns
    status, lines = work(made)
    assert (status, len(lines), lines[-1]["result"]) == (0, 1, "found")
    assert (folder / "model.plan").stat().st_mtime_ns == changed


def test_engine_in_fp16_has_its_report_and_not_the_converted_model(
    tmp_path: Path, models: Path
) -> None:
    content = (models / "digits-classify/1/model.onnx").read_bytes()
    made = order(tmp_path, content, recipe=Recipe("fp16"))
    made = Order(
        **vars(made) | {"profiles": [{"pixels": ((1, 32, 32, 3),) + ((4, 32, 32, 3),) * 2}]}
    )
    status, lines = work(made)
    assert status == 0
    folder = folder_of(lines[-1])
    assert sorted(path.name for path in folder.iterdir()) == [
        "build.log", "manifest.json", "model.plan", "report.json",
    ]  # fmt: skip
    report = Report.from_json((folder / "report.json").read_text())
    assert (report.precision, report.holds) == ("fp16", True)


def test_engine_that_would_lose_too_much_is_refused_with_the_report(
    tmp_path: Path, models: Path
) -> None:
    content = (models / "digits-classify/1/model.onnx").read_bytes()
    status, lines = work(order(tmp_path, content, recipe=Recipe("fp16", tolerance=1e-9)))
    assert (status, lines[-1]["result"]) == (3, "refused")
    error = str(lines[-1]["error"])
    assert "output 'logits' has the error" in error
    assert "layer, worst first" in error
    log = next((tmp_path / "engines/failed").iterdir())
    assert str(log) in error
    assert "output 'logits' has the error" in log.read_text()


def test_engine_that_cannot_be_built_leaves_tensorrts_words_in_a_log(tmp_path: Path) -> None:
    status, lines = work(order(tmp_path, unbuildable()))
    assert (status, lines[-1]["result"]) == (1, "failed")
    log = next((tmp_path / "engines/failed").iterdir())
    assert str(log) in str(lines[-1]["error"])
    assert "cannot build" in log.read_text()
    assert list((tmp_path / "engines/work").iterdir()) == []


def test_plugin_that_this_flavour_cannot_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.so").touch()
    status, lines = work(order(tmp_path, plugins=(tmp_path / "p.so",)))
    assert (status, lines[-1]["result"]) == (3, "refused")
    assert "p.so" in str(lines[-1]["error"])


def test_of_two_builders_one_builds_and_the_other_takes_its_engine(tmp_path: Path) -> None:
    made = order(tmp_path)
    processes = [start(made) for _ in range(3)]
    outcomes = [finish(process) for process in processes]
    assert [status for status, _ in outcomes] == [0, 0, 0]
    results = sorted(str(lines[-1]["result"]) for _, lines in outcomes)
    assert results == ["built", "found", "found"]
    assert len({str(lines[-1]["folder"]) for _, lines in outcomes}) == 1


def test_builder_that_waits_takes_over_from_one_that_is_killed(tmp_path: Path) -> None:
    made = order(tmp_path)
    cache = EngineCache(made.cache)
    cache.open()
    first = start(made)
    assert first.stdout is not None
    first.stdout.readline()  # it has the lock, or is done: both are survived
    second = start(made)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    status, lines = finish(second)
    assert status == 0
    assert folder_of(lines[-1]).joinpath("model.plan").exists()
    assert list((made.cache / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("variable", "gpu", "wanted"),
    [
        (None, 0, "0"), (None, 2, "2"), ("3", 0, "3"), ("GPU-a, MIG-b", 1, "MIG-b"),
    ],
)  # fmt: skip
def test_only_the_gpu_that_is_meant_is_visible(variable: str | None, gpu: int, wanted: str) -> None:
    assert visible(variable, gpu) == wanted


@pytest.mark.parametrize("variable", ["", "0,1"], ids=["none", "two"])
def test_gpu_that_is_not_visible_is_refused(variable: str) -> None:
    with pytest.raises(SettingsError, match=r"GPU 2 came, CUDA_VISIBLE_DEVICES shows [02] from 0"):
        visible(variable, 2)


def test_gpu_below_0_is_refused() -> None:
    with pytest.raises(SettingsError, match="GPU -1 came, wanted a number from 0"):
        visible("0,1", -1)


def test_file_in_the_way_of_a_build_is_told_in_one_line(tmp_path: Path) -> None:
    wanted = order(tmp_path)
    cache = EngineCache(wanted.cache)
    cache.open()
    key = wanted.key(target_of(tensorrt_api(), lambda: (9, 0)))
    (cache.root / "locks" / f"{key.digest}.lock").mkdir()
    status, lines = work(wanted)
    assert (status, lines[-1]["result"]) == (3, "refused")
    assert "cannot be used: [Errno 21] Is a directory" in str(lines[-1]["error"])


def test_whatever_is_written_goes_to_the_log_with_the_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "build.log"
    with pytest.raises(EngineError):
        with logged(path):
            os.write(1, b"one\n")
            os.write(2, b"two\n")
            raise EngineError("three")
    os.write(1, b"four\n")
    assert path.read_text() == "one\ntwo\n"
    assert capfd.readouterr() == ("four\n", "")


def test_order_with_calibration_data_is_built(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.ones((4, 4), np.float32))
    recipe = Recipe("fp16", calibration=tmp_path / "rows.npz")
    status, lines = work(order(tmp_path, recipe=recipe))
    assert (status, lines[-1]["result"]) == (0, "built")


def test_engine_in_int8_has_its_calibration(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(0).random((64, 4), np.float32))
    recipe = Recipe("int8", calibration=tmp_path / "rows.npz")
    status, lines = work(order(tmp_path, product(), recipe=recipe))
    assert (status, lines[-1]["result"]) == (0, "built")
    names = {path.name for path in folder_of(lines[-1]).iterdir()}
    assert {"report.json", "ranges.json"} <= names


def test_library_that_prints_does_not_stand_between_the_lines(tmp_path: Path) -> None:
    source = """
import os, sys
from infer_svc.build import worker
from infer_svc.build.__main__ import main
load = worker.tensorrt_api
def loud():
    os.write(1, b"hello")
    return load()
worker.tensorrt_api = loud
sys.argv[1:] = ["order"]
raise SystemExit(main())
"""
    ran = subprocess.run(
        [sys.executable, "-c", source], input=order(tmp_path).to_json(), capture_output=True,
        text=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert (ran.returncode, lines[-1]["result"]) == (0, "built")
    assert "hello" in ran.stderr
