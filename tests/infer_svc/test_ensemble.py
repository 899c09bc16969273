import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from shutil import copytree

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from onnx.utils import extract_model
from opentelemetry.trace import NoOpTracer, StatusCode, Tracer
from prometheus_client import CollectorRegistry

from infer_svc.backends.cuda import visible_gpus
from infer_svc.backends.machine import Machine
from infer_svc.batcher import Batcher
from infer_svc.build.builds import Builds
from infer_svc.config import ModelConfig, Step
from infer_svc.ensemble import Ensemble
from infer_svc.families import InferMetrics
from infer_svc.metrics import ModelMetrics
from infer_svc.service import InferHandler
from mesh.arena import Lender
from mesh.errors import (
    DeadlineExceeded,
    EngineError,
    InvalidInput,
    MeshError,
    NotFound,
    Overloaded,
    Refused,
    StageUnavailable,
)
from mesh.item import Reply, Request, Timings
from mesh.layers import stack, standard_layers
from mesh.telemetry import TARGET
from mesh.tensor import Array, Tensors, TensorSpec, pack, unpack
from protos.mesh.v1.stage_pb2 import Target
from tests.conftest import eventually
from tests.infer_svc import graphs
from tests.infer_svc.graphs import write_model
from tests.infer_svc.parts import NAME, split_detect
from tests.mesh.spans import SAMPLED, STATUS, UNSAMPLED, Spans, attributes, parent_id, span_id

ONE = np.array([1.0], np.float32)
Work = Callable[[Tensors], Awaitable[Tensors]]


def step(model: str, takes: str, makes: str) -> Step:
    """A step whose model's inputs and outputs have the names of the ensemble's tensors."""
    return Step(
        model,
        -1,
        tuple((name, name) for name in takes.split()),
        tuple((name, name) for name in makes.split()),
    )


DIAMOND = (
    step("join", "left right", "out"),
    step("left", "start", "left"),
    step("right", "start", "right"),
    step("start", "in", "start"),
)


