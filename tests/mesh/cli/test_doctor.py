"""`trtmesh doctor` as people run it, with and without a GPU's driver on the machine."""

import os
import subprocess
import sys
from pathlib import Path

from tests.mesh.cli.libcuda import make_libcuda


def doctor(*arguments: str, **variables: str) -> tuple[int, list[str]]:
    """Run it, and return its exit status and its lines."""
    done = subprocess.run(
        [sys.executable, "-m", "mesh.cli", "doctor", *arguments],
        env=os.environ | variables, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_machine_that_serves_on_a_cpu_is_well() -> None:
    status, lines = doctor()
    assert status == 0
    assert [line.split()[0] for line in lines[:3]] == ["ok"] * 3
    assert not any("GPU" in line for line in lines)


def test_machine_without_a_driver_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("no library")
    status, lines = doctor("--gpu", LD_LIBRARY_PATH=str(tmp_path))
    assert status == 1
    assert any(line.startswith("missing  NVIDIA driver: ") for line in lines)


def test_gpus_are_listed_as_they_are_visible(tmp_path: Path) -> None:
    make_libcuda(tmp_path)
    library = {"LD_LIBRARY_PATH": str(tmp_path)}
    _, lines = doctor("--gpu", CUDA_VISIBLE_DEVICES="0,1", **library)
    assert any(line.startswith("ok       NVIDIA driver for CUDA 12.8") for line in lines)
    assert any(
        line.startswith("ok       GPU 1 with CUDA_VISIBLE_DEVICES=0,1: NVIDIA H100 MIG")
        for line in lines
    )
    status, lines = doctor("--gpu", CUDA_VISIBLE_DEVICES="", **library)
    assert status == 1
    assert any(line.startswith("missing  no GPU is visible with CUDA_VIS") for line in lines)


def test_tensorrt_is_not_loaded_into_the_command() -> None:
    program = (
        "import sys; from mesh.cli import main; main(['doctor', '--gpu']);"
        "print([name for name in sys.modules if 'tensorrt' in name or name == 'onnxruntime'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
