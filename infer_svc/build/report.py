"""What a conversion costs: errors of outputs and layers, as JSON, as text, and as a refusal."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mesh.errors import Refused, SettingsError


@dataclass(frozen=True)
class OutputError:
    """How far an output is from the reference."""

    name: str
    error: float
    """||out - ref|| / ||ref|| over all data; infinite where a number is none, or overflowed."""
    max_abs: float
    """Largest difference of two elements."""
    cosine: float
    """Of the angle between the two, over all data; 0 where a number is none."""
    agreement: float | None
    """Share of places with the same largest element along the last axis; None: it has no two."""


@dataclass(frozen=True)
class LayerError:
    """How far a tensor inside is from the reference."""

    tensor: str
    node: str
    """Name of the node that makes it."""
    operator: str
    error: float
    """As for an output."""
    own: float
    """The part of the node itself: its error when it reads what the reference has there."""


@dataclass(frozen=True)
class Report:
    """A converted model beside its reference."""

    model: str
    """The reference's file."""
    precision: str
    data: str
    """Where the rows are from."""
    rows: int
    tolerance: float
    """Largest error of an output that was allowed."""
    kept: tuple[str, ...]
    """Nodes that stayed in FP32."""
    outputs: tuple[OutputError, ...]
    """Worst first."""
    layers: tuple[LayerError, ...]
    """Worst first; those that both graphs have under one name."""

    @property
    def worst(self) -> OutputError:
        """The output with the largest error."""
        return self.outputs[0]

    @property
    def holds(self) -> bool:
        """Tell whether no output has a larger error than allowed; an infinite one never is."""
        return math.isfinite(self.worst.error) and self.worst.error <= self.tolerance

    def to_json(self) -> str:
        """Return the report as JSON; a number that is not finite is null."""
        return json.dumps(_finite(asdict(self)), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Return the report of its JSON.

        Raises:
            SettingsError: it is no report.
        """
        try:
            values = json.loads(text)
            values["kept"] = tuple(values["kept"])
            values["outputs"] = tuple(_error(OutputError, one) for one in values["outputs"])
            values["layers"] = tuple(_error(LayerError, one) for one in values["layers"])
            return cls(**values)
        except (ValueError, TypeError, KeyError) as err:
            raise SettingsError(f"this is no accuracy report: {err!r}") from err

    def text(self, layers: int = 10) -> str:
        """Return a table to read.

        Args:
            layers: how many of them.
        """
        verdict = "holds" if self.holds else f"exceeded by {self.worst.name!r}"
        lines = [
            f"{self.precision} of {self.model}: {self.rows} rows of {self.data}",
            f"tolerance {self.tolerance:g}: {verdict}",
            f"  {'output':<32} {'error':>9} {'max abs':>9} {'cosine':>9} {'same top':>9}",
        ]
        for one in self.outputs:
            same = "" if one.agreement is None else f"{one.agreement:.2%}"
            lines.append(
                f"  {one.name:<32} {one.error:>9.2e} {one.max_abs:>9.2e} {one.cosine:>9.6f} "
                f"{same:>9}"
            )
        shown = self.layers[:layers]
        if shown:
            heading = f"layer, worst first ({len(shown)} of {len(self.layers)})"
            names = [f"{one.operator} {one.node}" for one in shown]
            width = max(map(len, [heading, *names]))
            lines.append(f"  {heading:<{width}} {'error':>9} {'own':>9}")
            lines += [
                f"  {name:<{width}} {one.error:>9.2e} {one.own:>9.2e}"
                for name, one in zip(names, shown, strict=True)
            ]
        if self.kept:
            lines.append(f"  kept in FP32: {', '.join(self.kept)}")
        return "\n".join(lines)


def check(report: Report, tolerance: float | None = None) -> None:
    """Refuse a model that loses too much.

    Args:
        report: of the conversion.
        tolerance: largest error of an output; None: the report's own.

    Raises:
        Refused: an output's error is larger; the text names it and has the report.
    """
    limit = report.tolerance if tolerance is None else tolerance
    worst = report.worst
    if not (math.isfinite(worst.error) and worst.error <= limit):
        raise Refused(
            f"{report.precision} of {report.model} is refused: output {worst.name!r} has the error "
            f"{worst.error:.3g}, wanted at most {limit:g}; keep sensitive nodes in FP32 (by name, "
            f"or found automatically), allow more, or take a finer precision\n{report.text()}"
        )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _error(kind: Any, values: Mapping[str, Any]) -> Any:
    """Return an error of its JSON, in which null is infinite, but for an agreement."""
    return kind(**{
        name: math.inf if value is None and name != "agreement" else value
        for name, value in values.items()
    })  # fmt: skip