class Parts:
    """Models that add 1 to the sum of their inputs; each can be held, and records its requests."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps or DIAMOND
        self.began: list[str] = []
        self.ended: list[str] = []
        self.cancelled: list[str] = []
        self.requests: dict[str, Request] = {}
        self.inputs: dict[str, Tensors] = {}
        self.payloads: dict[str, bytes] = {}
        self.failures: dict[str, Exception] = {}
        self.timings: dict[str, Timings] = {}
        self.gates = {step.model: asyncio.Event() for step in self.steps}
        for gate in self.gates.values():
            gate.set()

    async def run(self, request: Request, tensors: Tensors) -> Reply:
        name = request.target
        self.began.append(name)
        self.requests[name], self.inputs[name] = request, tensors
        try:
            await self.gates[name].wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        if name in self.failures:
            raise self.failures[name]
        self.ended.append(name)
        total = sum(array.astype(np.float64) for array in tensors.values()) + np.float64(1)
        (found,) = [step for step in self.steps if step.model == name]
        made = {output: np.asarray(total, np.float32) for output, _ in found.outputs}
        self.payloads[name] = pack(made)
        return Reply(self.payloads[name], timings=self.timings.get(name))

    def hold(self, *models: str) -> None:
        for model in models:
            self.gates[model].clear()

    async def ask(
        self, request: Request | None = None, outputs: str = "out", tracer: Tracer = NoOpTracer()
    ) -> Reply:
        specs = tuple(TensorSpec(name, "FP32", (-1,)) for name in outputs.split())
        config = ModelConfig("e", "ensemble", "", 8, (), specs, (), None, (), ensemble=self.steps)
        ensemble = Ensemble(config, self.run, tracer, ModelMetrics("e", 1, 8))
        return await ensemble.run(request or Request("e", b""), {"in": ONE}, (), 1)


async def test_each_step_gets_the_tensors_of_those_before() -> None:
    parts = Parts()
    reply = await parts.ask()
    assert unpack(reply.payload)["out"].tolist() == [7.0]  # 1, +1 = 2, twice +1 = 3, sum +1
    assert parts.inputs["join"]["left"].tolist() == [3.0]


async def test_steps_that_do_not_need_each_other_run_side_by_side_and_the_last_waits_for_both() -> (
    None
):
    parts = Parts()
    parts.hold("left", "right")
    task = asyncio.ensure_future(parts.ask())
    await eventually(lambda: len(parts.began) == 3)
    assert parts.began == ["start", "left", "right"]
    parts.gates["right"].set()
    await eventually(lambda: "right" in parts.ended)
    assert "join" not in parts.began
    parts.gates["left"].set()
    assert unpack((await task).payload)["out"].tolist() == [7.0]


async def test_step_does_not_wait_for_one_it_does_not_need() -> None:
    parts = Parts(step("slow", "in", "slow"), step("a", "in", "a"), step("b", "a", "b"))
    parts.hold("slow")
    task = asyncio.ensure_future(parts.ask(outputs="slow b"))
    await eventually(lambda: parts.ended == ["a", "b"])
    parts.gates["slow"].set()
    assert {name: array.tolist() for name, array in unpack((await task).payload).items()} == {
        "slow": [2.0], "b": [3.0],
    }  # fmt: skip


async def test_tensor_is_a_view_of_the_payload_that_its_step_made() -> None:
    parts = Parts(step("a", "in", "a"), step("b", "a", "out"))
    await parts.ask()
    handed = parts.inputs["b"]["a"]
    assert not handed.flags.owndata
    assert not handed.flags.writeable


async def test_outputs_that_one_step_made_are_passed_on_as_they_are() -> None:
    parts = Parts(step("a", "in", "a"), step("b", "a", "out"))
    reply = await parts.ask()
    assert reply.payload is parts.payloads["b"]


@pytest.mark.parametrize(
    ("steps", "outputs"),
    [
        ((Step("a", -1, (("in", "in"),), (("a", "out"),)),), "out"),
        ((step("a", "in", "a more"),), "a"),
        ((step("a", "in", "a"), step("b", "a", "b")), "a b"),
    ],
    ids=["renamed", "one-of-two", "of-two-steps"],
)
async def test_outputs_are_those_of_the_ensemble_and_no_others(
    steps: tuple[Step, ...], outputs: str
) -> None:
    reply = await Parts(*steps).ask(outputs=outputs)
    assert unpack(reply.payload).keys() == set(outputs.split())


async def test_failing_step_fails_the_request_with_its_model_named_and_cancels_the_others() -> None:
    parts = Parts()
    parts.hold("left", "right")
    parts.failures["left"] = EngineError("the GPU is gone")
    task = asyncio.ensure_future(parts.ask())
    await eventually(lambda: len(parts.began) == 3)
    parts.gates["left"].set()
    with pytest.raises(EngineError, match=r"^step 'left' of ensemble 'e': the GPU is gone$") as got:
        await task
    assert got.value.__cause__ is parts.failures["left"]
    assert parts.cancelled == ["right"]
    assert "join" not in parts.began


@pytest.mark.parametrize("kind", [InvalidInput, Overloaded, DeadlineExceeded, Refused])
async def test_error_of_a_step_keeps_its_kind(kind: type[MeshError]) -> None:
    parts = Parts()
    parts.failures["join"] = kind("why")
    with pytest.raises(kind, match="step 'join' of ensemble 'e': why"):
        await parts.ask()


async def test_error_that_nobody_expected_stays_what_it_is() -> None:
    parts = Parts()
    parts.failures["join"] = ZeroDivisionError("oh")
    with pytest.raises(ZeroDivisionError):
        await parts.ask()


async def test_part_that_is_gone_is_unavailable_so_that_the_gateway_asks_again() -> None:
    parts = Parts()
    parts.failures["left"] = NotFound("model 'left' is not in the repository")
    with pytest.raises(StageUnavailable, match="step 'left' of ensemble 'e' is not loaded now"):
        await parts.ask()


async def test_caller_that_gives_up_cancels_every_step() -> None:
    parts = Parts()
    parts.hold("left", "right")
    task = asyncio.ensure_future(parts.ask())
    await eventually(lambda: len(parts.began) == 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(parts.cancelled) == ["left", "right"]


async def test_each_step_has_the_deadline_the_priority_and_the_client_of_the_request() -> None:
    parts = Parts()
    deadline = time.monotonic() + 9
    given = Request("e", b"payload", b'{"priority":2}', deadline=deadline, client="c")
    await parts.ask(given)
    for name, request in parts.requests.items():
        assert (request.target, request.payload) == (name, b"")
        assert (request.deadline, request.client) == (deadline, "c")
        assert request.parameters == b'{"priority":2}'


async def test_each_step_has_what_the_steps_before_left_of_the_timeout() -> None:
    parts = Parts()
    parts.hold("start")
    given = Request("e", b"", b'{"priority": 1, "timeout": 50000}')
    task = asyncio.ensure_future(parts.ask(given))
    await eventually(lambda: bool(parts.began))
    await eventually(lambda: time.monotonic() > given.received + 0.02)
    parts.gates["start"].set()
    await task
    wishes = {name: json.loads(request.parameters) for name, request in parts.requests.items()}
    assert {wish["priority"] for wish in wishes.values()} == {1}
    assert 30000 < wishes["start"]["timeout"] <= 50000
    assert 1 <= wishes["left"]["timeout"] <= 30000
    assert wishes["join"]["timeout"] <= wishes["left"]["timeout"]


async def test_timeout_that_is_over_is_not_taken_for_none() -> None:
    parts = Parts()
    await parts.ask(Request("e", b"", b'{"timeout": 10}', received=time.monotonic() - 1))
    assert json.loads(parts.requests["start"].parameters)["timeout"] == 1


@pytest.mark.parametrize("parameters", [b"{", b"[]", b'{"timeout": "x"}'], ids=repr)
async def test_parameters_that_cannot_be_read_are_invalid_before_any_step(
    parameters: bytes,
) -> None:
    parts = Parts()
    with pytest.raises(InvalidInput, match="wanted a JSON object"):
        await parts.ask(Request("e", b"", parameters))
    assert parts.began == []


async def test_timings_are_the_sums_along_the_way_that_took_longest() -> None:
    parts = Parts()
    parts.hold("left")
    parts.timings = {
        "start": Timings(1, 0.1, 0.01, 4), "left": Timings(2, 0.2, 0.02, 2),
        "right": Timings(40, 4, 0.4, 1), "join": Timings(4, 0.4, 0.04, 8, batch_trace=b"batch"),
    }  # fmt: skip
    task = asyncio.ensure_future(parts.ask())
    await eventually(lambda: "right" in parts.ended)
    parts.gates["left"].set()
    timings = (await task).timings
    assert timings is not None
    assert (timings.queue, timings.batch, timings.run) == pytest.approx((7, 0.7, 0.07))
    assert (timings.batch_rows, timings.traced) == (8, False)


async def test_sampled_request_has_a_span_for_each_step_with_its_timings() -> None:
    parts, spans = Parts(), Spans()
    parts.timings = {"join": Timings(0.1, 0, 0.2, 4)}

    async def handler(request: Request) -> Reply:
        return await parts.ask(request, tracer=spans.tracer)

    await stack(handler, standard_layers(spans.tracer, "m"))(Request("e", b"", trace=SAMPLED))
    names = [f"step {name}" for name in ("start", "left", "right", "join")]
    assert {span.name for span in spans.all} == {*names, "m", "queue", "run"}
    for name in names:
        assert parent_id(spans.one(name)) == span_id(spans.one("m"))
        assert attributes(spans.one(name)) == {TARGET: name.removeprefix("step ")}
    for name in ("queue", "run"):
        assert parent_id(spans.one(name)) == span_id(spans.one("step join"))
    assert int.from_bytes(parts.requests["left"].trace[16:24], "big") == span_id(
        spans.one("step left")
    )


async def test_span_of_a_step_that_failed_is_an_error() -> None:
    parts, spans = Parts(), Spans()
    parts.failures["left"] = EngineError("the GPU is gone")
    with pytest.raises(EngineError):
        await parts.ask(Request("e", b"", trace=SAMPLED), tracer=spans.tracer)
    span = spans.one("step left")
    assert span.status.status_code is StatusCode.ERROR
    assert "the GPU is gone" in str(span.status.description)


async def test_request_that_is_not_sampled_has_no_spans() -> None:
    parts, spans = Parts(), Spans()
    reply = await parts.ask(Request("e", b"", trace=UNSAMPLED), tracer=spans.tracer)
    assert not spans.all
    assert reply.timings is not None
    assert not reply.timings.traced


@asynccontextmanager
async def serving(root: Path, tracer: Tracer = NoOpTracer()) -> AsyncIterator[InferHandler]:
    metrics = InferMetrics(CollectorRegistry())
    machine = Machine(builds=Builds(root.with_name(f"{root.name}-engines")))  # for tests on GPUs
    handler = InferHandler(root, machine, tracer, Lender(0), metrics)
    await handler.load()
    try:
        yield handler
    finally:
        handler.close()


async def infer(handler: InferHandler, model: str, **tensors: Array) -> Tensors:
    return unpack((await handler(Request(model, pack(tensors)))).payload)


def tensor(name: str, dims: str = "4", dtype: str = "FP32") -> str:
    return f'{{ name: "{name}" data_type: TYPE_{dtype} dims: [ {dims} ] }}'


def written(model: str, takes: str, makes: str) -> str:
    """The text of a step; pairs as "key:value"."""
    inputs, outputs = (
        " ".join(
            f'{kind} {{ key: "{pair.split(":")[0]}" value: "{pair.split(":")[1]}" }}'
            for pair in pairs.split()
        )
        for kind, pairs in (("input_map", takes), ("output_map", makes))
    )
    return f'{{ model_name: "{model}" model_version: -1 {inputs} {outputs} }}'


def write_ensemble(
    root: Path, name: str, inputs: str, outputs: str, *steps: str, rows: int = 8
) -> None:
    text = (
        f'platform: "ensemble" max_batch_size: {rows} input [ {inputs} ] output [ {outputs} ] '
        f"ensemble_scheduling {{ step [ {', '.join(steps)} ] }}"
    )
    write_model(root, name, None, text)


DYNAMIC = "max_batch_size: 8 dynamic_batching { }"
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`a-sum` needs `b-double`, `b-double` twice `z-add`; the names sort the wrong way round."""
    write_model(tmp_path, "z-add", graphs.addition(), DYNAMIC, versions=("1", "3"))
    write_ensemble(
        tmp_path, "b-double", tensor("x"), tensor("four"),
        written("z-add", "left:x right:x", "sum:two"),
        written("z-add", "left:two right:two", "sum:four"),
    )  # fmt: skip
    write_ensemble(
        tmp_path, "a-sum", f"{tensor('x')}, {tensor('y')}", tensor("sum"),
        written("b-double", "x:x", "four:four"), written("z-add", "left:four right:y", "sum:sum"),
    )  # fmt: skip
    return tmp_path


