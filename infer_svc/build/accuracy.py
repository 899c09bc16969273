"""A converted model run beside its reference, on the same data, in ONNX Runtime on the CPU."""

import copy
import math
import os
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer_svc.backends.onnxruntime import OnnxRuntimeContext, load_onnxruntime
from infer_svc.build import graph
from infer_svc.build.calibration import Samples
from infer_svc.build.rehearsal import rehearsed
from infer_svc.build.report import LayerError, OutputError, Report
from mesh.errors import EngineError, SettingsError
from mesh.tensor import Array

BATCH = 8
ROWS = 128
"""As many are compared; the ranges of a calibration come from all."""
MASKED = (-1e8, -6e4)
"""A reference below the first only says "not this one" to a softmax, and so does, in FP16, a value
below the second."""
_OWN = "__own"


@dataclass(frozen=True)
class _Maker:
    """The node behind a tensor."""

    node: str
    operator: str


def compare(
    reference: Path,
    candidate: Path,
    samples: Samples,
    *,
    precision: str = "",
    tolerance: float = math.inf,
    kept: Collection[str] = (),
) -> Report:
    """Run both models and tell how far apart they are, at each output and inside.

    The candidate runs as `infer_svc.build.rehearsal` makes it: with the rounding of a GPU.

    Args:
        reference: an ONNX file.
        candidate: another of the same inputs and outputs.
        samples: the data; the first `ROWS` rows are used.
        precision: of the candidate, for the report.
        tolerance: largest error of an output, for the report.
        kept: nodes that stayed in FP32, for the report.

    Raises:
        EngineError: one of the two does not run.
    """
    first, second = graph.load(reference), rehearsed(graph.load(candidate))
    outputs = [output.name for output in first.graph.output]
    makers = _makers(first)
    sums, owns, rows = _measured(first, second, _in_both(first, second, makers), samples)
    found = [sums[name].output(name) for name in outputs]
    layers = [
        LayerError(name, maker.node, maker.operator, sums[name].error, owns[name].error)
        for name, maker in makers.items()
        if name in sums
    ]
    return Report(
        str(reference), precision, samples.source, rows, tolerance, tuple(kept),
        tuple(sorted(found, key=lambda one: -one.error)),
        tuple(sorted(layers, key=lambda one: -one.error)),
    )  # fmt: skip


def sensitive(report: Report, count: int, among: Collection[str] = ()) -> list[str]:
    """Return the nodes that lose most by themselves and are not yet kept in FP32.

    Args:
        report: of the last conversion.
        count: how many at most.
        among: nodes to choose from; none: from all. Nodes that overflow go before, whichever.
    """
    kept = set(report.kept)
    left = [one for one in report.layers if one.node not in kept]
    overflowed = [one for one in left if one.own == math.inf]
    wanted = [one for one in left if not among or one.node in among]
    worst = overflowed or sorted(wanted, key=lambda one: (-one.own, -one.error))
    return list(dict.fromkeys(one.node for one in worst))[:count]


class _Sum:
    """Sums over the elements of one tensor.

    Args:
        inside: whether it is no output; then masks of attention do not count.
    """

    def __init__(self, inside: bool) -> None:
        self._inside = inside
        self._right = self._given = self._both = self._apart = 0.0
        self._max_abs = 0.0
        self._broken = False
        self._same = self._places = 0

    def add(self, right: Array, given: Array) -> None:
        """Add a batch of the reference and of the candidate."""
        if right.shape != given.shape:
            self._broken = True
            return
        if not self._inside and right.ndim and right.shape[-1] > 1 and right.size:
            self._same += int((right.argmax(-1) == given.argmax(-1)).sum())
            self._places += right[..., 0].size
        a, b = (np.asarray(array, np.float64).ravel() for array in (right, given))
        if self._inside or not np.isfinite(a).all():
            counts = ~((a == b) | (np.isnan(a) & np.isnan(b))) | np.isfinite(a)
            if self._inside:
                counts &= (a >= MASKED[0]) | (b >= MASKED[1])
            a, b = a[counts], b[counts]
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            self._broken = True
            return
        apart = a - b
        # Not by `@`: its threads would spin, on cores that others use.
        self._right += float(np.square(a).sum())
        self._given += float(np.square(b).sum())
        self._both += float((a * b).sum())
        self._apart += float(np.square(apart).sum())
        self._max_abs = max(self._max_abs, float(np.abs(apart).max(initial=0)))

    @property
    def error(self) -> float:
        """Of the candidate, relative."""
        if self._broken or (not self._right and self._apart):
            return math.inf
        return math.sqrt(self._apart / self._right) if self._right else 0.0

    def output(self, name: str) -> OutputError:
        """Return the error with all that is told of an output."""
        lengths = math.sqrt(self._right) * math.sqrt(self._given)
        cosine = min(1.0, self._both / lengths) if lengths else float(not self._apart)
        return OutputError(
            name,
            self.error,
            math.inf if self._broken else self._max_abs,
            0.0 if self._broken else cosine,
            self._same / self._places if self._places else None,
        )


