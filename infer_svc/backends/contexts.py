"""Execution contexts of one engine, each for one shape; they never run at the same time."""

import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from infer_svc.backends.cuda import Block, Device, Stream
from infer_svc.backends.machine import Machine
from infer_svc.backends.trt_api import Api
from mesh.errors import EngineError

NOTHING: Mapping[str, int] = {}


@dataclass(eq=False)
class Shaped:
    """One shape, and the context that runs nothing else."""

    profile: int
    shapes: Mapping[str, tuple[int, ...]]
    addresses: Mapping[str, int]
    copied: Mapping[str, int]
    graphs: bool
    context: Any = None
    config: Any = None
    """Lives as long as the context."""
    graph: int = 0
    """That was captured of it; 0: none."""


class Contexts:
    """Contexts that share a block of memory. The GPU's context is current in every call.

    Args:
        api: of TensorRT.
        gpu: that runs them.
        engine: TensorRT's.
        cache: of compiled kernels; None: the flavour has none.
        lock: held while contexts of the engine are made or ended.
        stream: that all runs are queued on.
        machine: how they are run.
    """

    def __init__(
        self,
        api: Api,
        gpu: Device,
        engine: Any,
        cache: Any,
        lock: threading.Lock,
        stream: Stream,
        machine: Machine,
    ) -> None:
        self._api, self._gpu, self._engine, self._cache = api, gpu, engine, cache
        self._lock, self._machine = lock, machine
        self._stream: Any = stream
        self._names = [tensor.name for tensor in api.tensors(engine)]
        self._all: dict[Hashable, Shaped] = {}
        self._last: Hashable = None
        self._block: Block | None = None

    def lengths(self, name: str) -> list[int]:
        """Return the largest second size of an input in each profile."""
        return [
            self._engine.get_tensor_profile_shape(name, index)[2][1]
            for index in range(self._engine.num_optimization_profiles)
        ]

    def make(
        self,
        key: Hashable,
        profile: int,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
        copied: Mapping[str, int] = NOTHING,
        *,
        graphs: bool = True,
    ) -> None:
        """Make the context of a shape.

        Args:
            key: its name.
            profile: that has room for it.
            shapes: of the inputs.
            addresses: of all tensors.
            copied: bytes that each run copies from the output `<name>_out` to the input of a name.
            graphs: whether its runs become CUDA graphs, if that is wanted at all.

        Raises:
            EngineError: TensorRT refuses it, or there is no memory.
        """
        if self._block is None:
            self._block = Block(self._gpu, self._api.memory_bytes(self._engine))
        shaped = Shaped(profile, shapes, addresses, copied, graphs and self._machine.graphs)
        self._open(shaped)
        self._all[key] = shaped

    def run(self, key: Hashable, addresses: Mapping[str, int] | None = None) -> None:
        """Queue a run.

        Args:
            key: of the shape.
            addresses: of all tensors; None: they are where they were.

        Raises:
            EngineError: TensorRT refuses it.
        """
        self._last = key
        shaped = self._all[key]
        if addresses is not None:
            self._bind(shaped, addresses)
        if shaped.graph:
            self._gpu.library.launch(shaped.graph, self._stream.handle)
        else:
            self._execute(shaped)

    def capture(self) -> None:
        """Record the shapes that were run as graphs, where TensorRT does not by itself."""
        if self._api.captures_graphs:
            return
        for shaped in self._all.values():
            if shaped.graphs:
                shaped.graph = self._gpu.record(
                    self._stream.handle, partial(self._execute, shaped), str(shaped.shapes)
                )

    def rebuild(self) -> None:
        """Make the context anew that ran last.

        Raises:
            EngineError: it cannot be done.
        """
        if (shaped := self._all.get(self._last)) is not None:
            self._machine.faults.at("context")
            self._end(shaped)
            self._open(shaped)

    def free(self) -> None:
        """End all of them."""
        while self._all:
            self._end(self._all.popitem()[1])
        if self._block is not None:
            self._block.free()
        # No reference may stay: PyCUDA ends its objects only where the context is current.
        self._block = self._engine = self._cache = self._stream = None

    def _open(self, shaped: Shaped) -> None:
        assert self._block is not None
        with self._lock:
            shaped.context, shaped.config = self._api.context(
                self._engine, self._cache, kernels=self._machine.kernels, graphs=shaped.graphs,
                memory=(self._block.address, self._block.size),
            )  # fmt: skip
        self._gpu.count(contexts=1)
        context, stream = shaped.context, self._stream
        if shaped.profile and not context.set_optimization_profile_async(
            shaped.profile, stream.handle
        ):
            raise EngineError(
                f"profile {shaped.profile} cannot be chosen: {self._api.lines.text()}"
            )
        stream.wait()
        for name, shape in shaped.shapes.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(f"input {name!r} cannot have the shape {list(shape)}")
        self._bind(shaped, shaped.addresses)

    def _bind(self, shaped: Shaped, addresses: Mapping[str, int]) -> None:
        for name in self._names:
            if not shaped.context.set_tensor_address(name, addresses[name]):
                raise EngineError(f"tensor {name!r} cannot be at {addresses[name]:#x}")
        shaped.addresses = addresses

    def _execute(self, shaped: Shaped) -> None:
        if not shaped.context.execute_async_v3(self._stream.handle):
            raise EngineError(f"TensorRT refused a run: {self._api.lines.text()}")
        at = shaped.addresses
        for name, size in shaped.copied.items():
            self._gpu.library.copy(at[name], at[f"{name}_out"], size, self._stream.handle)

    def _end(self, shaped: Shaped) -> None:
        self._gpu.count(contexts=-1)
        if shaped.graph:
            self._gpu.library.destroy(shaped.graph)
        shaped.graph = 0
        # In this order: a context uses its config until it ends.
        shaped.context = None
        shaped.config = None
