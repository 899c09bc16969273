"""What runs a model: one small interface, one file per runtime."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from infer_svc.backends.onnxruntime import load_onnxruntime
from mesh.tensor import Tensors, TensorSpec


class Context(Protocol):
    """Runs batches one after the other; belongs to one lane."""

    def run(self, inputs: Tensors) -> Tensors:
        """Run one batch.

        Args:
            inputs: by name, already compared with the engine's inputs; C-contiguous.

        Returns:
            Outputs by name; the arrays are the caller's until the next call.

        Raises:
            EngineError: the runtime refused or failed the batch.
        """


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


Loader = Callable[[Path, int], Engine]
"""Loads a model file for runs on so many CPU threads each; raises `SettingsError`."""

BACKENDS: dict[str, Loader] = {"onnxruntime": load_onnxruntime}
