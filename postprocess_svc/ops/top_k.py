"""Op `top_k`: the best classes of a classifier."""

from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from mesh.errors import EngineError, InvalidInput
from mesh.op import Outcome, RepositoryPath
from mesh.tensor import Array, Tensors, TensorSpec
from postprocess_svc.ops.labels import name_classes, read_labels


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TopK:
    """The k best classes of each row, best first; of equal logits the lower class first.

    Outputs, with K = min(k, C): `scores` FP32[B, K]; `classes` INT32[B, K]; `labels` BYTES[B, K],
    empty without a labels file.
    """

    k: Annotated[int, Field(ge=1)] = 5
    """How many classes."""
    labels: RepositoryPath | None = None
    """File with the name of each class in a line."""
    apply_softmax: bool = True
    """Give probabilities over all C classes; False gives what the model gave."""
    input: str = "logits"
    """Name of the model's output tensor."""
    dtype: Literal["FP32", "FP16"] = "FP32"
    """Of the model's output tensor."""

    def __post_init__(self) -> None:
        """Read the labels, so that a file that cannot be used stops the start."""
        _ = self._names

    @cached_property
    def _names(self) -> Array:
        return read_labels(self.labels)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's output [B, C], one number per class."""
        return (TensorSpec(self.input, self.dtype, (-1, -1)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Scores, classes, labels, best first."""
        return (
            TensorSpec("scores", "FP32", (-1, -1)),
            TensorSpec("classes", "INT32", (-1, -1)),
            TensorSpec("labels", "BYTES", (-1, -1)),
        )

    def __call__(self, tensors: Tensors, context: Tensors) -> Outcome:
        """Choose the best classes of each row.

        Raises:
            InvalidInput: no class, or another number of classes than of labels.
            EngineError: a row has a NaN or +Inf, or nothing but -Inf; a single -Inf is a class
                that the model rules out.
        """
        logits = tensors[self.input].astype(np.float32)
        self._check(logits)
        classes = np.array([_best(row, self.k) for row in logits], np.int32)
        classes = classes.reshape(len(logits), min(self.k, logits.shape[1]))  # for B = 0
        scores = softmax(logits) if self.apply_softmax else logits
        return Outcome(
            {
                "scores": np.take_along_axis(scores, classes, axis=1),
                "classes": classes,
                "labels": name_classes(self._names, classes),
            }
        )

    def _check(self, logits: NDArray[np.float32]) -> None:
        count = logits.shape[1]
        if count == 0:
            raise InvalidInput(f"tensor {self.input!r} has 0 classes, wanted at least 1")
        if len(self._names) not in (0, count):
            raise InvalidInput(
                f"tensor {self.input!r} has {count} classes, labels file {self.labels} has "
                f"{len(self._names)} lines; give a file with {count} lines"
            )
        broken = np.flatnonzero(~np.isfinite(logits.max(axis=1)))
        if broken.size:
            raise EngineError(
                f"tensor {self.input!r} has a NaN or +Inf or only -Inf in rows "
                f"{broken.tolist()}, wanted numbers; check the model's precision"
            )


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return exp(x - max) / sum(exp(x - max)) of each row, FP32[B, C].

    Args:
        logits: FP32[B, C] with a finite maximum per row. The shift by the maximum changes nothing
            but that exp cannot overflow.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    powers: NDArray[np.float64] = np.exp(shifted)
    powers /= powers.sum(axis=1, keepdims=True)
    return powers.astype(np.float32)


def _best(row: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    # argpartition alone would choose at random among classes that equal the k-th.
    at = max(len(row) - k, 0)
    found = np.flatnonzero(row >= np.partition(row, at)[at])
    return found[np.argsort(-row[found], kind="stable")][:k]
