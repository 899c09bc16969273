"""What an op of preprocess_svc or postprocess_svc is, and how one is made from its parameters."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import AfterValidator, TypeAdapter, ValidationError, ValidationInfo

from mesh.errors import InvalidInput, NotFound
from mesh.tensor import Tensors, TensorSpec
from mesh.validation import faults


@dataclass(frozen=True)
class Outcome:
    """What an op made of one item."""

    tensors: Tensors
    """For the next stage."""
    context: Tensors = field(default_factory=dict)
    """For the postprocess op of the same item; the model never sees it."""


class Op(Protocol):
    """One step of CPU work. A frozen pydantic dataclass whose fields are its parameters.

    The constructor is cheap and checks the parameters; a call may run in any thread.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Tensors of one item, the batch dimension first."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Tensors for the next stage, the batch dimension first."""

    def __call__(self, tensors: Tensors, context: Tensors) -> Outcome:
        """Run on one item.

        Args:
            tensors: by name, already compared with `inputs`.
            context: what the preprocess op of the same item left; empty there.

        Raises:
            InvalidInput: the content cannot be used; the text says what came and what was wanted.
        """


def _inside_repository(path: Path, info: ValidationInfo) -> Path:
    root = Path(os.path.abspath((info.context or {}).get("root", ".")))
    # By the name only: a repository may well have links to folders elsewhere.
    found = Path(os.path.normpath(root / path))
    if not found.is_relative_to(root):
        raise ValueError(f"{path} is outside the model repository")
    if not found.exists():
        raise ValueError(f"{path} is not there (looked for {found})")
    return found


RepositoryPath = Annotated[Path, AfterValidator(_inside_repository)]
"""A parameter that names a file or folder of the model repository, relative to its root."""


def make_op(table: Mapping[str, type[Op]], name: str, parameters: bytes, root: Path) -> Op:
    """Make an op from its name and its parameters.

    Args:
        table: ops by name.
        name: of the op.
        parameters: a JSON object, or empty for the defaults.
        root: the model repository, which `RepositoryPath` parameters are relative to.

    Raises:
        NotFound: the table has no such op.
        InvalidInput: a parameter is unknown, missing or of the wrong value.
    """
    kind = table.get(name)
    if kind is None:
        raise NotFound(f"op {name!r} is not known here; there are {sorted(table)}")
    try:
        values = json.loads(parameters or b"{}")
    except ValueError as err:
        raise InvalidInput(f"parameters of op {name!r} are no JSON: {err}") from err
    try:
        return TypeAdapter(kind).validate_python(values, context={"root": root})
    except ValidationError as err:
        raise InvalidInput(f"op {name!r}: {faults(err, 'parameters')}") from err