async def test_ensembles_are_loaded_after_their_parts_and_may_be_parts_themselves(
    root: Path,
) -> None:
    async with serving(root) as handler:
        outputs = await infer(handler, "b-double", x=ROWS)
        np.testing.assert_array_equal(outputs["four"], ROWS * 4)
        outputs = await infer(handler, "a-sum", x=ROWS, y=ROWS * 10)
        np.testing.assert_array_equal(outputs["sum"], ROWS * 14)


async def test_steps_share_batches_with_all_other_requests_of_their_model(root: Path) -> None:
    async with serving(root) as handler:
        replies = await asyncio.gather(
            *(handler(Request("b-double", pack({"x": ROWS * n}))) for n in range(20)),
            *(
                handler(Request("z-add", pack({"left": ROWS, "right": ROWS * n})))
                for n in range(20)
            ),
        )
    for n, (one, other) in enumerate(zip(replies[:20], replies[20:], strict=True)):
        np.testing.assert_array_equal(unpack(one.payload)["four"], ROWS * n * 4)
        np.testing.assert_array_equal(unpack(other.payload)["sum"], ROWS * (n + 1))
    assert max(reply.timings.batch_rows for reply in replies if reply.timings) > 2


async def test_describe_shows_an_ensemble_as_any_model(root: Path) -> None:
    async with serving(root) as handler:
        (spec,) = handler.describe([Target(name="a-sum")])
        assert [spec.name for spec in handler.describe([])] == ["a-sum", "b-double", "z-add"]
    assert (spec.version, spec.output_bytes) == ("1", 16)
    assert [(t.name, t.dtype, list(t.shape)) for t in spec.inputs] == [
        ("x", "FP32", [-1, 4]),
        ("y", "FP32", [-1, 4]),
    ]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": ROWS[:, :3]}, r"tensor 'x' is FP32\[2,3\], wanted FP32\[-1,4\]"),
        ({"y": ROWS}, r"tensors \['y'\] came, wanted \['x: FP32\[-1,4\]'\]"),
        ({"x": np.zeros((9, 4), np.float32)}, "rows {'x': 9} came for model 'b-double'"),
    ],
    ids=["size", "name", "rows"],
)
async def test_tensors_that_do_not_fit_the_ensemble_are_invalid(
    root: Path, tensors: Tensors, message: str
) -> None:
    async with serving(root) as handler:
        with pytest.raises(InvalidInput, match=message):
            await infer(handler, "b-double", **tensors)


