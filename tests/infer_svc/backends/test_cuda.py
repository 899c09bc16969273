"""Memory, streams and errors of one GPU."""

import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

from infer_svc.backends.cuda import Buffer, Device, Stream, device, load_driver
from infer_svc.backends.errors import OutOfMemory
from infer_svc.backends.libcuda import Library
from mesh.errors import EngineError, SettingsError
from tests.infer_svc.backends.fake_gpu import fake_device


def test_without_pycuda_the_fix_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(SettingsError, match=r"no PyCUDA: .*; see `trtmesh doctor --gpu`"):
        load_driver()


def test_memory_that_is_used_up_is_told_from_other_errors_of_the_driver() -> None:
    gpu, driver, _ = fake_device()
    for error in (MemoryError("Python's"), driver.MemoryError("PyCUDA's")):
        with pytest.raises(OutOfMemory, match=str(error)), gpu.current():
            raise error
    with pytest.raises(EngineError) as caught, gpu.current():
        raise driver.Error("another")
    assert type(caught.value) is EngineError


def test_memory_that_one_gpu_pinned_is_read_by_all_and_unpinned_once() -> None:
    gpu, driver, fake = fake_device()
    other = Device(0, driver, Library(fake, fake))
    memory: Any = np.zeros(8192, np.uint8)
    for each in (gpu, other, gpu):
        each.register(memoryview(memory))
        assert each.addresses([memory])
    assert gpu.usage.pinned_bytes + other.usage.pinned_bytes == 8192
    for each in (gpu, other):
        each.unregister_all()
        assert not each.addresses([memory])
    assert fake.pinned == {}
    assert gpu.usage.pinned_bytes == 0


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
        del buffer, stream  # PyCUDA frees them only where the context is current


@pytest.mark.gpu
def test_who_waits_for_the_gpu_sleeps() -> None:
    gpu, size = device(0), 2**28
    with gpu.current():
        stream = Stream(gpu.driver)
        source, target = gpu.driver.mem_alloc(size), gpu.driver.mem_alloc(size)
        for _ in range(500):
            gpu.driver.memcpy_dtod_async(int(target), int(source), size, stream.pycuda)
        wall, cpu = time.perf_counter(), time.thread_time()
        stream.wait()
        wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
        source.free()
        target.free()
        del stream
    assert wall > 0.02  # 256 GB are moved
    assert cpu < 0.2 * wall, f"{cpu:.4f} s of CPU in {wall:.4f} s: it waits awake"


@pytest.mark.gpu
def test_error_of_the_driver_is_an_engine_error_and_the_thread_goes_on() -> None:
    gpu = device(0)
    with pytest.raises(OutOfMemory, match="the GPU has no memory"), gpu.current():
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


def test_memory_that_there_is_not_is_told_from_other_failures() -> None:
    gpu, driver, _ = fake_device()
    driver.room = 10
    with pytest.raises(OutOfMemory), gpu.current():
        driver.mem_alloc(11)
    with pytest.raises(EngineError) as caught, gpu.current():
        raise driver.Error("cuEventRecord failed")
    assert type(caught.value) is EngineError
    assert driver.current == 0
