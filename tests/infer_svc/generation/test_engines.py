"""Which networks a model that generates gets, and what its engines are built for."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import pytest

from infer_svc.backends.machine import Machine
from infer_svc.backends.tensorrt import tensorrt_api
from infer_svc.backends.trt_api import Api
from infer_svc.build import graph
from infer_svc.build.copied import copied
from infer_svc.build.order import declared_inputs
from infer_svc.config import Instances
from infer_svc.generation import engines
from infer_svc.generation.engines import ENCODER, STEP, encoder_profiles, open_stepper, step_profile
from infer_svc.generation.stepper import OrtStepper
from mesh.errors import EngineError, SettingsError
from tests.infer_svc.generation.networks import BART_LENGTH, SOURCE
from tests.infer_svc.generation.test_generator import model_config, write_version

MODELS = Path(__file__).parents[3] / "models"


def test_cpu_is_the_default_with_or_without_an_encoder(tmp_path: Path) -> None:
    for name, source in (("gpt2", 0), ("bart", SOURCE)):
        version = write_version(tmp_path / name, name, {})
        stepper = open_stepper(version, model_config(name), Machine())
        assert isinstance(stepper, OrtStepper)
        assert stepper.source_length == source


@pytest.mark.parametrize(
    ("backend", "gpus", "match"),
    [
        ("python", (), "wants the backend 'python'"),
        ("tensorrt", (0, 1), r"GPUs \[0, 1\], but generates on one.*--gpu-each"),
        ("tensorrt", (0,), "this process has no engines"),
    ],
)
def test_what_cannot_be_had_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    gpus: tuple[int, ...],
    match: str,
) -> None:
    monkeypatch.setattr(engines, "places", lambda config: dict.fromkeys(gpus, 1))
    version = write_version(tmp_path / "1", "bart", {})
    config = replace(model_config("m"), backend=backend, instances=(Instances(1, gpus),))
    with pytest.raises(SettingsError, match=match):
        open_stepper(version, config, Machine())


def test_tensorrt_that_writes_no_caches_gets_a_graph_that_copies_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = ModuleType("tensorrt")
    old.__dict__.update(__version__="10.12.0.36", IRuntimeConfig=object, Logger=Mock())
    monkeypatch.setattr(engines, "tensorrt_api", lambda: Api(old, own_logger=True))
    monkeypatch.setattr(engines, "places", lambda config: {0: 1})
    version = write_version(tmp_path / "1", "gpt2", {})
    config = replace(model_config("m"), backend="tensorrt", instances=(Instances(1, (0,)),))
    builds = Mock()
    builds.engine_for.side_effect = EngineError("far enough")
    with pytest.raises(EngineError, match="far enough"):
        open_stepper(version, config, Machine(builds=builds))
    assert not builds.engine_for.call_args.args[1].recipe.in_place
    assert "caches are copied at each step" in caplog.text


def test_profiles_are_for_all_slots_for_pieces_and_for_each_length(tmp_path: Path) -> None:
    version = write_version(tmp_path / "1", "bart", {})
    step = step_profile(declared_inputs(version / STEP), 8)
    assert step["ids"] == ((1, 1), (8, 1), (8, BART_LENGTH))
    assert step["k_0"][2][0] == step["xk_0"][2][0] == step["xlen"][2][0] == 8
    lengths = encoder_profiles(declared_inputs(version / ENCODER), (4, 8, 500), SOURCE)
    assert [profile["input_ids"][1] for profile in lengths] == [(1, 4), (1, 8), (1, SOURCE)]
    assert all(profile["xk_0"][0] == profile["xk_0"][2] for profile in lengths)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(
    "file", ["dates/1/encoder.onnx", "dates/1/step.onnx", "numbers/1/step.onnx"]
)
def test_tensorrt_builds_the_models_of_the_demo(tmp_path: Path, file: str, in_place: bool) -> None:
    path = MODELS / file
    if not in_place:
        path = tmp_path / "copied.onnx"
        graph.save(copied(graph.load(MODELS / file)), path)
    inputs = declared_inputs(path)
    profiles = (
        encoder_profiles(inputs, (16, 32), 64) if "encoder" in file else [step_profile(inputs, 32)]
    )
    assert len(tensorrt_api().build(path, profiles)) > 100_000
