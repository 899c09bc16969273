"""Graphs for older TensorRT: the same numbers from plain operators."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from infer_svc.build.copied import OPSET, copied
from infer_svc.build.graph import opset
from infer_svc.generation.bart import Bart
from infer_svc.generation.gpt2 import gpt2_step
from mesh.errors import SettingsError
from tests.infer_svc.generation.networks import BART, GPT2, run


def feeds(model: Any, rows: int, tokens: int, dtype: type[Any]) -> dict[str, Any]:
    """Return caches at random, and ids of rows that are not equally far."""
    random = np.random.default_rng(3)
    sizes = {"rows": rows, "tokens": tokens, "length": tokens}
    made: dict[str, Any] = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = [sizes[dim.dim_param] if dim.dim_param else dim.dim_value for dim in dims]
        if value.type.tensor_type.elem_type == TensorProto.INT64:
            made[value.name] = np.ones(shape, np.int64)
        else:
            made[value.name] = random.standard_normal(shape).astype(dtype)
    if "start" in made:
        made["start"] = np.arange(rows, dtype=np.int64) * 7
        made["count"][:] = tokens
        made["ids"] = random.integers(3, 50, (rows, tokens))
    return made


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("graph", ["gpt2 step", "bart step", "bart encoder"])
def test_numbers_are_the_same(graph: str, tokens: int, dtype: type[Any]) -> None:
    if graph == "gpt2 step":
        model = gpt2_step(GPT2.config, GPT2.weights, 48, dtype)
    else:
        bart = Bart(BART.config, BART.weights, dtype)
        model = bart.step(32, 12) if graph == "bart step" else bart.encoder(12)
    before = model.SerializeToString()
    made = copied(model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(made, full_check=True)
    assert opset(made) == OPSET
    kinds = {node.op_type for node in made.graph.node}
    assert not kinds & {"TensorScatter", "Attention"}
    given = feeds(model, 3, tokens, dtype)
    wanted, found = run(model, given), run(made, given)
    atol = 1e-5 if dtype == np.float32 else 2e-2
    for name, array in wanted.items():
        np.testing.assert_allclose(
            found[name].astype(np.float64), array.astype(np.float64), rtol=atol, atol=atol
        )


def test_row_at_the_end_of_its_cache_is_written_there_and_nowhere_else() -> None:
    model = copied(gpt2_step(GPT2.config, GPT2.weights, 48, np.float32))
    given = feeds(model, 2, 4, np.float32)
    given["start"] = np.array([44, 99], np.int64)  # beyond the end is the last place
    made = run(model, given)
    for row in range(2):
        np.testing.assert_array_equal(made["k_0_out"][row, :, :44], given["k_0"][row, :, :44])
        assert (made["k_0_out"][row, :, 44:] != given["k_0"][row, :, 44:]).all()


@pytest.mark.parametrize(
    ("node", "match"),
    [
        (helper.make_node("TensorScatter", ["c", "n", "s"], ["o"], axis=1), "TensorScatter"),
        (helper.make_node("TensorScatter", ["c", "n"], ["o"], axis=2, mode="linear"), "Tensor"),
        (helper.make_node("Attention", ["c", "n", "n"], ["o"]), "Attention"),
        (helper.make_node("Attention", ["c", "n", "n", "s"], ["o"], is_causal=1), "is_causal"),
    ],
)
def test_what_it_does_not_know_is_refused(node: Any, match: str) -> None:
    floats = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 8, 4]) for name in ("c", "n")
    ]
    start = helper.make_tensor_value_info("s", TensorProto.INT64, [1])
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [*floats, start], [out])
    with pytest.raises(SettingsError, match=match):
        copied(helper.make_model(graph))
