"""A lane's buffers, copies and graphs, on a GPU that is none (`fake_gpu.py`)."""

import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer_svc.backends.cuda import Device
from infer_svc.backends.errors import DeviceLost, OutOfMemory
from infer_svc.backends.machine import Machine
from infer_svc.backends.onnxruntime import load_onnxruntime
from infer_svc.backends.tensorrt import TensorRTEngine
from infer_svc.backends.tensorrt_context import TensorRTContext
from infer_svc.backends.trt_api import Kernels
from infer_svc.faults import Fault, Faults
from infer_svc.golden import difference
from mesh.errors import EngineError, InvalidInput
from mesh.tensor import Tensors
from tests.infer_svc import graphs
from tests.infer_svc.backends.fake_gpu import (
    FakeApi,
    FakeDriver,
    FakeExecution,
    FakeLibcuda,
    fake_device,
)
from tests.infer_svc.backends.test_tensorrt import batch
from tests.infer_svc.graphs import write_model

LENGTHS = (16, 32, 64)
SHAPES = 4 * len(LENGTHS)
"""That an engine runs for up to 8 rows of these lengths: 1, 2, 4 or 8 rows."""


@dataclass
class Rig:
    """An engine of a demo model on the fake GPU, and what stands behind it."""

    engine: TensorRTEngine
    gpu: Device
    driver: FakeDriver
    library: FakeLibcuda
    api: FakeApi
    faults: Faults

    def open(self) -> TensorRTContext:
        return self.engine.open()


def make(models: Path, name: str, rows: int = 8, *, captures: bool = True, fault: str = "") -> Rig:
    gpu, driver, library = fake_device()
    api: Any = FakeApi(rows, LENGTHS, captures_graphs=captures)
    injected = Faults({fault: Fault(1.0)} if fault else {})
    engine = TensorRTEngine(api, gpu, plan_of(models, name), Machine(faults=injected))
    return Rig(engine, gpu, driver, library, api, injected)


def plan_of(models: Path, name: str) -> Path:
    """Return what the fake TensorRT takes for a plan: the name of an ONNX file."""
    plan = Path(tempfile.mkdtemp()) / "model.plan"
    plan.write_text(str(models / name / "1/model.onnx"))
    return plan


def reference(models: Path, name: str, inputs: Tensors) -> Tensors:
    return load_onnxruntime(models / name / "1/model.onnx", 1).open().run([inputs])


def same(got: Tensors, wanted: Tensors) -> None:
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        assert got[name].shape == array.shape
        assert difference(got[name], array) <= 1e-5


def split(inputs: Tensors, *rows: int) -> list[Tensors]:
    ends = np.cumsum(rows)
    return [
        {name: array[end - count : end] for name, array in inputs.items()}
        for count, end in zip(rows, ends, strict=True)
    ]


@pytest.fixture(params=[True, False], ids=["own-graphs", "captured-graphs"])
def captures(request: pytest.FixtureRequest) -> Iterator[bool]:
    yield request.param


@pytest.mark.parametrize("name", ["digits-classify", "digits-detect", "language"])
@pytest.mark.parametrize("rows", [(1,), (3,), (1, 1, 1), (2, 3, 1), (8,)], ids=str)
def test_outputs_are_those_of_onnx_runtime(
    models: Path, name: str, rows: tuple[int, ...], captures: bool
) -> None:
    rig = make(models, name, captures=captures)
    context = rig.open()
    inputs = batch(name, sum(rows))
    same(context.run(split(inputs, *rows)), reference(models, name, inputs))
    context.close()


def test_first_size_may_be_open_without_batches(tmp_path: Path) -> None:
    write_model(tmp_path, "text", graphs.identity(dims=("length", 4)))
    context = make(tmp_path, "text", 0).open()
    for length in (1, 3, 16, 17, 64):
        x = np.arange(4.0 * length, dtype=np.float32).reshape(length, 4)
        np.testing.assert_array_equal(context.run([{"x": x}])["y"], x)


def test_runs_one_after_the_other_do_not_mix(models: Path, captures: bool) -> None:
    context = make(models, "language", captures=captures).open()
    for number, length in enumerate((30, 10, 64, 16, 17, 3)):
        inputs = batch("language", 1 + number, length, seed=number)
        same(context.run([inputs]), reference(models, "language", inputs))


