"""Texts that stream through all services, whoever dies meanwhile."""

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import grpc
import psutil
import pytest

from mesh.client import StageClient
from mesh.item import Request
from mesh.sync_client import MeshClient
from mesh.tensor import bytes_tensor, pack, to_proto, unpack
from protos.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from tests.conftest import eventually
from tests.e2e.conftest import Mesh, start_mesh, stop_mesh
from tests.e2e.test_metrics import scrape, value
from tests.e2e.test_traces import fetch

NUMBERS = {"stage": "mesh.v1.Infer", "model": "numbers"}
LONG = "777,777,777 ="
PROMPT_TOKENS = 12
"""The space and the sign are one."""
NAME = (
    " seven hundred seventy-seven million seven hundred seventy-seven thousand "
    "seven hundred seventy-seven"
)


def request(text: str, pipeline: str = "numbers", **options: Any) -> mesh_pb2.GenerateRequest:
    return mesh_pb2.GenerateRequest(pipeline=pipeline, text=text, **options)


def generate(channel: grpc.Channel, text: str, **options: Any) -> list[Any]:
    stub: Any = mesh_pb2_grpc.MeshStub(channel)
    return list(stub.Generate(request(text, **options), timeout=20))


def said(responses: list[Any]) -> str:
    return "".join(response.text for response in responses)


def test_date_in_any_of_some_languages_is_read(channel: grpc.Channel) -> None:
    for text in (
        "vendredi 27 novembre 2026",
        "27. November 2026",
        "2026年11月27日",
        "27 de nov 2026",
    ):
        assert said(generate(channel, text, pipeline="dates")) == "2026-11-27"


def test_text_comes_bit_by_bit_and_its_end_tells_why(channel: grpc.Channel) -> None:
    responses = generate(channel, LONG)
    assert said(responses) == NAME
    last = responses[-1]
    assert (last.text, last.finish_reason) == ("", "stop")
    assert last.completion_tokens >= len(responses) - 1 > 1
    assert last.prompt_tokens == PROMPT_TOKENS


def test_parameters_are_honoured(channel: grpc.Channel) -> None:
    short = generate(channel, LONG, max_tokens=3)
    assert (short[-1].finish_reason, short[-1].completion_tokens) == ("length", 3)
    assert NAME.startswith(said(short))
    stopped = generate(channel, LONG, stop=["thousand", "never"])
    assert said(stopped) == NAME[: NAME.index("thousand")]
    assert stopped[-1].finish_reason == "stop"
    wild = [said(generate(channel, LONG, temperature=9, seed=seed)) for seed in (1, 1, 2)]
    assert wild[0] == wild[1] != wild[2]


