"""The driver is asked by ctypes; a compiled stand-in answers as NVIDIA's does."""

from pathlib import Path

import pytest

from mesh.cli.cuda_driver import Driver, Gpu
from mesh.errors import EngineError, SettingsError
from tests.mesh.cli.libcuda import make_libcuda


def test_gpus_are_listed_with_memory_capability_and_uuid(tmp_path: Path) -> None:
    driver = Driver(str(make_libcuda(tmp_path)))
    assert driver.version() == (12, 8)
    assert driver.gpus() == [
        Gpu("NVIDIA T4", 15 * 2**30, (7, 5), "GPU-a0a0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a0a0"),
        Gpu(
            "NVIDIA H100 MIG 1g.10gb", 80 * 2**30, (9, 0),
            "MIG-a1a1a1a1-a1a1-a1a1-a1a1-a1a1a1a1a1a1",
        ),
    ]  # fmt: skip


def test_machine_without_a_visible_gpu_has_a_driver_and_none(tmp_path: Path) -> None:
    driver = Driver(str(make_libcuda(tmp_path, init=100)))
    assert driver.gpus() == []
    assert driver.version() == (12, 8)


def test_machine_without_a_driver_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nothing\.so: cannot open shared object file"):
        Driver(str(tmp_path / "nothing.so"))


@pytest.mark.parametrize(
    ("code", "text"), [(999, "999, unknown error"), (777, "777, unknown"), (3, "3, system not yet")]
)
def test_driver_that_does_not_start_is_told_with_its_reason(
    code: int, text: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=f"CUDA error {text}"):
        Driver(str(make_libcuda(tmp_path, init=code)))