def test_rows_in_registered_memory_go_to_the_gpu_from_where_they_are(models: Path) -> None:
    rig = make(models, "digits-classify")
    context = rig.open()
    memory: Any = np.zeros(8 * 3072, np.uint8)
    inputs = batch("digits-classify", 8)
    memory[:] = inputs["pixels"].ravel()
    rows: list[Tensors] = [{"pixels": row[None]} for row in memory.reshape(8, 32, 32, 3)]
    before = rig.library.calls["to_device"]
    context.run(rows)
    assert rig.library.calls["to_device"] == before + 1  # joined in pinned memory
    rig.gpu.register(memoryview(memory))
    assert rig.gpu.usage.pinned_bytes >= memory.nbytes
    before = rig.library.calls["to_device"]
    same(context.run(rows), reference(models, "digits-classify", inputs))
    assert rig.library.calls["to_device"] == before + 8
    rig.gpu.unregister_all()
    assert rig.library.pinned == {}
    same(context.run(rows), reference(models, "digits-classify", inputs))


def test_row_that_is_not_all_in_registered_memory_is_copied_first(models: Path) -> None:
    rig = make(models, "digits-classify")
    context = rig.open()
    memory: Any = np.zeros(2 * 3072, np.uint8)
    rig.gpu.register(memoryview(memory)[: 3072 + 100])
    inputs: Tensors = {"pixels": memory.reshape(2, 32, 32, 3)}
    before = rig.library.calls["to_device"]
    same(context.run(split(inputs, 1, 1)), reference(models, "digits-classify", inputs))
    assert rig.library.calls["to_device"] == before + 1


def test_padding_is_counted(models: Path) -> None:
    context = make(models, "language").open()
    context.run([batch("language", 3, 20)])
    times = context.times
    assert (times.elements, times.run_elements) == (2 * 3 * 20, 2 * 4 * 32)
    assert times.run_s > 0
    assert times.h2d_s >= 0
    assert times.d2h_s >= 0


def test_serving_allocates_and_frees_nothing_and_makes_no_context(
    models: Path, captures: bool
) -> None:
    rig = make(models, "language", captures=captures)
    context = rig.open()
    calls, usage, made = dict(rig.driver.calls), replace(rig.gpu.usage), rig.api.made
    for number in range(200):
        context.run([batch("language", 1 + number % 8, 3 + number % 62, seed=number)])
    assert rig.driver.calls == calls
    assert rig.gpu.usage == usage
    assert rig.api.made == made


def test_graph_is_launched_for_every_shape_that_was_warmed_up(models: Path) -> None:
    rig = make(models, "digits-classify", captures=False)
    context = rig.open()
    assert len(rig.library.graphs) == 4  # of 1, 2, 4 and 8 rows
    for rows in (1, 2, 3, 5, 8):
        inputs = batch("digits-classify", rows, seed=rows)
        same(context.run([inputs]), reference(models, "digits-classify", inputs))
    assert rig.library.calls["launch"] == 5
    context.close()
    assert rig.library.calls["graph_destroy"] == 4