@pytest.mark.parametrize(
    ("options", "text", "part"),
    [
        ({"max_tokens": 0}, LONG, "max_tokens"),
        ({"max_tokens": 1000}, LONG, "at most 64 together"),
        ({"top_p": 0}, LONG, "top_p"),
        ({"stop": [""]}, LONG, "stop"),
        ({}, "", "empty text"),
        ({}, "1" * 500, "at most 63"),
        ({"pipeline": "language"}, LONG, "task"),
    ],
    ids=str,
)
def test_bad_request_is_invalid_and_the_next_one_is_answered(
    channel: grpc.Channel, options: dict[str, Any], text: str, part: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        generate(channel, text, **options)
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert part in error.details()
    assert said(generate(channel, LONG)) == NAME


async def test_stream_of_many_requests_and_run_give_the_whole(
    mesh: Mesh, channel: grpc.Channel
) -> None:
    payload = {"text": bytes_tensor(LONG.encode())}
    async with StageClient("mesh.v1.Mesh", mesh.gateway, "Stream") as client:
        options = json.dumps({"stop": ["million"]}).encode()
        reply = await client.call(Request("numbers", pack(payload), options))
    assert unpack(reply.payload)["text"].tolist() == [b" seven hundred seventy-seven "]
    stub: Any = mesh_pb2_grpc.MeshStub(channel)
    run = mesh_pb2.RunRequest(pipeline="numbers", inputs=[to_proto(payload)])
    tensors = {tensor.name: tensor for tensor in stub.Run(run, timeout=20).outputs[0].tensors}
    assert tensors["text"].raw[4:].decode() == NAME


def test_trace_has_what_the_conventions_name(mesh: Mesh) -> None:
    with MeshClient(mesh.gateway, traced=True) as client:
        list(client.stream("Generate", request(LONG), mesh_pb2.GenerateResponse))
    data = fetch(mesh, client.trace_id, 9, "infer: mesh.v1.Infer/Run")
    spans = [
        span for group in data.resource_spans for scope in group.scope_spans for span in scope.spans
    ]
    found = {
        pair.key: pair.value
        for span in spans
        if span.name in ("mesh.v1.Infer/Run", "detokenize")
        for pair in span.attributes
    }
    assert 1 <= found["mesh.generation.items"].int_value <= 20
    assert found["gen_ai.operation.name"].string_value == "text_completion"
    assert found["gen_ai.request.model"].string_value == "numbers"
    assert found["gen_ai.usage.input_tokens"].int_value == PROMPT_TOKENS
    reasons = found["gen_ai.response.finish_reasons"].array_value.values
    assert [reason.string_value for reason in reasons] == ["stop"]


def test_scrape_tells_tokens_times_and_slots(mesh: Mesh, channel: grpc.Channel) -> None:
    before = scrape(mesh)
    made = sum(generate(channel, LONG)[-1].completion_tokens for _ in range(3))
    after = scrape(mesh)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **NUMBERS, **labels) - value(before, name, **NUMBERS, **labels)

    assert grown("mesh_generation_tokens_total", gen_ai_token_type="output") == made
    assert grown("mesh_generation_tokens_total", gen_ai_token_type="input") == 3 * PROMPT_TOKENS
    assert grown("mesh_generation_finishes_total", reason="stop") == 3
    assert grown("gen_ai_server_time_to_first_token_seconds_count") == 3
    assert value(after, "mesh_generation_slots", **NUMBERS) == 32
    assert value(after, "mesh_generation_slots_busy", **NUMBERS) == 0
    assert value(after, "mesh_generation_cache_bytes", **NUMBERS) > 0


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh with two replicas of each stage."""
    replicas = [f"{stage}=2" for stage in ("preprocess", "infer", "postprocess")]
    running = start_mesh(tmp_path_factory.mktemp("generation") / "log", "--workers", *replicas)
    yield running
    assert stop_mesh(running) == 0


def resumed(mesh: Mesh) -> float:
    return value(scrape(mesh), "mesh_gateway_generations_resumed_total")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["infer_svc", "postprocess_svc", "preprocess_svc"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
async def test_no_token_is_lost_or_repeated_when_a_replica_dies(
    doubled: Mesh, module: str, number: signal.Signals
) -> None:
    before = await asyncio.to_thread(resumed, doubled)
    done = 0

    async with grpc.aio.insecure_channel(doubled.gateway) as channel:
        stub: Any = mesh_pb2_grpc.MeshStub(channel)

        async def ask() -> str:
            nonlocal done
            text = ""
            async for response in stub.Generate(request(LONG), timeout=60):
                text += response.text
            done += 1
            return text

        calls = [asyncio.create_task(ask()) for _ in range(600)]
        await eventually(lambda: done > 60, 30)
        victim = doubled.services(module)[0]
        victim.send_signal(number)
        assert done < 600, "all were answered before the replica died"
        assert await asyncio.gather(*calls) == [NAME] * 600
        await eventually(lambda: not victim.is_running(), 30)
        await eventually(lambda: len(doubled.services(module)) == 2, 20)
    after = await asyncio.to_thread(resumed, doubled)
    if (module, number) == ("infer_svc", signal.SIGKILL):
        assert after > before, "no generation was under way at the replica that died"


@pytest.mark.slow
async def test_ten_thousand_that_give_up_leave_nothing(doubled: Mesh) -> None:
    """A few tokens each, then the call is closed: slots, memory and tasks are as before."""

    def pss() -> dict[int, int]:
        processes = psutil.Process(doubled.process.pid).children(recursive=True)
        return {one.pid: one.memory_full_info().pss for one in processes}

    async with grpc.aio.insecure_channel(doubled.gateway) as channel:
        stub: Any = mesh_pb2_grpc.MeshStub(channel)

        async def give_up(tokens: int) -> None:
            call = stub.Generate(request(LONG), timeout=60)
            for _ in range(tokens):
                await call.read()
            call.cancel()

        async def many(count: int) -> None:
            for begin in range(0, count, 100):
                await asyncio.gather(*(give_up((begin + n) % 3) for n in range(100)))

        await many(2000)
        before = await asyncio.to_thread(pss)
        await many(10_000)
        began = time.monotonic()
        await eventually(partial(_is_idle, doubled), 10)
        assert time.monotonic() - began < 2
        after = await asyncio.to_thread(pss)
        grown = {pid: after[pid] - size for pid, size in before.items() if pid in after}
        assert max(grown.values()) < 8 * 2**20, grown
        text = ""
        async for response in stub.Generate(request(LONG), timeout=20):
            text += response.text
        assert text == NAME


def _is_idle(mesh: Mesh) -> bool:
    busy = [
        sample.value
        for family in scrape(mesh)
        for sample in family.samples
        if sample.name in ("mesh_generation_slots_busy", "mesh_generation_waiting")
    ]
    return bool(busy) and sum(busy) == 0
