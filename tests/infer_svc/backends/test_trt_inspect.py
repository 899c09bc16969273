"""Layers of an engine, told by each version in its own words."""

import json
from types import SimpleNamespace

import pytest

from infer_svc.backends.trt_inspect import Layer, LayerTimes, parse_layers, watch
from mesh.errors import EngineError
from tests.infer_svc.backends.engines import FakeContext, FakeProfiler

CONV = {"Name": "conv + relu", "LayerType": "CaskConvolution", "TacticName": "sm90"}
V10 = {
    "Layers": [
        CONV | {
            "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP16 format"}],
            "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP32"}],
        }
    ],
    "Bindings": ["x", "y"],
}  # fmt: skip
V11 = {
    "Layers": [
        CONV | {
            "Inputs": [{"Name": "x", "Format": "LINEAR", "Datatype": "FP16"}],
            "Outputs": [{"Name": "y", "Format": "LINEAR", "DataType": "FP32"}],
        }
    ],
    "I/O Tensors": [{"Name": "x"}, {"Name": "y"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("told", "inputs", "outputs"),
    [
        pytest.param(V10, "x Row major linear FP16 format", "y Row major linear FP32", id="10"),
        pytest.param(V11, "x FP16", "y FP32", id="11"),
    ],
)
def test_layer_has_its_kind_and_types(told: dict[str, object], inputs: str, outputs: str) -> None:
    (layer,) = parse_layers(json.dumps(told))
    assert (layer.name, layer.kind) == ("conv + relu", "CaskConvolution")
    assert (layer.inputs, layer.outputs) == ((inputs,), (outputs,))
    assert layer.details["TacticName"] == "sm90"


def test_engine_that_is_not_detailed_has_names_only() -> None:
    assert parse_layers('{"Layers": ["a", "b"]}') == [Layer("a"), Layer("b")]


def test_layer_with_little_to_tell_is_taken() -> None:
    assert parse_layers('{"Layers": [{"Name": "a", "Inputs": [{}]}]}')[0].inputs == ("",)


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", "null"])
def test_text_without_layers_is_refused_with_the_fix(text: str) -> None:
    with pytest.raises(EngineError, match="wanted JSON with Layers; build the engine with"):
        parse_layers(text)


def test_times_are_means_over_runs_the_worst_first() -> None:
    times = LayerTimes()
    for ms in (1.0, 3.0):
        times.add("conv", ms)
    times.add("softmax", 5.0)
    times.add("relu", 0.5)
    assert times.worst() == [("softmax", 5.0, 1), ("conv", 2.0, 2), ("relu", 0.5, 1)]
    assert times.worst(1) == [("softmax", 5.0, 1)]
    times.clear()
    assert times.worst() == []


def test_watched_context_reports_to_a_profiler_that_is_kept() -> None:
    context = FakeContext()
    times = watch(SimpleNamespace(IProfiler=FakeProfiler), context)
    assert context.profiler is times.profiler
    for _ in range(2):
        context.execute_async_v3(0)
    assert times.worst() == [("conv", 2.0, 2), ("relu", 1.0, 2)]
