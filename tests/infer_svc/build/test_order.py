from dataclasses import replace
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from infer_svc.backends.tensorrt import onnx_inputs
from infer_svc.build.order import Order, declared_inputs, order_for
from infer_svc.build.recipe import Recipe
from infer_svc.config import read_config
from mesh.errors import SettingsError
from tests.infer_svc import graphs
from tests.infer_svc.build.orders import FULL, RTX, order
from tests.infer_svc.graphs import write_model


def test_order_has_what_the_config_says(tmp_path: Path) -> None:
    config = (
        'max_batch_size: 8 backend: "tensorrt" '
        'parameters { key: "length_buckets" value { string_value: "16,32" } } '
        'parameters { key: "plugins" value { string_value: "lib/a.so, b.so" } } '
        'optimization { execution_accelerators { gpu_execution_accelerator : [ { name : "tensorrt" '
        'parameters { key: "precision_mode" value: "FP16" } } ] } }'
    )
    folder = write_model(tmp_path, "total", graphs.total(), config)
    made = order_for(folder / "1/model.onnx", read_config(folder), 2, tmp_path / "engines")
    assert made == Order(
        model="total",
        onnx=folder / "1/model.onnx",
        recipe=Recipe("fp16"),
        profiles=[{"ids": ((1, n), (8, n), (8, n))} for n in (16, 32)],
        plugins=(folder / "lib/a.so", folder / "b.so"),
        gpu=2,
        cache=tmp_path / "engines",
    )


def test_order_comes_back_from_its_json(tmp_path: Path) -> None:
    made = order(
        tmp_path, recipe=Recipe("int8", keep=("a",), calibration=Path("x.npz")), gpu=3,
        plugins=(Path("/p.so"),),
    )  # fmt: skip
    assert Order.from_json(made.to_json()) == made


def test_key_follows_model_recipe_profiles_plugins_and_target(tmp_path: Path) -> None:
    made = order(tmp_path)
    library = tmp_path / "p.so"
    library.write_bytes(b"1")
    keys = [made.key(RTX)]
    assert made.key(RTX) == keys[0]
    keys.append(made.key(FULL))
    keys.append(replace(made, recipe=Recipe("fp16")).key(RTX))
    keys.append(replace(made, recipe=Recipe(sparsity=True)).key(RTX))
    keys.append(replace(made, profiles=[{"x": ((1, 4), (8, 4), (8, 4))}]).key(RTX))
    keys.append(replace(made, plugins=(library,)).key(RTX))
    library.write_bytes(b"2")
    keys.append(replace(made, plugins=(library,)).key(RTX))
    made.onnx.write_bytes(graphs.identity())
    keys.append(made.key(RTX))
    assert len({key.digest for key in keys}) == len(keys)


def test_name_gpu_and_place_of_the_cache_do_not_change_the_key(tmp_path: Path) -> None:
    made = order(tmp_path)
    other = replace(made, model="other", gpu=5, cache=tmp_path / "elsewhere")
    assert other.key(RTX) == made.key(RTX)


def test_plugin_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"plugin library .*no\.so cannot be read"):
        order(tmp_path, plugins=(tmp_path / "no.so",)).key(RTX)


def test_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    for content in (b"garbage", b" "):
        with pytest.raises(SettingsError, match=r"model\.onnx is no ONNX model"):
            order(tmp_path / str(len(content)), content)
    with pytest.raises(SettingsError, match=r"no\.onnx is no ONNX model: .*No such file"):
        declared_inputs(tmp_path / "no.onnx")


@pytest.mark.parametrize("name", ["digits-classify", "digits-detect", "language"])
def test_inputs_are_those_that_onnx_runtime_takes(models: Path, name: str) -> None:
    path = models / name / "1/model.onnx"
    found = [(spec.name, spec.shape) for spec in declared_inputs(path)]
    assert found == [(spec.name, spec.shape) for spec in onnx_inputs(path)]


def test_model_with_a_node_of_a_plugin_can_be_ordered(tmp_path: Path) -> None:
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    node = helper.make_node("EfficientNMS_TRT", ["x", "w"], ["y"])
    inputs = [graphs.value("x"), graphs.value("w", dims=(1,))]
    content = graphs.model([node], inputs, [graphs.value("y")], [weights])
    assert order(tmp_path, content).profiles == [{"x": ((1, 4), (4, 4), (4, 4))}]
