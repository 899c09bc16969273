"""From an ONNX file to one of another precision, checked against the first."""

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infer_svc.backends.onnxruntime import load_onnxruntime
from infer_svc.build import graph
from infer_svc.build.accuracy import BATCH, compare, sensitive
from infer_svc.build.calibration import Samples, random_samples, read_samples
from infer_svc.build.half import halved
from infer_svc.build.quantization import calibrate, prepared, quantizable, quantize
from infer_svc.build.recipe import Recipe
from infer_svc.build.report import Report, check
from mesh.errors import EngineError, SettingsError
from mesh.tensor import TensorSpec

ROUNDS = 10
"""Of the search for sensitive nodes; each keeps the worst `SHARE` of them in FP32: of the quantized
ones where the precision is int8, else of all."""
SHARE = 1 / 10
CANDIDATE, PREPARED = "candidate.onnx", "prepared.onnx"


@dataclass(frozen=True)
class Converted:
    """A model in the precision of its recipe."""

    path: Path
    """The source itself, where the recipe says fp32."""
    kept: tuple[str, ...]
    """Names of nodes in FP32."""
    quantized: tuple[str, ...]
    """Names of nodes in INT8."""
    report: Report | None
    """None where the recipe says fp32. It stands beside the target, `<stem>.report.json`."""
    ranges: Path | None
    """Of an INT8 model: its calibration, beside the target, `<stem>.ranges.json`."""


def convert(
    source: Path,
    target: Path,
    recipe: Recipe,
    flavour: str = "onnxruntime",
    *,
    checked: bool = True,
) -> Converted:
    """Write a model in the precision of a recipe, if it is as accurate as the recipe wants.

    Its inputs and outputs keep their names, types and shapes. The check runs in ONNX Runtime on
    the CPU, over the calibration data; without any, FP16 is checked with random values.

    Args:
        source: an ONNX file in FP32; not changed.
        target: where the new one is written; the report, and the ranges of INT8, stand beside it.
        recipe: what is wanted.
        flavour: that will run it: `tensorrt`, `tensorrt_rtx` or `onnxruntime`.
        checked: False: write a model that exceeds its tolerance too; the report says so.

    Raises:
        SettingsError: the recipe does not fit the model or the flavour, the data does not fit, or
            the package onnx is missing.
        Refused: an output's error is above the tolerance; only report and ranges were written.
        EngineError: the model cannot be converted.
    """
    if recipe.precision == "fp32":
        return Converted(source, (), (), None, None)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        conversion = _Conversion(source, target, recipe, flavour)
        with tempfile.TemporaryDirectory(prefix=".convert-", dir=target.parent) as folder:
            report = conversion.run(Path(folder))
            report_path(target).write_text(report.to_json())
            if checked:
                check(report)
            os.replace(Path(folder) / CANDIDATE, target)
    except SettingsError as err:
        raise SettingsError(f"{recipe.precision} of {source}: {err}") from err
    except EngineError as err:
        raise EngineError(f"{recipe.precision} of {source}: {err}") from err
    ranges = ranges_path(target) if recipe.precision == "int8" else None
    return Converted(target, report.kept, conversion.quantized, report, ranges)


def report_path(target: Path) -> Path:
    """Return where the report of a converted model is."""
    return target.with_suffix(".report.json")


def ranges_path(target: Path) -> Path:
    """Return where the calibration of a converted model is."""
    return target.with_suffix(".ranges.json")


class _Conversion:
    """One source on its way to one target."""

    def __init__(self, source: Path, target: Path, recipe: Recipe, flavour: str) -> None:
        self._source, self._recipe, self._flavour = source, recipe, flavour
        self._ranges = ranges_path(target)
        self._model = graph.load(source)
        self._keep = graph.matching(self._model, recipe.keep)
        self._int8 = recipe.precision == "int8"
        self.quantized: tuple[str, ...] = ()
        if self._int8:
            self._choose()
        self._samples = _samples(recipe, load_onnxruntime(source, 1).inputs)

    def run(self, folder: Path) -> Report:
        """Write the candidate, and where wanted again with more nodes in FP32, until it holds."""
        if self._int8:
            ready = folder / PREPARED
            graph.save(prepared(graph.load(self._source)), ready)
            calibrate(ready, self._ranges, self._samples.batches(BATCH), self.quantized)
        report = self._once(folder)
        for _ in range(ROUNDS if self._recipe.auto else 0):
            among = self.quantized or [node.name for node in self._model.graph.node]
            more = sensitive(report, math.ceil(len(among) * SHARE), among)
            nothing_left = self._int8 and {*self.quantized} <= {*more}
            if report.holds or not more or nothing_left:
                break
            self._keep += more
            report = self._once(folder)
        return report

    def _once(self, folder: Path) -> Report:
        candidate, model = folder / CANDIDATE, self._model
        if self._int8:
            self._choose()
            quantize(folder / PREPARED, candidate, self._ranges, self.quantized)
            model = graph.load(candidate)
        graph.save(halved(model, self._keep), candidate)
        return compare(
            self._source, candidate, self._samples,
            precision=self._recipe.precision, tolerance=self._recipe.largest_error,
            kept=self._keep,
        )  # fmt: skip

    def _choose(self) -> None:
        self.quantized = tuple(quantizable(self._model, self._flavour, self._keep))


def _samples(recipe: Recipe, inputs: Sequence[TensorSpec]) -> Samples:
    if recipe.calibration is not None:
        return read_samples(recipe.calibration, inputs)
    if recipe.precision == "int8":
        raise SettingsError(
            "INT8 needs representative data and there is none; give calibration data, an .npz file "
            f"or a folder with the arrays {[spec.name for spec in inputs]}, a few dozen rows or "
            "more, none of them held out for the score"
        )
    return random_samples(inputs)
