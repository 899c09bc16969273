"""Codes of the driver become errors that say what helps."""

import ctypes

import pytest

from infer_svc.backends.errors import DeviceLost, OutOfMemory
from infer_svc.backends.libcuda import STICKY, Library
from mesh.errors import EngineError, SettingsError
from tests.infer_svc.backends.fake_gpu import FakeLibcuda


@pytest.fixture
def library() -> Library:
    fake = FakeLibcuda()
    return Library(fake, fake)


def test_success_is_no_error(library: Library) -> None:
    library.check(0, "nothing")


@pytest.mark.parametrize("code", sorted(STICKY))
def test_code_that_only_a_new_process_helps_against_is_a_lost_device(
    library: Library, code: int
) -> None:
    with pytest.raises(DeviceLost, match=rf"a copy failed: .* \({code}\)"):
        library.check(code, "a copy")


def test_code_of_memory_that_is_used_up_is_out_of_memory(library: Library) -> None:
    with pytest.raises(OutOfMemory):
        library.check(2, "a copy")


@pytest.mark.parametrize("code", [1, 400, 600, 701, 900, 999])
def test_any_other_code_is_an_engine_error_that_may_pass(library: Library, code: int) -> None:
    with pytest.raises(EngineError) as caught:
        library.check(code, "a copy")
    assert type(caught.value) is EngineError


def test_machine_without_a_driver_is_told_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "PyDLL", missing)
    with pytest.raises(SettingsError, match=r"no NVIDIA driver.*doctor --gpu"):
        Library()


def test_memory_that_is_pinned_already_is_told_from_other_failures() -> None:
    fake = FakeLibcuda()
    library = Library(fake, fake)
    assert library.register(4096, 100)
    assert not library.register(4096, 100)
    fake.fail_register = 1
    with pytest.raises(EngineError, match="pinning 100 bytes failed"):
        library.register(8192, 100)
    library.unregister(4096)
    with pytest.raises(EngineError, match="unpinning failed"):
        library.unregister(4096)
