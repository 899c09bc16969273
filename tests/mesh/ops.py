"""Ops that tests make up, for the hosts that run them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from mesh.errors import InvalidInput
from mesh.op import Op, Outcome, RepositoryPath
from mesh.tensor import Tensors, TensorSpec

X = TensorSpec("x", "FP32", (1, 2))


class FakeOp:
    """Base: FP32[1,2] `x` to `x`."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Tensor `x`."""
        return (X,)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Tensor `x`."""
        return (X,)

    def __call__(self, tensors: Tensors, context: Tensors) -> Outcome:
        """Return what came."""
        return Outcome(tensors, context)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Scale(FakeOp):
    """Multiplies, and leaves the factor for the next op of the item."""

    factor: float = 2.0
    labels: RepositoryPath | None = None

    def __call__(self, tensors: Tensors, context: Tensors) -> Outcome:
        """Multiply."""
        product = tensors["x"].astype(np.float32) * np.float32(self.factor)
        return Outcome({"x": product}, {"factor": np.array([self.factor])})


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Fail(FakeOp):
    """Raises."""

    kind: str = "InvalidInput"

    def __call__(self, tensors: Tensors, context: Tensors) -> Outcome:
        """Raise the error of that name."""
        errors: dict[str, Exception] = {
            "InvalidInput": InvalidInput("cannot be used"),
            "ValueError": ValueError("secret"),
            "StopIteration": StopIteration("secret"),
        }
        raise errors[self.kind]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Gate(FakeOp):
    """Notes each item and waits until the test opens the gate."""

    opened: ClassVar[threading.Event] = threading.Event()
    began: ClassVar[threading.Semaphore] = threading.Semaphore(0)
    seen: ClassVar[list[float]] = []

    def __call__(self, tensors: Tensors, context: Tensors) -> Outcome:
        """Wait at the gate."""
        self.seen.append(float(tensors["x"].astype(np.float64).ravel()[0]))
        self.began.release()
        assert self.opened.wait(10)
        return Outcome(tensors)

    @classmethod
    @contextmanager
    def closed(cls) -> Iterator[None]:
        """Close the gate for a test, and open it in the end."""
        cls.opened.clear()
        cls.seen.clear()
        while cls.began.acquire(blocking=False):
            pass
        try:
            yield
        finally:
            cls.opened.set()


OPS: dict[str, type[Op]] = {"scale": Scale, "fail": Fail, "gate": Gate}
