"""Engines of the demo models are built on a CPU; what cannot be built is named."""

from pathlib import Path

import pytest

from infer_svc.backends.tensorrt import onnx_inputs, profiles_of
from infer_svc.backends.trt_api import Api, load_api
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