async def test_rows_that_are_too_many_for_a_part_are_invalid_with_its_name(root: Path) -> None:
    write_ensemble(
        root, "free", tensor("x", "-1, 4"), tensor("two", "-1, 4"),
        written("z-add", "left:x right:x", "sum:two"), rows=0,
    )  # fmt: skip
    async with serving(root) as handler:
        assert (await infer(handler, "free", x=ROWS))["two"].shape == (2, 4)
        with pytest.raises(InvalidInput, match=r"step 'z-add' of ensemble 'free': rows .* 1 to 8"):
            await infer(handler, "free", x=np.zeros((9, 4), np.float32))


async def test_failing_batch_of_a_part_names_the_part_and_the_ensemble_serves_on(
    tmp_path: Path,
) -> None:
    write_model(tmp_path, "lookup", graphs.lookup(), DYNAMIC)
    write_ensemble(
        tmp_path, "e", tensor("x", "1", "INT64"), tensor("y", "1"), written("lookup", "x:x", "y:y")
    )
    async with serving(tmp_path) as handler:
        with pytest.raises(EngineError, match=r"step 'lookup' of ensemble 'e': .*out of data bou"):
            await infer(handler, "e", x=np.array([[9]]))
        assert (await infer(handler, "e", x=np.array([[2]])))["y"].tolist() == [[20.0]]


