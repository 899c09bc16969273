"""What the Open Inference Protocol is answered from: the models of a process, and their life."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mesh.tensor import TensorSpec


@dataclass(frozen=True)
class Model:
    """A model that serves, as clients see it."""

    name: str
    version: str
    """That answers."""
    versions: tuple[str, ...]
    """All that serve."""
    platform: str
    """In Triton's words, as `onnxruntime_onnx` or `ensemble`."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    target: str
    """Of its items."""
    splits: bool = False
    """Its input is one element, a text or a file; a request brings any number."""
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Of the classes of outputs."""
    batched: bool = True
    """The first dimension of its tensors is that of a batch."""
    decoupled: bool = False
    """A request has several replies."""


@dataclass(frozen=True)
class Entry:
    """A line of the repository's index."""

    name: str
    version: str
    """Empty: none is known."""
    state: str
    """`READY`, `LOADING`, `UNLOADING` or `UNAVAILABLE`."""
    reason: str = ""


class Catalog(Protocol):
    """The models of a process."""

    def is_ready(self) -> bool:
        """Tell whether inferences are answered."""

    def find(self, name: str, version: str) -> Model:
        """Return a model that serves.

        Args:
            name: of the model.
            version: number; empty: the newest that serves.

        Raises:
            NotFound: there is no such model or version.
            MeshError: it is not served now; the text says why.
        """

    def serves(self, model: Model) -> bool:
        """Tell whether requests to a model are answered now."""

    async def config(self, model: Model) -> Any:
        """Return Triton's `ModelConfig` of a model, with what was filled in."""

    async def statistics(self, name: str, version: str) -> list[Any]:
        """Return `ModelStatistics` of a model, or of all.

        Args:
            name: of the model; empty: all.
            version: number; empty: all that serve.

        Raises:
            MeshError: as `find`.
        """

    async def index(self) -> list[Entry]:
        """Tell of every model, served or not."""

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Load a model, or load it anew, and return once it serves.

        Args:
            name: of the model.
            parameters: `config`, JSON in place of its config, and `file:<path>`, bytes.

        Raises:
            MeshError: it cannot be loaded; what was served before still is.
        """

    async def unload(self, name: str, *, parts: bool) -> None:
        """Serve a model no more; what it runs is answered.

        Args:
            name: of the model.
            parts: of an ensemble, its steps' models too.

        Raises:
            NotFound: there is no such model.
        """
