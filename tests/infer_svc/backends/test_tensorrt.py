"""Loading of engines; and engines against ONNX Runtime, on a GPU."""

import mmap
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from infer_svc.backends import tensorrt
from infer_svc.backends.cuda import device
from infer_svc.backends.machine import Machine
from infer_svc.backends.onnxruntime import load_onnxruntime
from infer_svc.backends.tensorrt import TensorRTEngine, load_tensorrt
from infer_svc.backends.tensorrt_context import TensorRTContext
from infer_svc.build.builds import Builds
from infer_svc.build.recipe import Recipe
from infer_svc.config import ModelConfig, read_config
from infer_svc.golden import difference
from mesh.errors import EngineError, InvalidInput, SettingsError
from mesh.tensor import NUMPY_DTYPES, Tensors
from tests.infer_svc import graphs
from tests.infer_svc.backends.fake_gpu import FakeApi, fake_device
from tests.infer_svc.graphs import write_model

MODELS = {"digits-classify": 32, "digits-detect": 8, "language": 32}
LENGTHS = (16, 32, 64, 128)
ON_GPU = (
    "max_batch_size: 8 optimization { execution_accelerators { "
    'gpu_execution_accelerator : [ { name : "tensorrt" } ] } }'
)


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


@dataclass
class Opened:
    """A demo model on the GPU in one precision."""

    reference: Any
    """ONNX Runtime's context of the same model in FP32."""
    engine: TensorRTEngine
    context: TensorRTContext
    tolerance: float
    """Of ||a - b|| / ||b|| between batches of other sizes, as the precision allows."""


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def engines(
    request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Opened]]:
    """The demo models in one precision."""
    found = {}
    machine = Machine(builds=Builds(tmp_path_factory.mktemp("engines")))
    for name in MODELS:
        path = models / name / "1/model.onnx"
        recipe = Recipe(request.param, tf32=False)
        config = replace(read_config(models / name), lengths=LENGTHS, recipe=recipe)
        engine = load_tensorrt(path, config, 0, machine)
        tolerance = 1e-5 if request.param == "fp32" else 1e-2
        reference = load_onnxruntime(path, 4).open()
        found[name] = Opened(reference, engine, engine.open(), tolerance)
    yield found
    for opened in found.values():
        opened.context.close()
        opened.engine.close()


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
def test_outputs_are_those_of_onnx_runtime(
    engines: dict[str, Opened], name: str, rows: int
) -> None:
    opened = engines[name]
    inputs = batch(name, rows)
    wanted, got = opened.reference.run([inputs]), opened.context.run([inputs])
    assert {spec.name for spec in opened.engine.outputs} == set(wanted)
    for key, array in wanted.items():
        assert got[key].shape == array.shape
        assert difference(got[key], array) <= 10 * opened.tolerance
        if name != "digits-detect":
            assert (got[key].argmax(1) == array.argmax(1)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_batch_of_one_equals_batch_of_many(engines: dict[str, Opened], name: str) -> None:
    opened = engines[name]
    inputs = batch(name, 8)
    many = {key: array.copy() for key, array in opened.context.run([inputs]).items()}
    for row in range(8):
        one = opened.context.run([{key: array[row : row + 1] for key, array in inputs.items()}])
        for key, array in one.items():
            assert difference(array[0], many[key][row]) <= opened.tolerance
            if name != "digits-detect":
                assert array[0].argmax() == many[key][row].argmax()


@pytest.mark.gpu
def test_padding_to_a_longer_bucket_changes_nothing(engines: dict[str, Opened]) -> None:
    opened = engines["language"]
    short = batch("language", 4, 16)
    alone = opened.context.run([short])["logits"].copy()
    padded = {key: np.pad(array, ((0, 0), (0, 48))) for key, array in short.items()}
    got = opened.context.run([padded])["logits"]
    assert difference(got, alone) <= opened.tolerance
    assert (got.argmax(1) == alone.argmax(1)).all()


@pytest.mark.gpu
def test_shape_beyond_the_engine_is_refused_and_the_next_run_works(
    engines: dict[str, Opened],
) -> None:
    context = engines["language"].context
    with pytest.raises(InvalidInput, match="wanted at most"):
        context.run([batch("language", 1, 129)])
    with pytest.raises(InvalidInput, match="wanted at most"):
        context.run([batch("language", 33, 16)])
    assert context.run([batch("language", 2, 16)])["logits"].shape == (2, 46)


@pytest.mark.gpu
def test_contexts_in_threads_of_their_own_do_not_mix(engines: dict[str, Opened]) -> None:
    opened = engines["digits-classify"]
    wrong: list[str] = []

    def work(seed: int) -> None:
        context = opened.engine.open()
        for number in range(200):
            inputs = batch("digits-classify", 1 + number % 32, seed=seed * 1000 + number)
            wanted = opened.reference.run([inputs])["logits"]
            if difference(context.run([inputs])["logits"], wanted) > 10 * opened.tolerance:
                wrong.append(f"thread {seed} batch {number}")
        context.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_serving_allocates_nothing(engines: dict[str, Opened], name: str) -> None:
    context, gpu = engines[name].context, device(0)
    inputs = batch(name, MODELS[name])
    for _ in range(20):
        context.run([inputs])
    usage, (free, _) = replace(gpu.usage), gpu.memory()
    for _ in range(200):
        context.run([inputs])
    assert gpu.usage == usage
    assert abs(gpu.memory()[0] - free) < 64 * 1024**2  # of all processes


@pytest.mark.gpu
def test_rows_in_pinned_memory_go_to_the_gpu_from_there(engines: dict[str, Opened]) -> None:
    opened, gpu = engines["digits-classify"], device(0)
    memory = memoryview(mmap.mmap(-1, 32 * 3072))
    gpu.register(memory)
    pixels = np.frombuffer(memory, np.uint8).reshape(32, 32, 32, 3)
    pixels[...] = batch("digits-classify", 32)["pixels"]
    got = opened.context.run([{"pixels": row[None]} for row in pixels])["logits"]
    wanted = opened.reference.run([{"pixels": np.array(pixels)}])["logits"]
    assert difference(got, wanted) <= 10 * opened.tolerance
    gpu.unregister_all()


WARM_UP = """
import sys
from pathlib import Path
from dataclasses import dataclass, replace
from infer_svc.backends.machine import Machine
from infer_svc.backends.tensorrt import load_tensorrt
from infer_svc.build.builds import Builds
from infer_svc.config import read_config
models, cache, name, kernels, graphs = sys.argv[1:]
folder = Path(models) / name
machine = Machine(builds=Builds(Path(cache)), kernels=kernels, graphs=graphs == "graphs")
config = replace(read_config(folder), lengths=(16, 32, 64, 128))
engine = load_tensorrt(folder / "1/model.onnx", config, 0, machine)
contexts = [engine.open() for _ in range(2)]
for context in contexts:
    context.rebuild()
    context.close()
engine.close()
"""


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["eager", "none"])
@pytest.mark.parametrize("graphs", ["graphs", "plain"])
def test_process_that_opens_contexts_ends_well_every_time(
    models: Path, tmp_path: Path, kernels: str, graphs: str
) -> None:
    """Without the caches of an earlier one: a process in twenty ended in a signal once."""
    processes = []
    for turn in range(6):
        name = list(MODELS)[turn % 3]
        command = [sys.executable, "-X", "faulthandler", "-c", WARM_UP, str(models)]
        command += [str(tmp_path / str(turn)), name, kernels, graphs]
        processes.append((name, subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            cwd=models.parent,
        )))  # fmt: skip
    ended = [(name, process.communicate()[1], process.returncode) for name, process in processes]
    assert [one for one in ended if one[2]] == []


@pytest.mark.gpu
def test_numbers_in_bfloat16_are_computed_with(tmp_path: Path) -> None:
    twice = helper.make_node("Add", ["x", "x"], ["y"])
    values = [graphs.value("x", "BF16")], [graphs.value("y", "BF16")]
    folder = write_model(tmp_path, "m", graphs.model([twice], *values), ON_GPU)
    machine = Machine(builds=Builds(tmp_path / "engines"))
    engine = load_tensorrt(folder / "1/model.onnx", read_config(folder), 0, machine)
    context = engine.open()
    for rows in (1, 3, 8):
        given = np.arange(rows * 4).reshape(rows, 4).astype(NUMPY_DTYPES["BF16"])
        np.testing.assert_array_equal(context.run([{"x": given}])["y"], given + given)
    context.close()
    engine.close()
