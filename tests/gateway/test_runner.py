"""One item through its pipeline: credit first, every error with its type, nothing left behind."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import cast

import pytest

from gateway.runner import PipelineRunner
from mesh.errors import (
    DeadlineExceeded,
    EngineError,
    InternalError,
    InvalidInput,
    MeshError,
    NotFound,
    Overloaded,
    Refused,
    StageUnavailable,
)
from mesh.host import Host
from mesh.item import Handler, Reply, Request
from mesh.server import Limits
from tests.conftest import eventually
from tests.gateway.stages import PIPELINE, FakeMesh, described, repository, running_mesh

STAGES = ("preprocess", "infer", "postprocess")


@asynccontextmanager
async def running(
    folder: Path, limits: Limits | None = None, **pipelines: str
) -> AsyncIterator[tuple[PipelineRunner, FakeMesh]]:
    """Run a mesh and a runner that has looked at its pipelines."""
    root = repository(folder, **(pipelines or {"digits": PIPELINE}))
    async with running_mesh(limits or Limits()) as mesh:
        runner = PipelineRunner(root, mesh.stages)
        await runner.check()
        yield runner, mesh


def request(payload: bytes = b"jpeg", seconds: float = math.inf, client: str = "") -> Request:
    return Request("digits", payload, deadline=time.monotonic() + seconds, client=client)


def raising(error: Exception) -> Handler:
    async def handler(_: Request) -> Reply:
        raise error

    return handler


async def hang(_: Request) -> Reply:
    await asyncio.Event().wait()
    return Reply()


async def test_item_goes_from_stage_to_stage(tmp_path: Path) -> None:
    async with running(tmp_path) as (runner, mesh):
        reply = await runner(request())
        assert reply.payload == b"top_k(digits(center_crop(jpeg)))"
        assert [fake.requests[0].target for fake in mesh.fakes] == [
            "center_crop",
            "digits",
            "top_k",
        ]
        assert [fake.requests[0].parameters for fake in mesh.fakes] == [b'{"size":2}', b"", b""]
        assert mesh.leased() == (0, 0)


async def test_context_goes_from_preprocess_to_postprocess_past_the_model(tmp_path: Path) -> None:
    async with running(tmp_path) as (runner, mesh):
        reply = await runner(request())
        contexts = [fake.requests[0].context for fake in mesh.fakes]
        assert contexts == [b"", b"", b"context of center_crop"]
        assert reply.context == b""


async def test_model_alone_is_asked_alone(tmp_path: Path) -> None:
    async with running(tmp_path, digits="model: digits") as (runner, mesh):
        assert (await runner(request(b"tensors"))).payload == b"digits(tensors)"
        assert [len(fake.requests) for fake in mesh.fakes] == [0, 1, 0]


async def test_trace_context_and_client_reach_every_stage(tmp_path: Path) -> None:
    trace = bytes(range(24)) + b"\0"
    async with running(tmp_path) as (runner, mesh):
        await runner(Request("digits", b"x", trace=trace, client="c"))
        assert [fake.requests[0].trace for fake in mesh.fakes] == [trace] * 3


async def test_without_credit_for_the_model_nothing_is_preprocessed(tmp_path: Path) -> None:
    """Pixels are 10 to 100 times the bytes of a JPEG: they are made when they can be taken."""
    async with running(tmp_path, Limits(max_items=1)) as (runner, mesh):
        lease = await mesh.stages.infer.reserve(1, math.inf)
        calls = [asyncio.create_task(runner(request())) for _ in range(5)]
        await eventually(lambda: mesh.stages.infer.waiting == 5)
        await mesh.stages.preprocess.call(Request("other", b""))  # whatever was sent has come
        assert [seen.target for seen in mesh.preprocess.requests] == ["other"]
        lease.release()
        replies = await asyncio.gather(*calls)
        assert {reply.payload for reply in replies} == {b"top_k(digits(center_crop(jpeg)))"}
        assert mesh.leased() == (0, 0)


async def test_credit_is_of_the_bytes_that_the_op_makes(tmp_path: Path) -> None:
    async with running(tmp_path) as (runner, mesh):
        mesh.preprocess.answer = hang
        call = asyncio.create_task(runner(request()))
        await eventually(lambda: len(mesh.preprocess.requests) == 1)
        (link,) = mesh.stages.infer.replicas
        assert (link.items, link.bytes) == (1, 4)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert mesh.leased() == (0, 0)


async def test_each_stage_is_given_the_time_that_is_left(tmp_path: Path) -> None:
    async with running(tmp_path) as (runner, mesh):
        left: list[float] = []

        async def take_long(seen: Request) -> Reply:
            left.append(seen.deadline - time.monotonic())
            await asyncio.sleep(0.1)
            return Reply()

        for fake in mesh.fakes:
            fake.answer = take_long
        await runner(request(seconds=5))
        assert 4 < left[0] <= 5
        assert left[0] - left[1] >= 0.1
        assert left[1] - left[2] >= 0.1


@pytest.mark.parametrize(
    ("own", "pipeline", "wanted"),
    [(math.inf, 3, 3), (1, 3, 1), (9, 3, 3)],
    ids=["no", "own", "its"],
)
async def test_shorter_deadline_of_caller_and_pipeline_counts(
    own: float, pipeline: float, wanted: float, tmp_path: Path
) -> None:
    text = f"{PIPELINE}\ndeadline_s: {pipeline}"
    async with running(tmp_path, digits=text) as (runner, mesh):
        left: list[float] = []

        async def note(seen: Request) -> Reply:
            left.append(seen.deadline - time.monotonic())
            return Reply()

        mesh.preprocess.answer = note
        await runner(request(seconds=own))
        assert wanted - 0.9 < left[0] <= wanted


async def test_time_that_was_spent_before_counts(tmp_path: Path) -> None:
    async with running(tmp_path, digits=PIPELINE + "\ndeadline_s: 1") as (runner, mesh):
        late = Request("digits", b"x", received=time.monotonic() - 2)
        with pytest.raises(DeadlineExceeded, match="'digits'"):
            await runner(late)
        assert [len(fake.requests) for fake in mesh.fakes] == [0, 0, 0]


@pytest.mark.parametrize("index", range(3), ids=STAGES)
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidInput("why"), InvalidInput),
        (Overloaded("why"), Overloaded),
        (EngineError("why"), EngineError),
        (DeadlineExceeded("why"), DeadlineExceeded),
        (StageUnavailable("why"), StageUnavailable),
        (ZeroDivisionError("secret"), InternalError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
async def test_error_of_a_stage_is_the_answer_with_its_type_and_text(
    index: int, error: Exception, kind: type[MeshError], tmp_path: Path
) -> None:
    async with running(tmp_path) as (runner, mesh):
        mesh.fakes[index].answer = raising(error)
        with pytest.raises(kind) as caught:
            await runner(request(seconds=10))
        assert "secret" not in str(caught.value)
        assert str(caught.value) == "why" or kind is InternalError
        assert [len(fake.requests) for fake in mesh.fakes[index + 1 :]] == [0] * (2 - index)
        assert mesh.leased() == (0, 0)
        mesh.fakes[index].answer = mesh.fakes[index]._name_it
        assert (await runner(request(seconds=10))).payload


@pytest.mark.parametrize("index", range(3), ids=STAGES)
async def test_caller_that_gives_up_leaves_nothing_at_any_stage(index: int, tmp_path: Path) -> None:
    async with running(tmp_path) as (runner, mesh):
        fake = mesh.fakes[index]
        fake.answer = hang
        calls = [asyncio.create_task(runner(request())) for _ in range(3)]
        await eventually(lambda: fake.stage.depth == 3)
        for call in calls:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(result) for result in results} == {asyncio.CancelledError}
        assert mesh.leased() == (0, 0)
        await eventually(lambda: fake.stage.depth == 0)


@pytest.mark.parametrize("index", range(3), ids=STAGES)
async def test_deadline_at_any_stage_ends_the_item(index: int, tmp_path: Path) -> None:
    async with running(tmp_path) as (runner, mesh):
        mesh.fakes[index].answer = hang
        with pytest.raises(DeadlineExceeded):
            await runner(request(seconds=0.1))
        assert mesh.leased() == (0, 0)
        await eventually(lambda: mesh.fakes[index].stage.depth == 0)


async def test_deadline_while_it_waits_for_credit(tmp_path: Path) -> None:
    async with running(tmp_path, Limits(max_items=1)) as (runner, mesh):
        lease = await mesh.stages.infer.reserve(1, math.inf)
        with pytest.raises(DeadlineExceeded, match="room"):
            await runner(request(seconds=0.05))
        assert mesh.stages.infer.waiting == 0
        lease.release()
        assert mesh.leased() == (0, 0)


@pytest.mark.parametrize("index", range(3), ids=STAGES)
async def test_stage_that_dies_gives_the_lease_back(index: int, tmp_path: Path) -> None:
    async with running(tmp_path) as (runner, mesh):
        fake = mesh.fakes[index]
        fake.answer = hang
        call = asyncio.create_task(runner(request(seconds=0.5)))
        await eventually(lambda: fake.stage.depth == 1)
        await fake.kill()
        with pytest.raises(StageUnavailable):
            await call
        assert mesh.leased() == (0, 0)


async def test_unknown_pipeline_is_told_with_those_there_are(tmp_path: Path) -> None:
    async with running(tmp_path, b=PIPELINE, a=PIPELINE) as (runner, _):
        with pytest.raises(NotFound, match=r"pipeline 'nope' is not known; .*\['a', 'b'\]"):
            await runner(Request("nope", b""))


async def test_pipeline_that_does_not_fit_or_cannot_be_read_is_refused(tmp_path: Path) -> None:
    misfit = PIPELINE.replace("digits", "other")
    pipelines = {"digits": PIPELINE, "misfit": misfit, "broken": "model: {"}
    async with running(tmp_path, None, **pipelines) as (runner, _):
        assert runner.names() == ["broken", "digits", "misfit"]
        with pytest.raises(Refused, match="there is no 'other'"):
            await runner(Request("misfit", b""))
        with pytest.raises(Refused, match=r"pipeline\.yaml is no pipeline"):
            await runner(Request("broken", b""))
        assert (await runner(request())).payload
        assert [runner.is_ready(name) for name in runner.names()] == [False, True, False]


def depth(traceback: TracebackType | None) -> int:
    return 0 if traceback is None else 1 + depth(traceback.tb_next)


async def test_refusal_keeps_nothing_of_the_requests_it_answered(tmp_path: Path) -> None:
    """An error that is raised again and again collects a traceback with every frame and request."""
    async with running(tmp_path, digits=PIPELINE.replace("digits", "other")) as (runner, _):
        depths = []
        for _ in range(10):
            with pytest.raises(Refused) as caught:
                await runner(request())
            depths.append(depth(caught.value.__traceback__))
        assert depths[-1] == depths[0]


async def test_pipeline_whose_stages_were_not_asked_yet_is_unavailable(tmp_path: Path) -> None:
    async with running_mesh() as mesh:
        runner = PipelineRunner(repository(tmp_path, digits=PIPELINE), mesh.stages)
        with pytest.raises(StageUnavailable, match="waits for its stages"):
            await runner(request())


@pytest.mark.parametrize(
    "failure", [StageUnavailable("restarts"), DeadlineExceeded("busy")], ids=["away", "busy"]
)
async def test_stage_that_cannot_describe_itself_now_leaves_what_is_served(
    failure: MeshError, tmp_path: Path
) -> None:
    async with running(tmp_path) as (runner, mesh):
        mesh.infer.failure = failure
        await runner.check()
        assert (await runner(request())).payload


async def test_pipeline_that_no_longer_fits_is_taken_away_and_comes_back(tmp_path: Path) -> None:
    async with running(tmp_path) as (runner, mesh):
        digits = mesh.infer.targets["digits"]
        mesh.infer.targets["digits"] = described("digits", [], [])
        await runner.check()
        with pytest.raises(Refused):
            await runner(request())
        mesh.infer.targets["digits"] = digits
        await runner.check()
        assert (await runner(request())).payload


@pytest.fixture
def tasks() -> dict[str, str]:
    return {
        "crop": PIPELINE, "one": PIPELINE.replace("classify", "detect"),
        "two": PIPELINE.replace("classify", "detect"), "own": "model: digits",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("task", "name", "found"), [("classify", "", "crop"), ("detect", "two", "two")], ids=str
)
async def test_typed_call_finds_its_pipeline(
    task: str, name: str, found: str, tasks: dict[str, str], tmp_path: Path
) -> None:
    async with running(tmp_path, None, **tasks) as (runner, _):
        assert runner.find_task(task, name).name == found


@pytest.mark.parametrize(
    ("task", "name", "kind", "match"),
    [
        pytest.param("detect", "", InvalidInput, r"\['one', 'two'\]", id="several"),
        pytest.param("classify_text", "", NotFound, "task 'classify_text'", id="none"),
        pytest.param("detect", "crop", InvalidInput, "has the task 'classify'", id="other_task"),
        pytest.param("detect", "nope", NotFound, "'nope'", id="unknown"),
    ],
)
async def test_typed_call_that_finds_none_is_told_why(
    task: str, name: str, kind: type[MeshError], match: str, tasks: dict[str, str], tmp_path: Path
) -> None:
    async with running(tmp_path, None, **tasks) as (runner, _):
        with pytest.raises(kind, match=match):
            runner.find_task(task, name)


class FakeHost:
    """Notes what the watch tells of health."""

    def __init__(self) -> None:
        self.health: dict[str, bool] = {}

    def set_health(self, service: str, serving: bool) -> None:
        self.health[service] = serving


@asynccontextmanager
async def watched(runner: PipelineRunner) -> AsyncIterator[dict[str, bool]]:
    host = FakeHost()
    watch = asyncio.create_task(runner.watch(cast(Host, host)))
    try:
        yield host.health
    finally:
        watch.cancel()
        (result,) = await asyncio.gather(watch, return_exceptions=True)
        assert isinstance(result, asyncio.CancelledError)


async def test_health_tells_each_pipeline_and_the_whole(tmp_path: Path) -> None:
    root = repository(tmp_path, digits=PIPELINE, broken="model: {")
    async with running_mesh() as mesh:
        runner = PipelineRunner(root, mesh.stages)
        async with watched(runner) as health:
            await eventually(lambda: health.get("") is True)
            assert health == {"": True, "digits": True, "broken": False}


@pytest.mark.parametrize("index", range(3), ids=STAGES)
async def test_health_of_a_stage_that_is_gone_is_told_at_once(index: int, tmp_path: Path) -> None:
    async with running_mesh() as mesh:
        runner = PipelineRunner(repository(tmp_path, digits=PIPELINE), mesh.stages)
        async with watched(runner) as health:
            await eventually(lambda: health.get("") is True)
            await mesh.fakes[index].kill()
            await eventually(lambda: health == {"": False, "digits": False}, within_s=3)


async def test_health_is_told_while_a_stage_takes_long_to_describe(tmp_path: Path) -> None:
    async with running_mesh() as mesh:
        runner = PipelineRunner(repository(tmp_path, digits=PIPELINE), mesh.stages)
        mesh.preprocess.opened.clear()
        async with watched(runner) as health:
            await eventually(lambda: health == {"": False, "digits": False})
            await eventually(lambda: bool(mesh.preprocess.described))
            mesh.preprocess.opened.set()
            await eventually(lambda: health == {"": True, "digits": True})
            mesh.preprocess.opened.clear()
            await mesh.infer.kill()
            await eventually(lambda: health == {"": False, "digits": False}, within_s=3)


async def test_model_without_a_pipeline_is_one_by_itself_and_is_no_part_of_the_health(
    tmp_path: Path,
) -> None:
    async with running_mesh(prepare=lambda mesh: mesh.infer.tell_all()) as mesh:
        runner = PipelineRunner(repository(tmp_path, digits=PIPELINE), mesh.stages)
        async with watched(runner) as health:
            await eventually(lambda: health == {"": True, "digits": True})
        assert (runner.names(), runner.models()) == (["digits"], ["digits", "digits.model"])
        reply = await runner(Request("digits.model", b"tensors"))
        assert reply.payload == b"digits(tensors)"
        assert mesh.preprocess.requests == mesh.postprocess.requests == []


async def test_broken_file_is_refused_even_while_no_stage_is_there(tmp_path: Path) -> None:
    async with running_mesh() as mesh:
        for fake in mesh.fakes:
            await fake.kill()
        await eventually(lambda: not any(client.replicas for client in mesh.stages.all()))
        root = repository(tmp_path, digits=PIPELINE, broken="model: {")
        runner = PipelineRunner(root, mesh.stages)
        async with watched(runner) as health:
            await eventually(lambda: health.get("broken") is False)
            with pytest.raises(Refused):
                runner.find("broken")
            with pytest.raises(StageUnavailable):
                runner.find("digits")