async def test_deadline_that_is_over_ends_the_request_with_the_step_named(root: Path) -> None:
    async with serving(root) as handler:
        late = Request("b-double", pack({"x": ROWS}), deadline=time.monotonic() - 1)
        with pytest.raises(DeadlineExceeded, match="step 'z-add' of ensemble 'b-double': the dead"):
            await handler(late)


async def test_caller_that_gives_up_leaves_nothing_in_the_queue_of_a_part(tmp_path: Path) -> None:
    write_model(tmp_path, "add", graphs.addition(), DYNAMIC)
    waits = "preferred_batch_size: 8 max_queue_delay_microseconds: 60000000"
    write_model(
        tmp_path, "slow", graphs.identity(), f"max_batch_size: 8 dynamic_batching {{ {waits} }}"
    )
    write_ensemble(
        tmp_path, "e", tensor("x"), tensor("y"),
        written("add", "left:x right:x", "sum:two"), written("slow", "x:two", "y:y"),
    )  # fmt: skip
    async with serving(tmp_path) as handler:
        slow = handler.models.find("slow").batcher
        assert isinstance(slow, Batcher)
        task = asyncio.ensure_future(infer(handler, "e", x=ROWS))
        await eventually(lambda: slow.depth == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert slow.depth == 0


BROKEN = {
    "part": (
        "broken",
        "x:x",
        "y:two",
        "ensemble 'e': its model 'broken' is refused: .*cannot load",
    ),
    "missing": ("none", "x:x", "y:two", "ensemble 'e': its model 'none' is not in the repository"),
    "map": ("z-add", "left:x", "sum:two", "input_map of model 'z-add'"),
}


@pytest.mark.parametrize(("model", "takes", "makes", "message"), BROKEN.values(), ids=BROKEN.keys())
async def test_ensemble_that_does_not_fit_is_refused_by_name_and_others_serve(
    root: Path, model: str, takes: str, makes: str, message: str
) -> None:
    write_model(root, "broken", b"garbage", DYNAMIC)
    write_ensemble(root, "e", tensor("x"), tensor("two"), written(model, takes, makes))
    async with serving(root) as handler:
        with pytest.raises(Refused, match=message):
            await infer(handler, "e", x=ROWS)
        await infer(handler, "b-double", x=ROWS)


async def test_trace_of_a_request_has_a_step_for_each_model_and_links_to_its_batch(
    root: Path,
) -> None:
    spans = Spans()
    async with serving(root, spans.tracer) as handler:
        served = stack(handler, standard_layers(spans.tracer, "m"))
        reply = await served(Request("a-sum", pack({"x": ROWS, "y": ROWS}), trace=SAMPLED))
        assert reply.status is None
    outer = spans.one("m")
    assert attributes(outer)[STATUS] == "OK"
    inner = spans.one("step b-double")
    assert parent_id(inner) == span_id(outer)
    steps = spans.named("step z-add")
    assert sorted(parent_id(span) or 0 for span in steps) == sorted(
        [span_id(outer), span_id(inner), span_id(inner)]
    )
    runs, batches = spans.named("run"), spans.named("batch z-add")
    assert {parent_id(span) for span in runs} == {span_id(span) for span in steps}
    assert len(runs) == 3
    linked = {link.context.span_id for batch in batches for link in batch.links}
    assert linked == {span_id(span) for span in steps}
    assert {link.context.span_id for run in runs for link in run.links} == {
        span_id(batch) for batch in batches
    }


async def answers(handler: InferHandler, model: str, requests: list[Tensors]) -> list[Tensors]:
    """Ask for the first alone, then for all at once."""
    alone = await infer(handler, model, **requests[0])
    together = await asyncio.gather(*(infer(handler, model, **given) for given in requests))
    return [alone, *together]


def float64(array: Array) -> NDArray[np.float64]:
    return array.astype(np.float64)


async def compare(handler: InferHandler, whole: str, split: str, requests: list[Tensors]) -> None:
    wanted = await answers(handler, whole, requests)
    for one, other in zip(wanted, await answers(handler, split, requests), strict=True):
        assert one.keys() == other.keys()
        for name, array in one.items():
            assert np.abs(float64(other[name]) - float64(array)).max() <= 1e-5


def pages(models: Path, count: int) -> list[Tensors]:
    """A page of digits, moved about: one to three in a request."""
    page = cv2.imread(str(models / "digits-detect/samples/page.jpg"))
    small = cv2.resize(page, (320, 320))
    moved = [np.roll(small, 7 * n, axis=n % 2) for n in range(count + 2)]
    return [{"pixels": np.stack(moved[n : n + 1 + n % 3])} for n in range(count)]


async def test_model_that_the_readme_splits_answers_as_the_whole(
    models: Path, tmp_path: Path
) -> None:
    async with serving(split_detect(models, tmp_path)) as handler:
        await compare(handler, "digits-detect", NAME, pages(models, 12))


async def test_split_model_of_texts_answers_as_the_whole(models: Path, tmp_path: Path) -> None:
    cut = "/net/bert/embeddings/LayerNorm/LayerNormalization_output_0"
    mask = "attention_mask"
    copytree(models / "language", tmp_path / "language")
    for name, inputs, outputs in (
        ("embed", ["input_ids"], [cut]),
        ("encode", [cut, mask], ["logits"]),
    ):
        folder = write_model(tmp_path, name, None, "max_batch_size: 32 dynamic_batching { }")
        whole = str(tmp_path / "language/1/model.onnx")
        extract_model(whole, str(folder / "1/model.onnx"), inputs, outputs)
    write_ensemble(
        tmp_path, "language-split",
        f"{tensor('input_ids', '-1', 'INT64')}, {tensor(mask, '-1', 'INT64')}",
        tensor("logits", "46"), written("embed", "input_ids:input_ids", f"{cut}:hidden"),
        written("encode", f"{cut}:hidden {mask}:{mask}", "logits:logits"), rows=32,
    )  # fmt: skip
    random = np.random.default_rng(0)
    ids = [random.integers(1, 500, (1 + n % 4, (16, 32, 64)[n % 3])) for n in range(60)]
    async with serving(tmp_path) as handler:
        requests: list[Tensors] = [{"input_ids": i, mask: np.ones_like(i)} for i in ids]
        await compare(handler, "language", "language-split", requests)


@pytest.mark.gpu
async def test_parts_on_two_gpus_answer_as_the_whole_model_on_the_cpu(
    models: Path, tmp_path: Path
) -> None:
    if visible_gpus() < 2:
        pytest.skip("needs two GPUs")
    async with serving(split_detect(models, tmp_path, on_gpu=True)) as handler:
        placed = {
            name: [placement.gpu for placement in handler.models.find(name).model.placements]
            for name in ("digits-detect", "detect-trunk", "detect-head")
        }
        assert placed == {"digits-detect": [None], "detect-trunk": [0], "detect-head": [1]}
        requests = pages(models, 64)
        wanted = await answers(handler, "digits-detect", requests)
        for one, other in zip(wanted, await answers(handler, NAME, requests), strict=True):
            # The GPU multiplies with 10 bits of mantissa; boxes are pixels of 320.
            cpu, gpu = float64(one["predictions"]), float64(other["predictions"])
            assert cpu[:, 4:].max() > 0.5
            assert np.abs(gpu - cpu)[:, :4].max() < 2
            assert np.abs(gpu - cpu)[:, 4:].max() < 0.05
