import asyncio
import logging
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from shutil import copy
from types import SimpleNamespace

import numpy as np
import pytest
from opentelemetry.trace import NoOpTracer
from prometheus_client import CollectorRegistry

from infer_svc import service
from infer_svc.backends.machine import Machine
from infer_svc.build.builds import Builds
from infer_svc.families import InferMetrics
from infer_svc.faults import parse_faults
from infer_svc.service import InferHandler
from mesh.arena import Lender
from mesh.errors import EngineError, InvalidInput, NotFound, Overloaded, Refused, SettingsError
from mesh.item import Request
from mesh.status import from_status
from mesh.tensor import Array, Tensors, bytes_tensor, pack, unpack
from protos.mesh.v1.stage_pb2 import Target, TargetSpec
from tests.conftest import running_client, running_replica
from tests.infer_svc import graphs
from tests.infer_svc.generation.networks import GPT2
from tests.infer_svc.generation.test_generator import write_version
from tests.infer_svc.graphs import write_model
from tests.infer_svc.test_served import lanes_of

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


def made_handler(root: Path, registry: CollectorRegistry) -> InferHandler:
    machine = Machine(builds=Builds(root.with_name(f"{root.name}-engines")))  # for tests on a GPU
    return InferHandler(root, machine, NoOpTracer(), Lender(0), InferMetrics(registry))


