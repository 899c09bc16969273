"""Loading of engines; and engines against ONNX Runtime, on a GPU."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer_svc.backends import tensorrt
from infer_svc.backends.machine import Machine
from infer_svc.backends.onnxruntime import load_onnxruntime
from infer_svc.backends.tensorrt import load_tensorrt
from infer_svc.build.builds import Builds
from infer_svc.config import ModelConfig, read_config
from mesh.errors import EngineError, InvalidInput, SettingsError
from mesh.tensor import Tensors
from tests.infer_svc import graphs
from tests.infer_svc.backends.fake_gpu import FakeApi, fake_device
from tests.infer_svc.graphs import write_model

MODELS = {"digits-classify": 32, "digits-detect": 8, "language": 32}
LENGTHS = (16, 32, 64, 128)


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is none; TensorRT itself is the real one."""
    gpu, _, _ = fake_device()
    monkeypatch.setattr(tensorrt, "device", lambda _: gpu)


def plan_folder(root: Path, plan: bytes) -> tuple[Path, ModelConfig]:
    folder = write_model(root, "m", plan, 'backend: "tensorrt"', filename="model.plan")
    return folder / "1/model.plan", read_config(folder)


@pytest.mark.usefixtures("without_gpu")
def test_plan_of_the_repository_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loading(FakeApi):
        is_rtx, flavour, version = True, "tensorrt_rtx", "1.5"

        def load_plugins(self, paths: list[Path]) -> None:
            assert not paths

    fake: Any = Loading(4)
    monkeypatch.setattr(tensorrt, "tensorrt_api", lambda: fake)
    (tmp_path / "real.onnx").write_bytes(graphs.identity())
    path, config = plan_folder(tmp_path, str(tmp_path / "real.onnx").encode())
    engine = load_tensorrt(
        path, config, 0, Machine(builds=Builds(tmp_path / "engines", api=lambda: fake))
    )
    assert [spec.name for spec in engine.outputs] == ["y"]
    assert len(fake.loaded) == 1


@pytest.mark.usefixtures("without_gpu")
def test_foreign_plan_without_a_manifest_is_refused_with_what_runs_here_and_what_to_do(
    tmp_path: Path,
) -> None:
    path, config = plan_folder(tmp_path, b"built elsewhere")
    with pytest.raises(EngineError) as caught:
        load_tensorrt(path, config, 0, Machine(builds=Builds(tmp_path / "engines")))
    text = str(caught.value)
    assert text.startswith(f"plan {path}: tensorrt_rtx 1.")
    assert "cannot load a plan of 15 bytes" in text
    assert "build it anew with this version on this kind of GPU" in text


@pytest.mark.usefixtures("without_gpu")
def test_plan_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path, config = plan_folder(tmp_path, b"")
    path.unlink()
    path.mkdir()
    with pytest.raises(EngineError, match=r"plan .*/model\.plan cannot be read: Is a directory"):
        load_tensorrt(path, config, 0, Machine(builds=Builds(tmp_path / "engines")))


def test_process_without_engines_refuses_a_model_for_tensorrt(tmp_path: Path) -> None:
    path, config = plan_folder(tmp_path, b"")
    with pytest.raises(SettingsError, match="model 'm' wants TensorRT, this process has no engin"):
        load_tensorrt(path, config, 0, Machine())


@pytest.fixture(scope="module")
def engines(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Any, Any, Any]]]:
    """For each demo model: ONNX Runtime's context, the engine, and a context of it."""
    found = {}
    builds = Builds(tmp_path_factory.mktemp("engines"))
    for name in MODELS:
        path = models / name / "1/model.onnx"
        config = replace(read_config(models / name), lengths=LENGTHS)
        engine = load_tensorrt(path, config, 0, Machine(builds=builds))
        found[name] = (load_onnxruntime(path, 4).open(), engine, engine.open())
    yield found
    for _, engine, context in found.values():
        context.close()
        engine.close()


def batch(name: str, rows: int, length: int = 30, seed: int = 0) -> Tensors:
    random = np.random.default_rng(seed)
    if name == "language":
        mask = np.zeros((rows, length), np.int64)
        for row, count in enumerate(random.integers(3, length + 1, rows)):
            mask[row, :count] = 1
        ids = random.integers(1, 500, (rows, length)) * mask
        return {"input_ids": ids, "attention_mask": mask}
    size = 32 if name == "digits-classify" else 320
    return {"pixels": random.integers(0, 255, (rows, size, size, 3)).astype(np.uint8)}


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_outputs_are_those_of_onnx_runtime(engines: Any, name: str, rows: int) -> None:
    reference, engine, context = engines[name]
    inputs = batch(name, rows)
    wanted, got = reference.run([inputs]), context.run([inputs])
    assert {spec.name for spec in engine.outputs} == set(wanted)
    for key, array in wanted.items():
        assert got[key].shape == array.shape
        assert np.abs(got[key] - array).max() <= 2e-2 * max(1, np.abs(array).max())
        if name != "digits-detect":
            assert (got[key].argmax(1) == array.argmax(1)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_batch_of_one_equals_batch_of_many(engines: Any, name: str) -> None:
    _, _, context = engines[name]
    inputs = batch(name, 8)
    many = {key: array.copy() for key, array in context.run([inputs]).items()}
    for row in range(8):
        one = context.run([{key: array[row : row + 1] for key, array in inputs.items()}])
        for key, array in one.items():
            difference = np.abs(array[0] - many[key][row]).max()
            assert difference <= 1e-2 * max(1, np.abs(many[key][row]).max())


@pytest.mark.gpu
def test_padding_to_a_longer_bucket_changes_nothing(engines: Any) -> None:
    _, _, context = engines["language"]
    short = batch("language", 4, 16)
    alone = context.run([short])["logits"].copy()
    padded = {key: np.pad(array, ((0, 0), (0, 48))) for key, array in short.items()}
    assert np.abs(context.run([padded])["logits"] - alone).max() <= 1e-2 * np.abs(alone).max()


@pytest.mark.gpu
def test_shape_beyond_the_engine_is_refused_and_the_next_run_works(engines: Any) -> None:
    _, _, context = engines["language"]
    with pytest.raises(InvalidInput, match="wanted at most"):
        context.run([batch("language", 1, 129)])
    with pytest.raises(InvalidInput, match="wanted at most"):
        context.run([batch("language", 33, 16)])
    assert context.run([batch("language", 2, 16)])["logits"].shape == (2, 46)


@pytest.mark.gpu
def test_contexts_in_threads_of_their_own_do_not_mix(engines: Any) -> None:
    reference, engine, _ = engines["digits-classify"]
    wrong: list[str] = []

    def work(seed: int) -> None:
        context = engine.open()
        for number in range(200):
            inputs = batch("digits-classify", 1 + number % 32, seed=seed * 1000 + number)
            wanted = reference.run([inputs])["logits"]
            got = context.run([inputs])["logits"]
            if np.abs(got - wanted).max() > 2e-2 * max(1, np.abs(wanted).max()):
                wrong.append(f"thread {seed} batch {number}")
        context.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