def test_engine_that_no_graph_can_hold_runs_without(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make(models, "digits-classify", captures=False)
    rig.library.fail_capture = True
    context = rig.open()
    inputs = batch("digits-classify", 3)
    same(context.run([inputs]), reference(models, "digits-classify", inputs))
    assert rig.library.calls["launch"] == 0
    assert "no graph" in caplog.text


def test_rebuilding_keeps_buffers_and_gives_the_same_answers(models: Path, captures: bool) -> None:
    rig = make(models, "language", captures=captures)
    context = rig.open()
    usage, calls = replace(rig.gpu.usage), dict(rig.driver.calls)
    inputs = batch("language", 3, 20)
    wanted = {name: array.copy() for name, array in context.run([inputs]).items()}
    for _ in range(3):
        context.rebuild()
        same(context.run([inputs]), wanted)
    assert rig.gpu.usage == usage
    assert rig.driver.calls == calls


def test_only_the_context_that_ran_last_is_made_anew(models: Path) -> None:
    rig = make(models, "language")
    context = rig.open()
    context.run([batch("language", 3, 20)])
    before = dict(context._runs)
    context.rebuild()
    changed = {key for key, run in context._runs.items() if run is not before[key]}
    assert changed == {(1, ((4, 32), (4, 32)))}
    assert before.keys() == context._runs.keys()


def test_closing_gives_everything_back(models: Path) -> None:
    rig = make(models, "language")
    contexts = [rig.open() for _ in range(3)]
    assert rig.gpu.usage.contexts == 3 * SHAPES
    assert rig.gpu.usage.device_bytes > 0
    for context in contexts:
        context.close()
    usage = rig.gpu.usage
    assert (usage.contexts, usage.pinned_bytes, usage.device_bytes) == (0, 0, 0)
    assert usage.allocations == usage.frees
    rig.engine.close()


def test_nothing_outlives_the_end_of_a_context_that_pycuda_could_not_free(
    models: Path, captures: bool
) -> None:
    rig = make(models, "language", captures=captures)
    context = rig.open()
    context.run([batch("language", 3, 20)])
    assert rig.driver.alive["pinned"] > 1
    context.close()
    assert +rig.driver.alive == {}
    assert rig.driver.leaked == []


def test_context_that_cannot_be_opened_gives_back_what_it_has(models: Path) -> None:
    rig = make(models, "digits-classify")
    rig.api.loaded[0].refuse = lambda: True
    with pytest.raises(EngineError, match="refused the batch"):
        rig.open()
    assert rig.gpu.usage.contexts == rig.gpu.usage.device_bytes == 0
    assert rig.driver.calls["mem_alloc"] == rig.driver.calls["free"]


def test_engine_is_loaded_anew_from_its_plan(models: Path) -> None:
    rig = make(models, "digits-classify")
    context = rig.open()
    context.close()
    rig.engine.reload()
    assert len(rig.api.loaded) == 2
    inputs = batch("digits-classify", 2)
    same(rig.open().run([inputs]), reference(models, "digits-classify", inputs))


def test_engine_that_refuses_a_batch_is_an_error_and_the_next_run_works(models: Path) -> None:
    rig = make(models, "digits-classify")
    context = rig.open()
    rig.api.loaded[0].refuse = lambda: True
    with pytest.raises(EngineError, match="TensorRT refused the batch: it said nothing"):
        context.run([batch("digits-classify", 1)])
    rig.api.loaded[0].refuse = lambda: False
    inputs = batch("digits-classify", 1, seed=1)
    same(context.run([inputs]), reference(models, "digits-classify", inputs))


@pytest.mark.parametrize("code", [700, 719, 214])
def test_failure_of_a_gpu_in_a_sticky_state_is_that_the_device_is_lost(
    models: Path, code: int
) -> None:
    rig = make(models, "digits-classify")
    context = rig.open()
    rig.library.state = code
    with pytest.raises(DeviceLost, match=str(code)):
        context.run([batch("digits-classify", 1)])


def test_state_of_the_gpu_is_asked_for_after_a_failure_that_names_no_code(models: Path) -> None:
    rig = make(models, "digits-classify")
    context = rig.open()

    def refuse() -> bool:
        rig.library.state = 700
        return True

    rig.api.loaded[0].refuse = refuse
    wanted = r"refused the batch.*; the GPU's state is CUDA_ERROR_ILLEGAL_ADDRESS \(700\)"
    with pytest.raises(DeviceLost, match=wanted):
        context.run([batch("digits-classify", 1)])


@pytest.mark.parametrize("how", ["open", "rebuild"])
def test_gpu_that_is_found_lost_while_a_context_is_made_is_told_and_nothing_is_freed(
    models: Path, how: str
) -> None:
    rig = make(models, "digits-classify")
    context = rig.open()

    def refuse() -> bool:
        rig.library.state = 719
        return True

    rig.api.loaded[0].refuse = refuse
    with pytest.raises(DeviceLost, match="719"):
        rig.open() if how == "open" else context.rebuild()
    assert rig.driver.calls["free"] == 0


def test_copy_without_memory_is_out_of_memory(models: Path) -> None:
    rig = make(models, "digits-classify")
    context = rig.open()
    rig.library.state = 2
    with pytest.raises(OutOfMemory, match=r"a copy to the GPU failed: unknown \(2\)"):
        context.run([batch("digits-classify", 1)])


@pytest.mark.parametrize("seam", ["h2d", "enqueue", "sync", "memory", "device"])
def test_fault_fails_a_run_and_nothing_of_it_stays(models: Path, seam: str) -> None:
    rig = make(models, "digits-classify", fault=seam)
    context = rig.open()
    kind = {"memory": OutOfMemory, "device": DeviceLost}.get(seam, EngineError)
    with pytest.raises(kind, match=f"an injected fault at '{seam}'"):
        context.run([batch("digits-classify", 1)])
    rig.faults._faults.clear()
    inputs = batch("digits-classify", 2, seed=1)
    same(context.run([inputs]), reference(models, "digits-classify", inputs))
    assert rig.driver.current == 0


def test_shapes_that_the_engine_has_no_room_for_are_the_callers_fault(models: Path) -> None:
    context = make(models, "language").open()
    for inputs in (batch("language", 9, 16), batch("language", 1, 65)):
        with pytest.raises(InvalidInput, match="wanted at most"):
            context.run([inputs])


def test_contexts_in_threads_of_their_own_do_not_mix(models: Path) -> None:
    rig = make(models, "digits-classify")
    wrong: list[str] = []

    def work(seed: int) -> None:
        context = rig.open()
        for number in range(20):
            inputs = batch("digits-classify", 1 + number % 8, seed=seed * 100 + number)
            got, wanted = context.run([inputs]), reference(models, "digits-classify", inputs)
            if difference(got["logits"], wanted["logits"]) > 1e-5:
                wrong.append(f"thread {seed} batch {number}")
        context.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert rig.driver.current == 0


def test_kernels_that_were_compiled_are_kept_for_the_next_process(
    models: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "runtime-sm_90.cache"
    for process in range(3):
        gpu, _, _ = fake_device()
        api: Any = FakeApi(8, LENGTHS)
        engine = TensorRTEngine(api, gpu, plan_of(models, "digits-classify"), Machine(), kept)
        contexts = [engine.open() for _ in range(2)]
        engine.settle()
        assert kept.read_bytes() == b"compiled"
        assert api.compiled == (1 if process == 0 else 0)
        for context in contexts:
            context.close()
        engine.close()
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]


def test_kernels_that_cannot_be_kept_are_only_a_line_of_the_log(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gpu, _, _ = fake_device()
    api: Any = FakeApi(8, LENGTHS)
    nowhere = tmp_path / "gone/runtime.cache"
    engine = TensorRTEngine(api, gpu, plan_of(models, "digits-classify"), Machine(), nowhere)
    engine.open().close()
    engine.settle()
    assert "kernels are not kept" in caplog.text


@pytest.mark.parametrize(("graphs", "kernels"), [(True, "eager"), (False, "none")])
def test_contexts_are_made_as_the_settings_say(
    models: Path, graphs: bool, kernels: Kernels
) -> None:
    gpu, _, library = fake_device()
    api: Any = FakeApi(8, LENGTHS, captures_graphs=False)
    machine = Machine(graphs=graphs, kernels=kernels)
    TensorRTEngine(api, gpu, plan_of(models, "digits-classify"), machine).open()
    assert api.asked == [(kernels, graphs)] * 4  # for 1, 2, 4 and 8 rows
    assert bool(library.graphs) is graphs


def test_contexts_of_one_lane_share_a_block_of_memory_and_lanes_do_not(models: Path) -> None:
    rig = make(models, "language")
    first, second = rig.open(), rig.open()
    assert [size for _, size in filter(None, rig.api.memory)] == [4096] * 2 * SHAPES
    blocks = [address for address, _ in filter(None, rig.api.memory)]
    assert len(set(blocks[:SHAPES])) == len(set(blocks[SHAPES:])) == 1
    assert len(set(blocks)) == 2
    first.rebuild()
    assert (blocks[0], 4096) == rig.api.memory[-1]
    first.close()
    second.close()
    assert rig.gpu.usage.device_bytes == 0


def test_each_shape_has_a_context_that_runs_no_other(models: Path, captures: bool) -> None:
    rig = make(models, "language", captures=captures)
    made: list[FakeExecution] = []
    opened = FakeApi.context

    def note(*args: Any, **options: Any) -> Any:
        context, config = opened(rig.api, *args, **options)
        made.append(context)
        return context, config

    vars(rig.api)["context"] = note
    lane = rig.open()
    shapes = [dict(context.asked) for context in made]
    assert sorted(shape["input_ids"] for shape in shapes) == [
        (rows, length) for rows in (1, 2, 4, 8) for length in LENGTHS
    ]
    for rows, length in ((3, 20), (8, 64), (1, 5), (3, 20)):
        inputs = batch("language", rows, length)
        same(lane.run([inputs]), reference(models, "language", inputs))
    assert [dict(context.asked) for context in made] == shapes
    assert {count for context in made for count in Counter(context.asked).values()} == {1}


@pytest.mark.parametrize("contexts", [0, 1, 2], ids=lambda n: f"after_{n}")
def test_lane_that_cannot_be_opened_leaves_nothing_behind(models: Path, contexts: int) -> None:
    rig = make(models, "language")
    left = [contexts]

    def fail(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise EngineError("no more contexts")
        return FakeApi.context(rig.api, *args, **options)

    vars(rig.api)["context"] = fail
    with pytest.raises(EngineError, match="no more contexts"):
        rig.open()
    usage = rig.gpu.usage
    assert (usage.contexts, usage.pinned_bytes, usage.device_bytes) == (0, 0, 0)
    del vars(rig.api)["context"]
    rig.open().close()
    assert usage.contexts == 0


def test_rebuilding_that_fails_in_the_middle_can_be_done_again(models: Path) -> None:
    rig = make(models, "language")
    context = rig.open()
    usage = replace(rig.gpu.usage)
    inputs = batch("language", 2, 16)
    context.run([inputs])

    def fail(*args: Any, **options: Any) -> Any:
        raise EngineError("no more contexts")

    vars(rig.api)["context"] = fail
    with pytest.raises(EngineError, match="no more contexts"):
        context.rebuild()
    assert rig.gpu.usage.contexts == usage.contexts - 1
    del vars(rig.api)["context"]
    context.rebuild()
    assert rig.gpu.usage == usage
    same(context.run([inputs]), reference(models, "language", inputs))
