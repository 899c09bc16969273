"""The demo models lose next to nothing in FP16 and INT8, on data that no calibration saw.

They run in ONNX Runtime on the CPU, with the FP16 rounding of a GPU (`infer_svc.build.rehearsal`).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from infer_svc.backends.machine import Machine
from infer_svc.backends.shapes import profiles_of
from infer_svc.backends.tensorrt import load_tensorrt, onnx_inputs
from infer_svc.backends.trt_api import load_api
from infer_svc.build import graph
from infer_svc.build.builds import Builds
from infer_svc.build.precision import Converted, convert
from infer_svc.build.recipe import Recipe
from infer_svc.build.rehearsal import rehearsed
from infer_svc.config import read_config
from mesh.errors import SettingsError

NAMES = ("digits-classify", "digits-detect", "language")
POINT = 0.01
Script = Callable[[str, str], ModuleType]


class Conversions:
    """Conversions of the demo models, each made once."""

    def __init__(self, models: Path, script: Script, folder: Path) -> None:
        self._models, self._script, self._folder = models, script, folder
        self._made: dict[tuple[str, str], Converted] = {}

    def data(self, name: str) -> Path:
        """Return calibration data of a model."""
        path = self._folder / (name if name == "language" else f"{name}.npz")
        if not path.exists():
            self._script(name, "make_calibration").write(path)
        return path

    def source(self, name: str) -> Path:
        """Return the file of a model."""
        return self._models / name / "1/model.onnx"

    def made(self, name: str, precision: str) -> Converted:
        """Return a model in a precision."""
        if (name, precision) not in self._made:
            recipe = Recipe(precision, calibration=self.data(name))
            target = self._folder / f"{name}.{precision}.onnx"
            self._made[name, precision] = convert(self.source(name), target, recipe, "tensorrt")
        return self._made[name, precision]

    def session(self, name: str, precision: str) -> ort.InferenceSession:
        """Return a session in which FP16 is rounded as on a GPU and nothing is fused."""
        path = self._folder / f"{name}.{precision}.rehearsed.onnx"
        graph.save(rehearsed(graph.load(self.made(name, precision).path)), path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def conversions(
    models: Path, script: Script, tmp_path_factory: pytest.TempPathFactory
) -> Conversions:
    return Conversions(models, script, tmp_path_factory.mktemp("precision"))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_digits_are_named_as_before(
    precision: str, conversions: Conversions, script: Script
) -> None:
    evaluate = script("digits-classify", "evaluate")
    before, after = evaluate.session(), conversions.session("digits-classify", precision)
    served = evaluate.session(conversions.made("digits-classify", precision).path)
    for pixels, labels in (evaluate.data.held_out(), evaluate.data.held_out_distorted()):
        wanted = evaluate.accuracy(before, pixels, labels)
        assert evaluate.accuracy(after, pixels, labels) >= wanted - POINT
        assert evaluate.accuracy(served, pixels, labels) >= wanted - POINT
        if precision == "fp16":
            same = _top(evaluate, before, pixels) == _top(evaluate, after, pixels)
            assert same.mean() >= 0.995


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_languages_are_named_as_before(
    precision: str, conversions: Conversions, script: Script
) -> None:
    evaluate = script("language", "evaluate")
    tokens = evaluate.tokenizer()
    samples = evaluate.data.split()[1]
    before, after = evaluate.session(), conversions.session("language", precision)
    wanted = evaluate.accuracy(before, tokens, samples)
    assert evaluate.accuracy(after, tokens, samples) >= wanted - POINT
    texts = sorted((text for text, _ in samples), key=lambda text: len(text.encode()))
    same = [
        evaluate.logits(before, tokens, some).argmax(1)
        == evaluate.logits(after, tokens, some).argmax(1)
        for some in (texts[first : first + 32] for first in range(0, len(texts), 32))
    ]
    assert np.concatenate(same).mean() >= (0.995 if precision == "fp16" else 0.97)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_digits_on_pages_are_found_as_before(
    precision: str, conversions: Conversions, script: Script
) -> None:
    evaluate = script("digits-detect", "evaluate")
    held_out = evaluate.data.held_out(120)
    wanted = evaluate.score(evaluate.session(), held_out)
    after = conversions.session("digits-detect", precision)
    assert evaluate.score(after, held_out) >= wanted - POINT


def test_no_row_of_the_calibration_is_held_out(conversions: Conversions, script: Script) -> None:
    for name in ("digits-classify", "digits-detect"):
        calibration = np.load(conversions.data(name))["pixels"]
        data = script(name, "evaluate").data
        held_out = (
            [*data.held_out()[0], *data.held_out_distorted()[0]]
            if name == "digits-classify"
            else [page.pixels for page in data.held_out(120)]
        )
        assert not {one.tobytes() for one in calibration} & {one.tobytes() for one in held_out}
    evaluate = script("language", "evaluate")
    tokens = evaluate.tokenizer()
    texts = evaluate.data.split()[1]
    seen = {
        tuple(row[row != tokens.pad_token_id])
        for file in conversions.data("language").glob("*.npz")
        for row in np.load(file)["input_ids"]
    }
    assert len(seen) > 400
    assert not seen & {tuple(tokens(text)["input_ids"]) for text, _ in texts}


@pytest.mark.parametrize("name", NAMES)
def test_rtx_builds_fp16(name: str, conversions: Conversions) -> None:
    path = conversions.made(name, "fp16").path
    plan = load_api().build(path, profiles_of(onnx_inputs(path), 8, (16, 32)))
    assert len(plan) > path.stat().st_size / 4


def test_rtx_builds_int8_of_matrices_and_is_not_asked_for_convolutions(
    conversions: Conversions, tmp_path: Path
) -> None:
    source, target = conversions.source("language"), tmp_path / "model.onnx"
    recipe = Recipe("int8", calibration=conversions.data("language"))
    made = convert(source, target, recipe, "tensorrt_rtx")
    assert len(made.quantized) == 18
    assert load_api().build(target, profiles_of(onnx_inputs(target), 8, (16, 32)))
    digits = conversions.source("digits-classify")
    data = conversions.data("digits-classify")
    with pytest.raises(SettingsError, match=r"digits-classify.*tensorrt_rtx.*Conv in INT8"):
        convert(digits, target, Recipe("int8", calibration=data), "tensorrt_rtx")
    made = convert(digits, target, Recipe("int8", keep=("Conv",), calibration=data), "tensorrt_rtx")
    assert made.quantized == ("/head/Gemm",)
    assert load_api().build(target, profiles_of(onnx_inputs(target), 8, (16,)))


def _top(evaluate: ModuleType, model: ort.InferenceSession, pixels: Any) -> Any:
    return evaluate.logits(model, pixels).argmax(1)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "precision", "least"),
    [
        ("digits-classify", "fp16", 0.995),
        ("language", "fp16", 0.995),
        ("language", "int8", 0.97),  # of matrices only, which TensorRT-RTX takes too
    ],
)
def test_engine_on_the_gpu_names_what_fp32_names(
    name: str,
    precision: str,
    least: float,
    conversions: Conversions,
    models: Path,
    script: Script,
    tmp_path: Path,
) -> None:
    machine = Machine(builds=Builds(tmp_path))
    batches = _held_out_batches(script(name, "evaluate"), name)
    named = []
    for recipe in (
        Recipe(tf32=False), Recipe(precision, calibration=conversions.data(name), tf32=False),
    ):  # fmt: skip
        config = replace(read_config(models / name), recipe=recipe)
        engine = load_tensorrt(models / name / "1/model.onnx", config, 0, machine)
        context = engine.open()
        names = [spec.name for spec in engine.inputs]
        named.append(np.concatenate([
            context.run([{key: one[key] for key in names}])["logits"].argmax(1) for one in batches
        ]))  # fmt: skip
        context.close()
        engine.close()
    agreement = float((named[0] == named[1]).mean())
    print(f"{name}: {precision} agrees with FP32 on {agreement:.4f} of {len(named[0])}")
    assert agreement >= least


def _held_out_batches(evaluate: Any, name: str) -> list[dict[str, Any]]:
    if name == "digits-classify":
        pixels = evaluate.data.held_out_distorted()[0]
        return [{"pixels": pixels[at : at + 32]} for at in range(0, len(pixels), 32)]
    tokens = evaluate.tokenizer()
    texts = sorted((text for text, _ in evaluate.data.split()[1]), key=len)
    options = {"padding": True, "truncation": True, "max_length": 128, "return_tensors": "np"}
    return [dict(tokens(texts[at : at + 32], **options)) for at in range(0, len(texts), 32)]
