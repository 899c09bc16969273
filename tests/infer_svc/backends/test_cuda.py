"""Memory, streams and errors of one GPU."""

import sys
import threading

import numpy as np
import pytest

from infer_svc.backends.cuda import Buffer, Device, Stream, device, load_driver
from infer_svc.backends.libcuda import Library
from mesh.errors import EngineError, SettingsError


def test_without_pycuda_the_fix_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(SettingsError, match=r"no PyCUDA: .*; see `trtmesh doctor --gpu`"):
        load_driver()


@pytest.mark.gpu
def test_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(SettingsError, match="GPU 99 cannot be used"):
        Device(99, load_driver(), Library())


@pytest.mark.gpu
def test_what_is_uploaded_comes_back() -> None:
    gpu = device(0)
    assert gpu.compute_capability >= (7, 5)
    with gpu.current():
        buffer, stream = Buffer(gpu, 1000, np.dtype(np.float32)), Stream(gpu.driver)
        sent = np.arange(600, dtype=np.float32).reshape(20, 30)
        buffer.view((20, 30))[...] = sent
        buffer.upload(sent.nbytes, stream.handle)
        stream.wait()
        buffer.view((20, 30))[...] = 0
        buffer.download(sent.nbytes, stream.handle)
        stream.wait()
        np.testing.assert_array_equal(buffer.view((20, 30)), sent)
        buffer.free()


@pytest.mark.gpu
def test_error_of_the_driver_is_an_engine_error_and_the_thread_goes_on() -> None:
    gpu = device(0)
    with pytest.raises(EngineError, match="the GPU failed"), gpu.current():
        gpu.driver.mem_alloc(2**50)
    with gpu.current():
        gpu.driver.mem_alloc(1024).free()


@pytest.mark.gpu
def test_threads_share_the_context_and_leave_none_behind() -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(100):
                with device(0).current():
                    device(0).driver.mem_alloc(4096).free()
        except BaseException as err:  # noqa: BLE001 told to the test's thread
            failed.append(err)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
