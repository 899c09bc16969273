"""Promises about the model repository as a whole."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

REPOSITORY = Path(__file__).parents[2] / "models"
NAMES = ("digits-classify", "digits-detect", "language")
TYPES = {"TYPE_UINT8": "UINT8", "TYPE_INT64": "INT64", "TYPE_FP32": "FLOAT"}
# Contrib domains, and standard operators that TensorRT refuses or that make output sizes unknown.
REFUSED = {"NonMaxSuppression", "NonZero", "Loop", "If", "Scan"}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_models_stay_small_enough_to_commit() -> None:
    sizes = [path.stat().st_size for path in REPOSITORY.glob("*/1/model.onnx")]
    assert len(sizes) == len(NAMES)
    assert sum(sizes) < 10_000_000


def test_graph_uses_standard_operators_only(name: str) -> None:
    model = onnx.load(str(REPOSITORY / name / "1" / "model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert [opset.domain for opset in model.opset_import] == [""]
    assert model.opset_import[0].version >= 17
    assert not REFUSED & {node.op_type for node in model.graph.node}


def test_config_agrees_with_the_graph(name: str, config: Callable[[str], Any]) -> None:
    wanted = config(name)
    graph = onnx.load(str(REPOSITORY / name / "1" / "model.onnx")).graph
    assert wanted.name == name
    assert wanted.max_batch_size > 1
    assert _declared(wanted.input) == _exported(graph.input)
    assert _declared(wanted.output) == _exported(graph.output)


def test_warmup_names_every_input(name: str, config: Callable[[str], Any]) -> None:
    wanted = config(name)
    assert wanted.model_warmup
    for sample in wanted.model_warmup:
        assert set(sample.inputs) == {tensor.name for tensor in wanted.input}
        assert sample.batch_size <= wanted.max_batch_size


def test_every_logit_has_a_label(name: str, config: Callable[[str], Any]) -> None:
    labels = (REPOSITORY / name / "labels.txt").read_text(encoding="utf-8").splitlines()
    # A detector's rows are four numbers for the box, then the classes.
    box = 4 if name == "digits-detect" else 0
    assert len(set(labels)) == len(labels) == config(name).output[0].dims[0] - box


def test_both_digit_models_hold_the_same_digits_out(
    script: Callable[[str, str], ModuleType],
) -> None:
    cuts = {script(name, "data").FIRST_HELD_OUT for name in NAMES if name != "language"}
    assert len(cuts) == 1


def _declared(tensors: Any) -> dict[str, tuple[str, list[int]]]:
    from tritonclient.grpc import model_config_pb2

    names = model_config_pb2.DataType
    return {one.name: (TYPES[names.Name(one.data_type)], list(one.dims)) for one in tensors}


def _exported(values: Any) -> dict[str, tuple[str, list[int]]]:
    """Describe graph tensors in the terms of a config: no batch axis, -1 for any size."""
    found = {}
    for value in values:
        tensor = value.type.tensor_type
        first, *rest = tensor.shape.dim
        assert first.dim_param, "the batch axis must be free"
        sizes = [axis.dim_value or -1 for axis in rest]
        found[value.name] = (onnx.TensorProto.DataType.Name(tensor.elem_type), sizes)
    return found