@asynccontextmanager
async def serving(
    root: Path, registry: CollectorRegistry | None = None
) -> AsyncIterator[InferHandler]:
    handler = made_handler(root, registry or CollectorRegistry())
    await handler.load()
    try:
        yield handler
    finally:
        handler.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of good models."""
    dynamic = "max_batch_size: 8 dynamic_batching { }"
    write_model(tmp_path, "add", graphs.addition(), dynamic, versions=("1", "3"))
    write_model(tmp_path, "total", graphs.total(), dynamic)
    write_model(tmp_path, "lookup", graphs.lookup(), dynamic)
    write_model(tmp_path, "kinds", graphs.many_kinds(), dynamic)
    write_model(tmp_path, "fixed", graphs.identity(dims=(2, 4)))
    return tmp_path


@pytest.fixture
async def handler(root: Path) -> AsyncIterator[InferHandler]:
    async with serving(root) as handler:
        yield handler


async def infer(handler: InferHandler, model: str, **tensors: Array) -> Tensors:
    return unpack((await handler(Request(model, pack(tensors)))).payload)


def lanes_alive() -> list[str]:
    prefixes = ("add-", "total-", "lookup-", "kinds-", "fixed-", "m-", "bad-")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(prefixes)]


async def test_outputs_are_those_of_the_model(handler: InferHandler) -> None:
    outputs = await infer(handler, "add", left=ROWS, right=ROWS * 10)
    assert outputs.keys() == {"sum"}
    np.testing.assert_array_equal(outputs["sum"], ROWS * 11)


async def test_tensors_may_come_in_any_order(handler: InferHandler) -> None:
    outputs = await infer(handler, "add", right=ROWS, left=ROWS)
    np.testing.assert_array_equal(outputs["sum"], ROWS * 2)


async def test_many_requests_at_once_get_their_own_answers(handler: InferHandler) -> None:
    async def ask(number: int) -> None:
        ids = np.full((1 + number % 3, 1 + number % 5), number, np.int64)
        outputs = await infer(handler, "total", ids=ids)
        np.testing.assert_array_equal(outputs["total"], ids.sum(axis=1))

    await asyncio.gather(*map(ask, range(200)))


async def test_every_kind_of_tensor_passes_unchanged(handler: InferHandler) -> None:
    async def ask(number: int) -> None:
        tensors: Tensors = {
            "half": np.array([[number, -0.5]], np.float16),
            "number": np.array([[number, -(2**62)]], np.int64),
            "flag": np.array([[number % 2 == 0, True]]),
            "text": bytes_tensor(b"", f"größer {number}".encode()).reshape(1, 2),
        }
        outputs = await infer(handler, "kinds", **tensors)
        assert {f"{name}_out" for name in tensors} == outputs.keys()
        for name, array in tensors.items():
            assert outputs[f"{name}_out"].dtype == array.dtype
            assert outputs[f"{name}_out"].tolist() == array.tolist()

    await asyncio.gather(*map(ask, range(20)))


async def test_model_without_batch_dimension_takes_its_whole_shape(handler: InferHandler) -> None:
    outputs = await infer(handler, "fixed", x=ROWS)
    np.testing.assert_array_equal(outputs["y"], ROWS)


async def test_unknown_model_is_not_found_and_those_there_are_are_named(
    handler: InferHandler,
) -> None:
    with pytest.raises(NotFound, match=r"'no' is not in the repository; there are \['add', 'fixe"):
        await handler(Request("no", b""))


WRONG: dict[str, tuple[str, Tensors, str]] = {
    "name": (
        "add",
        {"left": ROWS, "wrong": ROWS},
        r"tensors \['left', 'wrong'\] came, wanted \['left: FP32\[-1,4\]', 'right: FP32\[-1,4\]'\]",
    ),
    "missing": ("add", {"left": ROWS}, r"tensors \['left'\] came, wanted"),
    "too-many": ("total", {"ids": ROWS, "more": ROWS}, r"tensors \['ids', 'more'\] came, wanted"),
    "none": ("add", {}, r"tensors \[\] came, wanted"),
    "dtype": (
        "add",
        {"left": ROWS, "right": ROWS.astype(np.float64)},
        r"tensor 'right' is FP64\[2,4\], wanted FP32\[-1,4\]",
    ),
    "size": (
        "add",
        {"left": ROWS, "right": ROWS[:, :3]},
        r"tensor 'right' is FP32\[2,3\], wanted FP32\[-1,4\]",
    ),
    "rank": (
        "add",
        {"left": ROWS, "right": ROWS[0]},
        r"tensor 'right' is FP32\[4\], wanted FP32\[-1,4\]",
    ),
    "rows-differ": (
        "add",
        {"left": ROWS, "right": ROWS[:1]},
        r"rows {'left': 2, 'right': 1} came for model 'add', wanted the same .*, 1 to 8",
    ),
    "no-rows": ("add", {"left": ROWS[:0], "right": ROWS[:0]}, r"rows {'left': 0, .* 1 to 8"),
    "too-many-rows": ("total", {"ids": np.zeros((9, 2), np.int64)}, r"rows {'ids': 9} .* 1 to 8"),
    "fixed-size": ("fixed", {"x": ROWS[:1]}, r"tensor 'x' is FP32\[1,4\], wanted FP32\[2,4\]"),
}


@pytest.mark.parametrize(("model", "tensors", "message"), WRONG.values(), ids=WRONG.keys())
async def test_tensors_that_do_not_fit_are_invalid_with_what_came_and_what_was_wanted(
    handler: InferHandler, model: str, tensors: Tensors, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        await infer(handler, model, **tensors)


async def test_bytes_that_are_no_tensors_are_invalid(handler: InferHandler) -> None:
    with pytest.raises(InvalidInput, match="no serialized"):
        await handler(Request("add", b"\xff\xff"))


async def test_size_that_only_the_config_leaves_open_is_invalid_before_the_engine_is_asked(
    tmp_path: Path,
) -> None:
    text = 'max_batch_size: 8 input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]'
    write_model(tmp_path, "m", graphs.identity(), text)
    async with serving(tmp_path) as handler:
        with pytest.raises(InvalidInput, match=r"wanted FP32\[-1,4\]"):
            await infer(handler, "m", x=ROWS[:, :3])


async def test_failing_batch_is_an_engine_error_and_the_model_serves_on(
    handler: InferHandler,
) -> None:
    with pytest.raises(EngineError, match="out of data bounds"):
        await infer(handler, "lookup", x=np.array([[9]]))
    outputs = await infer(handler, "lookup", x=np.array([[2]]))
    np.testing.assert_array_equal(outputs["y"], [[20.0]])


async def test_queue_policy_of_the_config_is_kept(tmp_path: Path) -> None:
    policy = "default_queue_policy { max_queue_size: 1 } max_queue_delay_microseconds: 60000000"
    text = f"max_batch_size: 8 dynamic_batching {{ {policy} }}"
    write_model(tmp_path, "m", graphs.identity(), text)
    async with serving(tmp_path) as handler:
        first = asyncio.ensure_future(infer(handler, "m", x=ROWS))
        outcome = await asyncio.gather(infer(handler, "m", x=ROWS), return_exceptions=True)
        assert isinstance(outcome[0], Overloaded)
        first.cancel()


BROKEN: dict[str, tuple[bytes | None, str, str]] = {
    "no-file": (None, "", r"'bad' has no file"),
    "no-model": (b"garbage", "", "ONNX Runtime cannot load"),
    "config": (graphs.identity(), "max_batch_size: x", "is no ModelConfig: 1:17"),
    "backend": (graphs.identity(), 'backend: "python"', "wants the backend 'python'"),
    "batch": (graphs.identity(dims=(1, 4)), "max_batch_size: 8", "no batch dimension of any size"),
    "no-inputs": (graphs.without_inputs(), "max_batch_size: 8", "rows {} came for model 'bad'"),
    "warmup-shape": (
        graphs.identity(),
        'max_batch_size: 8 model_warmup [ { name: "w" inputs { key: "x" '
        "value { data_type: TYPE_FP32 dims: [ 5 ] } } } ]",
        r"tensor 'x' is FP32\[1,5\], wanted FP32\[-1,4\]",
    ),
    "warmup-rows": (
        graphs.identity(),
        'max_batch_size: 8 model_warmup [ { name: "w" batch_size: 9 inputs { key: "x" '
        "value { data_type: TYPE_FP32 dims: [ 4 ] } } } ]",
        r"rows {'x': 9} came for model 'bad'",
    ),
    "warmup-open": (
        graphs.total(),
        'max_batch_size: 8 model_warmup [ { name: "w" inputs { key: "ids" '
        "value { data_type: TYPE_INT64 dims: [ -1 ] } } } ]",
        r"model_warmup 'w' has dims \[-1\]",
    ),
    "warmup-larger-than-memory": (
        graphs.identity(dims=("n", "k")),
        'max_batch_size: 8 model_warmup [ { name: "w" inputs { key: "x" '
        "value { data_type: TYPE_FP32 dims: [ 999999999999999 ] } } } ]",
        "model 'bad' cannot be loaded: .*MemoryError; see the log",
    ),
    "warmup-fails": (
        graphs.lookup(),
        'max_batch_size: 8 model_warmup [ { name: "w" inputs { key: "x" '
        "value { data_type: TYPE_INT64 dims: [ 1 ] random_data: true } } } ]",
        "a warm-up of model 'bad' failed: .*out of data bounds",
    ),
}


@pytest.mark.parametrize(("serialized", "text", "message"), BROKEN.values(), ids=BROKEN.keys())
async def test_model_that_cannot_be_served_is_refused_with_its_reason_and_others_serve(
    root: Path,
    serialized: bytes | None,
    text: str,
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_model(root, "bad", serialized, text)
    async with serving(root) as handler:
        with pytest.raises(Refused, match=message):
            await handler(Request("bad", b""))
        await infer(handler, "add", left=ROWS, right=ROWS)
        assert not [name for name in lanes_alive() if name.startswith("bad-")]
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "model refused"
    assert getattr(record, "model", None) == "bad"


async def test_missing_repository_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is no folder"):
        await made_handler(tmp_path / "none", CollectorRegistry()).load()


async def test_each_lane_of_the_config_has_a_thread_that_close_ends(tmp_path: Path) -> None:
    write_model(tmp_path, "m", graphs.identity(), "instance_group [ { count: 3 } ]")
    async with serving(tmp_path):
        assert sorted(lanes_alive()) == ["m-0", "m-1", "m-2", "m-spare-0"]
    assert lanes_alive() == []


def described(specs: list[TargetSpec]) -> dict[str, TargetSpec]:
    return {spec.name: spec for spec in specs}


async def test_describe_tells_version_tensors_and_bytes_of_a_row(handler: InferHandler) -> None:
    (spec,) = handler.describe([Target(name="add")])
    assert (spec.name, spec.version) == ("add", "3")
    assert not spec.HasField("status")
    assert [(t.name, t.dtype, list(t.shape)) for t in spec.inputs] == [
        ("left", "FP32", [-1, 4]),
        ("right", "FP32", [-1, 4]),
    ]
    assert [(t.name, t.dtype, list(t.shape)) for t in spec.outputs] == [("sum", "FP32", [-1, 4])]
    assert spec.output_bytes == 16


async def test_describe_of_nothing_in_particular_names_every_model(root: Path) -> None:
    write_model(root, "bad", None, "")
    async with serving(root) as handler:
        specs = handler.describe([])
    assert [spec.name for spec in specs] == ["add", "bad", "fixed", "kinds", "lookup", "total"]
    assert [spec.name for spec in specs if spec.HasField("status")] == ["bad"]


async def test_describe_tells_why_a_model_is_refused_or_not_there(root: Path) -> None:
    write_model(root, "bad", None, "")
    async with serving(root) as handler:
        specs = described(handler.describe([Target(name=name) for name in ("bad", "none", "add")]))
    assert isinstance(from_status(specs["bad"].status), Refused)
    assert isinstance(from_status(specs["none"].status), NotFound)
    assert not specs["add"].HasField("status")


async def test_each_model_is_counted_by_name_and_version_until_it_is_closed(root: Path) -> None:
    registry = CollectorRegistry()

    def rows(model: str, version: str) -> float | None:
        labels = {"model": model, "version": version}
        return registry.get_sample_value("nv_inference_count", labels)

    async with serving(root, registry) as handler:
        for _ in range(3):
            await infer(handler, "add", left=ROWS, right=ROWS)
        assert (rows("add", "3"), rows("add", "1"), rows("total", "1")) == (6, None, 0)
    assert rows("add", "3") is None


async def test_answers_and_errors_pass_the_wire(handler: InferHandler) -> None:
    async with running_replica(handler) as replica, running_client(replica) as client:
        payload = pack({"left": ROWS, "right": ROWS})
        replies = await asyncio.gather(
            *(client.call(Request("add", payload)) for _ in range(50)),
            client.call(Request("none", payload)),
            client.call(Request("total", payload)),
        )
    for reply in replies[:50]:
        np.testing.assert_array_equal(unpack(reply.payload)["sum"], ROWS * 2)
        assert reply.timings is not None
        assert reply.timings.batch_rows >= 2
    assert isinstance(replies[50].error(), NotFound)
    assert isinstance(replies[51].error(), InvalidInput)


def on_gpu(models: Path, root: Path, name: str) -> None:
    """Copy a demo model, to run on a GPU with two lanes."""
    (root / name / "1").mkdir(parents=True)
    config = (models / name / "config.pbtxt").read_text()
    config = config.replace("count: 1", "count: 2").replace("KIND_CPU", "KIND_GPU")
    (root / name / "config.pbtxt").write_text(config)
    copy(models / name / "1/model.onnx", root / name / "1/model.onnx")


@pytest.mark.gpu
async def test_demo_models_on_a_gpu_answer_as_on_the_cpu(models: Path, tmp_path: Path) -> None:
    for name in ("digits-classify", "language"):
        on_gpu(models, tmp_path, name)
    random = np.random.default_rng(0)
    texts = [random.integers(1, 500, (1, (16, 32, 64, 128)[n % 4])) for n in range(400)]
    digits = [random.integers(0, 255, (1, 32, 32, 3)).astype(np.uint8) for _ in range(400)]

    async def answers(handler: InferHandler) -> tuple[list[Tensors], list[Tensors]]:
        return (
            await asyncio.gather(*(
                infer(handler, "language", input_ids=ids, attention_mask=np.ones_like(ids))
                for ids in texts
            )),
            await asyncio.gather(*(infer(handler, "digits-classify", pixels=d) for d in digits)),
        )  # fmt: skip

    async with serving(tmp_path) as gpu, serving(models) as cpu:
        wanted, got = await answers(cpu), await answers(gpu)
        for one, other in zip(wanted[0] + wanted[1], got[0] + got[1], strict=True):
            difference = one["logits"].astype(np.float64) - other["logits"].astype(np.float64)
            assert np.abs(difference).max() < 0.05
        again = await answers(gpu)
        assert len(again[0] + again[1]) == 800


async def test_model_for_a_gpu_is_refused_where_there_is_none(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    on_gpu(models, tmp_path, "digits-classify")
    write_model(tmp_path, "add", graphs.addition(), "max_batch_size: 8")
    async with serving(tmp_path) as handler:
        with pytest.raises(Refused, match="no PyCUDA"):
            await infer(handler, "digits-classify", pixels=ROWS)
        assert (await infer(handler, "add", left=ROWS, right=ROWS))["sum"].shape == (2, 4)


async def test_gpu_that_is_lost_while_a_model_is_loaded_ends_the_process(tmp_path: Path) -> None:
    write_model(tmp_path, "gone", graphs.identity(dims=("n", 4)), "max_batch_size: 4")
    faults = parse_faults("device=1")
    handler = InferHandler(
        tmp_path, Machine(faults=faults), NoOpTracer(), Lender(0), InferMetrics(CollectorRegistry())
    )
    lost: list[str] = []
    handler.on_lost = lost.append
    await handler.load()
    assert lost == ["an injected fault at 'device'"]
    asking = asyncio.ensure_future(handler(Request("gone", b"")))
    await asyncio.sleep(0.02)
    assert not asking.done()
    asking.cancel()
    kept = handler.models._versions["gone"][1].kept
    assert kept is not None
    for lane in lanes_of(kept):  # kept: their end could hang on a GPU
        lane.close()


async def test_shared_memory_stays_pinned_until_no_lane_reads_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[list[str]] = []
    gpu = SimpleNamespace(unregister_all=lambda: alive.append(lanes_alive()))
    async with serving(root):
        assert lanes_alive()
        monkeypatch.setattr(service, "devices", lambda: [gpu])
    assert alive == [[]]


def generation_threads() -> int:
    return sum(thread.name == "generation" for thread in threading.enumerate())


async def test_model_that_generates_is_served_beside_the_others(root: Path, tmp_path: Path) -> None:
    write_version(root / "speaks/1", "gpt2", {"max_new_tokens": 4})
    (root / "speaks/config.pbtxt").write_text("model_transaction_policy { decoupled: true }")
    registry, before = CollectorRegistry(), generation_threads()
    async with serving(root, registry) as handler:
        assert generation_threads() == before + 1
        (spec,) = handler.describe([Target(name="speaks")])
        assert (spec.decoupled, spec.version) == (True, "1")
        assert [tensor.name for tensor in spec.inputs] == ["input_ids", "attention_mask"]
        (other,) = handler.describe([Target(name="add")])
        assert not other.decoupled
        async with running_replica(handler) as replica, running_client(replica) as client:
            ids = np.array([GPT2.given[0]], np.int64)
            payload = pack({"input_ids": ids, "attention_mask": np.ones_like(ids)})
            came: list[int] = []
            reply = await client.call(
                Request("speaks", payload),
                more=lambda reply: came.extend(unpack(reply.payload)["token_ids"].tolist()),
            )
        assert came == GPT2.made[0][:4]
        assert unpack(reply.payload)["finish_reason"].tolist() == [b"length"]
        labels = {"model": "speaks", "version": "1"}
        tokens = registry.get_sample_value(
            "mesh_generation_tokens_total", {**labels, "gen_ai_token_type": "output"}
        )
        assert tokens == 4
        assert registry.get_sample_value("nv_inference_request_success", labels) == 1
    assert registry.get_sample_value("mesh_generation_slots", labels) is None
    assert generation_threads() == before


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ("instance_group [ { kind: KIND_GPU } ]", "on the CPU only|GPU"),
        ('input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]', "leave them out"),
    ],
)
async def test_model_that_cannot_generate_is_refused_by_name_and_others_serve(
    root: Path, config: str, match: str
) -> None:
    write_version(root / "speaks/1", "gpt2", {})
    text = f"model_transaction_policy {{ decoupled: true }} {config}"
    (root / "speaks/config.pbtxt").write_text(text)
    async with serving(root) as handler:
        with pytest.raises(Refused, match=match):
            await handler(Request("speaks", b""))
        assert await infer(handler, "add", left=ROWS, right=ROWS)
