"""Pinned memory in turn: what is still being copied is not written."""

import numpy as np

from infer_svc.backends.cuda import Stream
from infer_svc.backends.staging import NUMBER, Staging, pinned
from tests.infer_svc.backends.fake_gpu import fake_device


def test_stage_is_written_anew_only_when_it_was_copied() -> None:
    gpu, driver, _ = fake_device()
    with gpu.current():
        stream = Stream(gpu.driver)
        block = driver.mem_alloc(8 * 8)
        staging = Staging(gpu, stream, 2, 4)
        for turn in range(8):
            stage = staging.next()  # waits for the copies of the last but one
            stage.numbers[:] = turn
            staging.upload(stage, 1, 1, int(block) + turn * NUMBER.itemsize)
            staging.mark(stage)
        stream.wait()
        assert block._memory.view(np.int64).tolist() == list(range(8))
        staging.free()
        del stage, staging, stream
    assert driver.leaked == []
    assert gpu.usage.pinned_bytes == 0


def test_pinned_memory_is_counted() -> None:
    gpu, driver, _ = fake_device()
    with gpu.current():
        memory = pinned(gpu, 10, np.dtype(np.float16))
        assert (gpu.usage.pinned_bytes, memory.shape) == (20, (10,))
        del memory
    assert driver.leaked == []
