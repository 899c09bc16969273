"""The engine alone: a thread for each context that copies, runs and copies back, and nothing else.

It shares TensorRT's plan with the mesh and no code of its lanes.
"""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from infer_svc.backends.cuda import Device
from infer_svc.backends.trt_api import Api
from mesh.tensor import Tensors


class Bare:
    """Full batches that lie in pinned memory, on so many contexts at once."""

    def __init__(self, api: Api, gpu: Device, plan: Path, batch: Tensors, contexts: int) -> None:
        self._gpu = gpu
        self._rows = len(next(iter(batch.values())))
        with gpu.current():
            self._engine = api.load(plan.read_bytes())
            self._cache = api.runtime_cache(self._engine)
            self._contexts = [
                _Context(api, gpu, self._engine, self._cache, batch) for _ in range(contexts)
            ]

    def rate(self, contexts: int, seconds: float) -> float:
        """Return rows per second of the first so many contexts."""
        batches = [0] * contexts
        end = time.perf_counter() + seconds

        def work(index: int) -> None:
            with self._gpu.current():
                while time.perf_counter() < end:
                    self._contexts[index].run()
                    batches[index] += 1

        threads = [threading.Thread(target=work, args=(index,)) for index in range(contexts)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self._rows * sum(batches) / (time.perf_counter() - began)

    def close(self) -> None:
        """Free all of it."""
        with self._gpu.current():
            self._contexts.clear()
            self._cache = self._engine = None


class _Context:
    def __init__(self, api: Api, gpu: Device, engine: Any, cache: Any, batch: Tensors) -> None:
        driver = gpu.driver
        self._driver = driver
        self._config: Any
        self._context, self._config = api.context(engine, cache)
        self._stream = driver.Stream(1)
        self._done = driver.Event(driver.event_flags.BLOCKING_SYNC)
        self._pairs: dict[bool, list[tuple[Any, Any]]] = {True: [], False: []}
        for name, array in batch.items():
            self._context.set_input_shape(name, array.shape)
        for tensor in api.tensors(engine):
            shape = tuple(self._context.get_tensor_shape(tensor.name))
            host = driver.pagelocked_empty(shape, np.dtype(tensor.dtype))
            device = driver.mem_alloc(host.nbytes)
            if tensor.is_input:
                host[...] = batch[tensor.name]
            self._context.set_tensor_address(tensor.name, int(device))
            self._pairs[tensor.is_input].append((host, device))
        for _ in range(3):
            self.run()

    def run(self) -> None:
        for host, device in self._pairs[True]:
            self._driver.memcpy_htod_async(device, host, self._stream)
        if not self._context.execute_async_v3(int(self._stream.handle)):
            raise RuntimeError("TensorRT refused the batch")
        for host, device in self._pairs[False]:
            self._driver.memcpy_dtoh_async(host, device, self._stream)
        self._done.record(self._stream)
        self._done.synchronize()