def _measured(
    first: Any, second: Any, inside: list[str], samples: Samples
) -> tuple[dict[str, _Sum], dict[str, _Sum], int]:
    """Run the reference and the candidate, which are changed, and the candidate node by node.

    Returns:
        Sums of the outputs and of the tensors inside, of the candidate and of its nodes by
        themselves, and the rows that were run.
    """
    outputs = [output.name for output in first.graph.output]
    sums, owns = (
        {name: _Sum(False) for name in outputs} | {name: _Sum(True) for name in inside}
        for _ in ("whole", "apart")
    )
    apart, kinds = _apart(second, inside)
    rows = 0
    with tempfile.TemporaryDirectory() as folder:
        right = _opened(first, inside, Path(folder) / "reference.onnx")
        given = _opened(second, inside, Path(folder) / "candidate.onnx")
        alone = _opened(apart, [f"{name}{_OWN}" for name in inside], Path(folder) / "apart.onnx")
        for batch in samples.batches(BATCH, ROWS):
            rows += samples.count(batch)
            wanted = right.run([batch])
            for name, array in given.run([batch]).items():
                sums[name].add(wanted[name], array)
            with np.errstate(over="ignore"):
                fed = {name: wanted[name].astype(kind) for name, kind in kinds.items()}
            for named, array in alone.run([batch | fed]).items():
                name = named.removesuffix(_OWN)
                owns[name].add(wanted[name], array)
    return sums, owns, rows


def _makers(model: Any) -> dict[str, _Maker]:
    return {
        name: _Maker(node.name, node.op_type)
        for node in model.graph.node
        if node.op_type != "Constant"
        for name in node.output
        if name
    }


def _in_both(first: Any, second: Any, makers: dict[str, _Maker]) -> list[str]:
    """Return the tensors of floats that both models compute, but for the outputs."""
    kinds = graph.package().TensorProto
    floats = {kinds.FLOAT, kinds.FLOAT16, kinds.DOUBLE}
    a, b = graph.types(first), graph.types(second)
    made = {name for node in second.graph.node for name in node.output}
    outputs = {output.name for output in first.graph.output}
    return [
        name
        for name in makers
        if name in made and name not in outputs and a.get(name) in floats and b.get(name) in floats
    ]


def _opened(model: Any, inside: list[str], path: Path) -> OnnxRuntimeContext:
    """Load a model with further outputs."""
    onnx = graph.package()
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inside)
    try:
        onnx.save(model, str(path))
        return load_onnxruntime(path, os.cpu_count() or 1, literal=True).open()
    except (SettingsError, ValueError) as err:
        raise EngineError(f"the model cannot be compared: {err}") from err


def _apart(model: Any, inside: list[str]) -> tuple[Any, dict[str, Any]]:
    """Return a model cut at the tensors inside, and the dtypes of those.

    They are inputs, and what the model makes of them has a name of its own: so each node is run
    on what the reference has there.
    """
    onnx = graph.package()
    kinds = graph.types(model)
    cut = copy.deepcopy(model)
    names = set(inside)
    for node in cut.graph.node:
        node.output[:] = [f"{name}{_OWN}" if name in names else name for name in node.output]
    cut.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, kinds[name], None) for name in inside
    )
    return cut, {name: onnx.helper.tensor_dtype_to_np_dtype(kinds[name]) for name in inside}
