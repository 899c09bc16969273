"""How a model is built: everything about it that the ONNX file and the machine do not say."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from infer_svc.build.calibration import content_hash
from mesh.errors import SettingsError

PRECISIONS = ("fp32", "fp16", "int8")
TOLERANCES = {"fp32": 0.0, "fp16": 0.01, "int8": 0.1}
"""Largest error of an output where a recipe names none; the demo models lose up to 0.0008 and
0.02."""
LARGEST_WORKSPACE = 2**24
"""MiB; more than any GPU has, and TensorRT takes it."""
STEPS = 1
"""Number of the conversion; count it up when the same recipe begins to give another model."""


@dataclass(frozen=True)
class Recipe:
    """The wishes for one build.

    Raises:
        SettingsError: a field's value cannot be used; the text names the field, the value and
            what was wanted.
    """

    precision: str = "fp32"
    """One of `PRECISIONS`; int8 is INT8 where a flavour can, FP16 around it."""
    keep: tuple[str, ...] = ()
    """Nodes that stay in FP32: names, patterns as `/body/*`, or operators as `Conv`."""
    auto: bool = False
    """Keep sensitive nodes in FP32, one after the other, until the tolerance holds."""
    calibration: Path | None = None
    """Representative data: an .npz file or a folder, as `infer_svc.build.calibration` reads it."""
    workspace_mbytes: int = 2048
    """Memory of the GPU that a layer may use, in MiB."""
    sparsity: bool = False
    """Allow kernels that use weights of which two in four are zero."""
    tf32: bool = True
    """Allow FP32 matrices to be multiplied with 10 bits of mantissa."""
    tolerance: float | None = None
    """Largest ||out - ref|| / ||ref|| of any output over the data; None: as in `TOLERANCES`."""
    in_place: bool = True
    """Leave the nodes that write into caches; False: for a TensorRT that knows none of them."""

    def __post_init__(self) -> None:
        _demand(self.precision in PRECISIONS, "precision", self.precision, f"one of {PRECISIONS}")
        names = isinstance(self.keep, tuple) and all(isinstance(n, str) and n for n in self.keep)
        _demand(names, "keep", self.keep, "a tuple of node names")
        for name in ("auto", "sparsity", "tf32", "in_place"):
            value = getattr(self, name)
            _demand(isinstance(value, bool), name, value, "true or false")
        path = self.calibration
        _demand(path is None or isinstance(path, Path), "calibration", path, "a path")
        size = self.workspace_mbytes
        whole = isinstance(size, int) and not isinstance(size, bool)
        _demand(
            whole and 0 < size <= LARGEST_WORKSPACE,
            "workspace_mbytes", size, f"a whole number of MiB from 1 to {LARGEST_WORKSPACE}",
        )  # fmt: skip
        limit = self.tolerance
        number = isinstance(limit, int | float) and not isinstance(limit, bool)
        _demand(
            limit is None or (number and 0 <= limit < float("inf")),
            "tolerance", limit, "a number from 0 on, or none",
        )  # fmt: skip

    @property
    def largest_error(self) -> float:
        """The tolerance, where none is given that of the precision."""
        return TOLERANCES[self.precision] if self.tolerance is None else float(self.tolerance)

    def to_json(self) -> str:
        """Return the recipe as JSON; the keys have one order."""
        values = asdict(self)
        values["keep"] = list(self.keep)
        values["calibration"] = None if self.calibration is None else str(self.calibration)
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Return the recipe of a JSON object; fields may be left out.

        Raises:
            SettingsError: it is no object, has an unknown field, or a value cannot be used.
        """
        try:
            values: Any = json.loads(text)
        except ValueError as err:
            raise SettingsError(f"a recipe is {text!r}, wanted a JSON object: {err}") from err
        if not isinstance(values, dict):
            raise SettingsError(f"a recipe is {text!r}, wanted a JSON object")
        known = [field.name for field in fields(cls)]
        unknown = sorted(values.keys() - known)
        if unknown:
            raise SettingsError(f"recipe has the unknown fields {unknown}; there are {known}")
        if isinstance(values.get("keep"), list):
            values["keep"] = tuple(values["keep"])
        if isinstance(values.get("calibration"), str):
            values["calibration"] = Path(values["calibration"])
        return cls(**values)

    def digest(self) -> str:
        """Return a hash of all that changes the engine; the data counts by content, not by path.

        Raises:
            SettingsError: the calibration data cannot be read.
        """
        values = json.loads(self.to_json())
        values["steps"] = STEPS
        values["tolerance"] = self.largest_error
        if self.calibration is not None:
            values["calibration"] = content_hash(self.calibration)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _demand(fits: bool, field: str, value: object, wanted: str) -> None:
    if not fits:
        raise SettingsError(f"recipe field {field!r} is {value!r}, wanted {wanted}")
