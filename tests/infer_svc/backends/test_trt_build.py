"""Engines of the demo models are built on a CPU; what cannot be built is named."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infer_svc.backends.shapes import profiles_of
from infer_svc.backends.tensorrt import onnx_inputs
from infer_svc.backends.trt_api import Api, load_api
from infer_svc.backends.trt_build import Recipe, make_plan
from mesh.errors import EngineError
from tests.infer_svc.backends.engines import RELU_PROFILE, one_node


@pytest.fixture(scope="module")
def api() -> Api:
    return load_api()


@pytest.mark.parametrize(
    ("name", "max_rows", "profiles"),
    [("digits-classify", 32, 1), ("digits-detect", 8, 1), ("language", 32, 3)],
)
def test_engine_of_the_demo_model_is_built(
    api: Api, models: Path, name: str, max_rows: int, profiles: int
) -> None:
    path = models / name / "1/model.onnx"
    wanted = profiles_of(onnx_inputs(path), max_rows, (16, 32, 64))
    assert len(wanted) == profiles
    plan = api.build(path, wanted)
    assert len(plan) > path.stat().st_size / 4


def test_model_that_cannot_be_parsed_is_named_with_the_reason(api: Api, tmp_path: Path) -> None:
    path = one_node(tmp_path / "odd.onnx", "NoSuchOperator")
    with pytest.raises(EngineError, match=r"cannot parse .*odd\.onnx: .*NoSuchOperator"):
        api.build(path, [RELU_PROFILE])
    (tmp_path / "no.onnx").write_bytes(b"not a model")
    with pytest.raises(EngineError, match=r"cannot parse .*no\.onnx"):
        api.build(tmp_path / "no.onnx", [{}])
    with pytest.raises(EngineError, match="cannot parse"):
        api.build(tmp_path / "missing.onnx", [{}])


def test_profile_that_does_not_fit_is_refused(api: Api, tmp_path: Path) -> None:
    path = one_node(tmp_path / "m.onnx", "Relu")
    with pytest.raises(EngineError):
        api.build(path, [{"x": ((4, 4), (2, 4), (1, 4))}])
    with pytest.raises(EngineError, match="cannot build"):
        api.build(path, [{}])


@pytest.mark.parametrize(
    ("tf32", "sparsity", "detailed"),
    [(True, False, False), (False, False, False), (True, True, False), (True, False, True)],
    ids=["default", "no_tf32", "sparsity", "detailed"],
)
def test_options_reach_the_builder(
    api: Api, tmp_path: Path, tf32: bool, sparsity: bool, detailed: bool
) -> None:
    trt, seen = api.trt, []

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.real = trt.Builder(logger)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            seen.append((
                config.get_flag(trt.BuilderFlag.TF32),
                config.get_flag(trt.BuilderFlag.SPARSE_WEIGHTS),
                config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED,
                config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
            ))  # fmt: skip
            return self.real.build_serialized_network(network, config)

    module = SimpleNamespace(**(vars(trt) | {"Builder": Builder}))
    path = one_node(tmp_path / "m.onnx", "Relu")
    recipe = Recipe(path, [RELU_PROFILE], 2**24, tf32, sparsity, detailed)
    layers: list[int] = []
    assert make_plan(
        module, trt.Logger(trt.Logger.ERROR), 0, recipe, None,
        lambda network: layers.append(network.num_layers),
    )  # fmt: skip
    assert layers == [1]
    assert seen == [(tf32, sparsity, detailed, 2**24)]


def test_options_of_the_api_change_the_engine_and_nothing_else_does(
    api: Api, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    path = models / "digits-classify/1/model.onnx"
    profiles = profiles_of(onnx_inputs(path), 4, (16,))
    plain = api.build(path, profiles)
    assert api.build(path, profiles) == plain
    assert api.build(path, profiles, detailed=True) != plain
    assert api.build(path, profiles, tf32=False) != plain
