"""What runs a model: one small interface, one file per runtime."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from infer_svc.backends.batch import RunTimes
from infer_svc.backends.machine import Machine
from infer_svc.backends.onnxruntime import load_onnxruntime
from infer_svc.backends.tensorrt import load_tensorrt
from infer_svc.config import ModelConfig
from mesh.tensor import Tensors, TensorSpec


class Context(Protocol):
    """Runs batches one after the other; belongs to one lane."""

    @property
    def times(self) -> RunTimes:
        """Of the last run."""

    def run(self, parts: Sequence[Tensors]) -> Tensors:
        """Run one batch.

        Args:
            parts: inputs of each request by name, already compared with the engine's inputs, to be
                joined along the first axis; all have the same shapes beyond it.

        Returns:
            Outputs by name; the arrays are the caller's until the next call.

        Raises:
            EngineError: the runtime refused or failed the batch; `OutOfMemory` and `DeviceLost`
                of `infer_svc.backends.errors` say what helps.
            InvalidInput: the engine has no room for a batch of these shapes.
        """

    def rebuild(self) -> None:
        """Make anew what a failure may have broken; as expensive as `Engine.open` at most.

        Raises:
            EngineError: it cannot be done.
        """

    def close(self) -> None:
        """Give back what the context holds; nothing is run after it."""


class Engine(Protocol):
    """A loaded model, shared by the lanes that run it."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs as the model file declares them, batch dimension included."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs as the model file declares them, batch dimension included."""

    def open(self) -> Context:
        """Return a context for one lane."""

    def reload(self) -> None:
        """Load the engine anew; its contexts are closed before.

        Raises:
            EngineError: it cannot be done.
        """

    def settle(self) -> None:
        """Keep what opening contexts found out, for the next process; called when all are open."""

    def close(self) -> None:
        """Give back what the engine holds; its contexts are closed before."""


Loader = Callable[[Path, ModelConfig, int | None, Machine], Engine]
"""Loads a model file as its config says, on the GPU with that number or (None) on the CPU; raises
`SettingsError` or `EngineError`."""

BACKENDS: dict[str, Loader] = {
    "onnxruntime": lambda path, _, __, machine: load_onnxruntime(
        path, machine.threads, machine.faults
    ),
    "tensorrt": lambda path, config, gpu, machine: load_tensorrt(path, config, gpu or 0, machine),
}
