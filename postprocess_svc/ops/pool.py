"""Op `pool`: one embedding per sentence."""

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from mesh.errors import EngineError, InvalidInput
from mesh.op import Outcome
from mesh.tensor import Array, Tensors, TensorSpec


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Pool:
    """Mean of the token vectors of a sentence, padding left out, then length 1.

    The mean is the pooling of Sentence-BERT (Reimers and Gurevych, 2019, arXiv:1908.10084,
    section 3). A sentence without tokens gives zeros.

    Context: `token_count` INT32[B], the tokens of each sentence before the padding on the right;
    preprocess op `tokenize` leaves it. Token s of sentence b counts where s < token_count[b].

    Output: `embedding` FP32[B, H].
    """

    normalize: bool = True
    """Divide by the L2 norm, so that a dot product is the cosine similarity."""
    input: str = "last_hidden_state"
    """Name of the model's output tensor."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's token vectors [B, S, H], padded on the right."""
        return (TensorSpec(self.input, "FP32", (-1, -1, -1)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """One vector per sentence."""
        return (TensorSpec("embedding", "FP32", (-1, -1)),)

    def __call__(self, tensors: Tensors, context: Tensors) -> Outcome:
        """Pool each sentence.

        Raises:
            InvalidInput: the context has no `token_count`, or it does not fit the tensor.
            EngineError: a token vector has a NaN or Inf; those of the padding do not matter.
        """
        hidden = tensors[self.input].astype(np.float32, copy=False)
        embedding = self._means(hidden, _token_counts(context, hidden))
        if self.normalize:
            norms = np.linalg.norm(embedding, axis=1, keepdims=True)
            embedding /= np.where(norms == 0, 1, norms)
        return Outcome({"embedding": embedding.astype(np.float32)})

    def _means(self, hidden: NDArray[np.float32], counts: list[int]) -> NDArray[np.float64]:
        """Return float64[B, H]: squares for the norm could overflow in FP32."""
        means = np.zeros((hidden.shape[0], hidden.shape[2]))
        with np.errstate(invalid="ignore"):  # Inf - Inf is reported below
            for row, count in enumerate(counts):
                if count:
                    hidden[row, :count].mean(axis=0, dtype=np.float64, out=means[row])
        if not np.isfinite(means).all():
            raise EngineError(
                f"tensor {self.input!r} has a NaN or Inf in the vector of a token, wanted "
                "numbers; check the model's precision"
            )
        return means


def _token_counts(context: Tensors, hidden: Array) -> list[int]:
    batch, length, _ = hidden.shape
    if "token_count" not in context:
        raise InvalidInput(
            f"context has {sorted(context)}, wanted 'token_count' INT32[{batch}]; op 'pool' needs "
            "preprocess op 'tokenize'"
        )
    counts: list[int] = context["token_count"].tolist()
    if len(counts) != batch or not all(0 <= count <= length for count in counts):
        raise InvalidInput(
            f"context 'token_count' is {counts}, wanted {batch} numbers of 0..{length}: one per "
            "row of the model's output, no more than its tokens"
        )
    return counts
