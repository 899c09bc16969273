"""Pinned memory for numbers on their way to a GPU, used in turn."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from infer_svc.backends.cuda import Device, Stream, address_of
from mesh.tensor import Array

NUMBER = np.dtype(np.int64)


@dataclass(eq=False)
class Stage:
    """One piece, and the event after which it may be written anew."""

    numbers: Array
    event: Any
    used: bool = False


class Staging:
    """Stages, all of one size. The GPU's context is current in every call.

    Args:
        gpu: that reads them.
        stream: that copies are queued on.
        stages: how many may be on their way.
        numbers: INT64 of each.
    """

    def __init__(self, gpu: Device, stream: Stream, stages: int, numbers: int) -> None:
        self._gpu = gpu
        self._stream: Any = stream
        self._stages = deque(self._made(numbers) for _ in range(stages))

    def next(self) -> Stage:
        """Return the stage that was used longest ago, once nothing is copied from it any more."""
        stage = self._stages[0]
        self._stages.rotate(-1)
        if stage.used:
            stage.event.synchronize()
        return stage

    def upload(self, stage: Stage, begin: int, count: int, target: int) -> None:
        """Queue the copy of some numbers of a stage to an address on the GPU."""
        source = address_of(stage.numbers) + begin * NUMBER.itemsize
        size = count * NUMBER.itemsize
        self._gpu.library.to_device(target, source, size, self._stream.handle)

    def mark(self, stage: Stage) -> None:
        """Note that all copies of a stage are queued."""
        stage.used = True
        stage.event.record(self._stream.pycuda)

    def free(self) -> None:
        """Give the memory back; nothing is copied any more."""
        while self._stages:
            self._gpu.count(pinned_bytes=-self._stages.pop().numbers.nbytes)
        # No reference may stay: PyCUDA ends its objects only where the context is current.
        self._stream = None

    def _made(self, numbers: int) -> Stage:
        driver = self._gpu.driver
        event = driver.Event(driver.event_flags.BLOCKING_SYNC)
        return Stage(pinned(self._gpu, numbers, NUMBER), event)


def pinned(gpu: Device, elements: int, dtype: np.dtype[Any]) -> Array:
    """Return pinned memory, which goes with its last reference, where the context is current."""
    driver = gpu.driver
    memory: Array = driver.pagelocked_empty(
        elements, dtype, mem_flags=driver.host_alloc_flags.PORTABLE
    )
    gpu.count(pinned_bytes=memory.nbytes)
    return memory
