"""Each thing that a GPU needs is found, or told with the way to get it."""

import resource
from pathlib import Path

import pytest

from mesh.cli import gpu_checks
from mesh.cli.checks import Finding
from mesh.cli.cuda_driver import Gpu
from tests.mesh.cli.libcuda import make_libcuda

H200 = Gpu("NVIDIA H200", 141 * 2**30, (9, 0), "GPU-1")
L4 = Gpu("NVIDIA L4", 24 * 2**30, (8, 9), "GPU-2")


def test_gpus_that_are_visible_are_lines(tmp_path: Path) -> None:
    lines, found = gpu_checks.gpus("MIG-a1", str(make_libcuda(tmp_path)))
    assert [gpu.capability for gpu in found] == [(7, 5), (9, 0)]
    assert lines == [
        Finding("ok", "NVIDIA driver for CUDA 12.8"),
        Finding(
            "ok", "GPU 0 with CUDA_VISIBLE_DEVICES=MIG-a1: NVIDIA T4, 15.0 GiB, "
            "compute capability 7.5, GPU-a0a0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a0a0",
        ),
        Finding(
            "ok", "GPU 1 with CUDA_VISIBLE_DEVICES=MIG-a1: NVIDIA H100 MIG 1g.10gb, 80.0 GiB, "
            "compute capability 9.0, MIG-a1a1a1a1-a1a1-a1a1-a1a1-a1a1a1a1a1a1",
        ),
    ]  # fmt: skip


def test_gpu_that_is_too_old_is_told(tmp_path: Path) -> None:
    lines, _ = gpu_checks.gpus(None, str(make_libcuda(tmp_path, capability=6)))
    assert [line.state for line in lines] == ["ok", "missing", "ok"]
    assert lines[1].text.endswith("is too old")


@pytest.mark.parametrize(
    ("visible", "text", "fix"),
    [
        ("7", "no GPU is visible with CUDA_VISIBLE_DEVICES=7", "name one by index, GPU-... or MIG"),
        (None, "no GPU is visible", "a container needs `--gpus all`"),
    ],
)
def test_driver_without_a_visible_gpu_is_told(
    visible: str | None, text: str, fix: str, tmp_path: Path
) -> None:
    lines, found = gpu_checks.gpus(visible, str(make_libcuda(tmp_path, init=100)))
    assert found == []
    assert (lines[1].state, lines[1].text) == ("missing", text)
    assert fix in lines[1].fix


def test_machine_without_a_driver_is_told_how_to_get_one(tmp_path: Path) -> None:
    (line,), found = gpu_checks.gpus(None, str(tmp_path / "none.so"))
    assert (line.state, found) == ("missing", [])
    assert "needs NVIDIA's driver" in line.fix
    (line,), _ = gpu_checks.gpus(None, str(make_libcuda(tmp_path, init=999)))
    assert line.text == "NVIDIA driver: CUDA error 999, unknown error"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, for the processes that the checks start."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def package(site: Path, name: str, text: str, driver: str = "") -> str:
    (site / name).mkdir()
    (site / name / "__init__.py").write_text(text)
    (site / name / "driver.py").write_text(driver)
    return name


def test_pycuda_is_loaded_with_its_driver(site: Path) -> None:
    name = package(site, "good_cuda", "VERSION_TEXT = '2026.1'\n")
    assert gpu_checks.pycuda(name) == Finding("ok", "PyCUDA 2026.1")


def test_pycuda_that_lacks_only_the_driver_needs_no_build(site: Path) -> None:
    error = "raise ImportError('libcuda.so.1: cannot open shared object file')"
    found = gpu_checks.pycuda(package(site, "lone_cuda", "", error))
    assert (found.state, found.fix) == ("missing", "it waits for NVIDIA's driver")


def test_pycuda_that_is_not_there_comes_with_the_command() -> None:
    found = gpu_checks.pycuda("no_such_cuda")
    assert found.state == "missing"
    assert "No module named 'no_such_cuda'" in found.text
    assert "pip install 'pycuda>=2026.1'" in found.fix


def test_command_that_builds_pycuda_is_that_of_the_first_place_with_headers(
    tmp_path: Path,
) -> None:
    full, small = tmp_path / "full", tmp_path / "small"
    for folder, headers in ((full, ("cuda.h", "curand.h")), (small, ("cuda.h",))):
        (folder / "include").mkdir(parents=True)
        for header in headers:
            (folder / "include" / header).touch()
    build = gpu_checks.how_to_build
    command = f"PATH={full}/bin:$PATH pip install 'pycuda>=2026.1'"
    assert build([tmp_path / "none", full, small], "g++") == command
    assert build([full], None) == f"apt install g++; {command}"
    assert build([small], "g++") == (
        "echo 'CUDA_ENABLE_CURAND = False' >> ~/.aksetup-defaults.py; "
        f"PATH={small}/bin:$PATH pip install 'pycuda>=2026.1'"
    )
    assert build([tmp_path / "none"], "g++").startswith("install CUDA's headers (")


def tensorrt(line: str) -> str:
    return f"print({line!r})"


@pytest.mark.parametrize(
    ("said", "gpus", "state"),
    [
        pytest.param("tensorrt 10.12.0.36", [H200], "ok", id="oldest"),
        pytest.param("tensorrt 11.4.0.106", [L4], "ok", id="newest"),
        pytest.param("tensorrt 10.9.0.34", [L4], "missing", id="too_old"),
        pytest.param("tensorrt 8.6.1.post1", [L4], "missing", id="much_too_old"),
        pytest.param("tensorrt_rtx 1.5.0.114", [H200], "ok", id="rtx_on_hopper"),
        pytest.param("tensorrt_rtx 1.7.1.116", [L4, H200], "warn", id="new_rtx_on_hopper"),
        pytest.param("tensorrt_rtx 1.7.1.116", [L4], "ok", id="new_rtx"),
    ],
)
def test_tensorrt_is_compared_with_what_runs_on_these_gpus(
    said: str, gpus: list[Gpu], state: str
) -> None:
    found = gpu_checks.tensorrt(gpus, tensorrt(said))
    assert found.state == state
    assert found.text.startswith(said)
    assert bool(found.fix) == (state != "ok")


def test_tensorrt_that_is_installed_is_found() -> None:
    assert gpu_checks.tensorrt([]).text.startswith("tensorrt_rtx 1.")


def test_tensorrt_that_is_not_there_comes_with_the_command() -> None:
    program = gpu_checks.TENSORRT_PROGRAM.replace(repr(gpu_checks.MODULES), "['no_such_trt']")
    found = gpu_checks.tensorrt([], program)
    assert (found.state, found.text) == ("missing", "TensorRT: No module named 'no_such_trt'")
    assert "pip install 'trtmesh[tensorrt]' or 'trtmesh[tensorrt-rtx]'" in found.fix


def test_modules_are_those_that_the_backend_tries() -> None:
    from infer_svc.backends.trt_api import MODULES

    assert gpu_checks.MODULES == MODULES


def test_onnx_is_found_or_warned_of() -> None:
    assert gpu_checks.onnx().state == "ok"
    assert gpu_checks.onnx("no-such-onnx").state == "warn"


def test_locked_memory_is_compared_with_an_arena() -> None:
    assert gpu_checks.locked_memory(resource.RLIM_INFINITY).text.endswith("unlimited")
    assert gpu_checks.locked_memory(64 * 2**20).state == "ok"
    found = gpu_checks.locked_memory(8 * 2**20)
    assert found.state == "warn"
    assert "8 MB, an arena wants 48" in found.text
