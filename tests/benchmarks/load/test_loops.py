"""The generators against a real server of known speed: no wait is left out."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from benchmarks.load import oip_client
from benchmarks.load.loops import AskError, closed_loop, open_loop
from benchmarks.load.schedule import due_times

ROOT = Path(__file__).parents[3]
WORK_S = 0.02


class SlowServer:
    """Answers one request at a time, each after a time of its own; notes what came."""

    def __init__(self, work_s: Callable[[int], float]) -> None:
        self._work_s = work_s
        self._one = asyncio.Lock()
        self.came: list[bytes] = []

    async def infer(self, request: Any, context: Any) -> Any:
        number = len(self.came)
        self.came.append(request.raw_input_contents[0][4:])
        if self.came[-1] == b"broken":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "broken")
        async with self._one:
            await asyncio.sleep(self._work_s(number))
        response = service_pb2.ModelInferResponse()
        response.outputs.add(name="classes", datatype="INT32", shape=[1, 2])
        response.raw_output_contents.append(np.array([[7, 3]], np.int32).tobytes())
        return response


@asynccontextmanager
async def serving(slow: SlowServer) -> AsyncIterator[str]:
    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(
        slow.infer,
        service_pb2.ModelInferRequest.FromString,
        service_pb2.ModelInferResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler(
        "inference.GRPCInferenceService", {"ModelInfer": method}
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def steady(number: int) -> float:
    return WORK_S


async def test_open_loop_above_what_the_server_can_do_shows_the_growing_queue() -> None:
    """50 requests come in 0.5 s and take 1 s: the last one waits for half a second."""
    async with serving(SlowServer(steady)) as address:
        async with oip_client.unary(address, "jpeg", 10) as ask:
            await ask(b"warm")
            report = await open_loop(ask, [b"x"], due_times(2 / WORK_S, 0.5, "fixed"))
    assert report.answered == report.requests == 50
    assert report.max_ms is not None and report.max_ms >= 49 * WORK_S * 1e3 - 490 + 20
    assert report.p50_ms is not None and report.p50_ms >= 200
    assert report.per_s <= 1 / WORK_S


async def test_closed_loop_at_the_same_server_sees_no_queue() -> None:
    """Why there is an open loop: this one sends only when the server is ready for more."""
    async with serving(SlowServer(steady)) as address:
        async with oip_client.unary(address, "jpeg", 10) as ask:
            report = await closed_loop(ask, [b"x"], concurrency=1, seconds=0.3)
    assert report.p50_ms is not None and WORK_S * 1e3 <= report.p50_ms < 200


async def test_one_stall_is_felt_by_all_that_were_due_meanwhile() -> None:
    """A closed loop would have one slow request of many, and a fine median."""
    slow = SlowServer(lambda number: 0.5 if number == 1 else 0)
    async with serving(slow) as address:
        async with oip_client.unary(address, "jpeg", 10) as ask:
            await ask(b"warm")
            report = await open_loop(ask, [b"x"], due_times(100, 0.5, "fixed"))
    assert report.requests == 50
    # Due at 0, 10, … 490 ms, answered at 500 ms or later: half of them wait for 250 ms.
    assert report.p50_ms is not None and report.p50_ms >= 240
    assert report.p95_ms is not None and report.p95_ms >= 470


async def test_open_loop_does_not_wait_for_answers_before_it_sends() -> None:
    slow = SlowServer(lambda number: 0.4)
    async with serving(slow) as address:
        async with oip_client.unary(address, "jpeg", 0.3) as ask:
            report = await open_loop(ask, [b"a", b"b"], due_times(50, 0.2, "fixed"))
    assert report.answered == 0
    assert report.errors == {"DEADLINE_EXCEEDED": 10}
    assert slow.came == [b"a", b"b"] * 5


async def test_closed_loop_keeps_so_many_under_way() -> None:
    async with serving(SlowServer(steady)) as address:
        async with oip_client.unary(address, "jpeg", 10) as ask:
            report = await closed_loop(ask, [b"x"], concurrency=8, seconds=0.4)
    assert report.p50_ms is not None and report.p50_ms >= 8 * WORK_S * 1e3 * 0.95


async def test_failed_request_is_told_by_its_status() -> None:
    async with serving(SlowServer(steady)) as address:
        async with oip_client.unary(address, "jpeg", 10) as ask:
            with pytest.raises(AskError, match=r"^INVALID_ARGUMENT$"):
                await ask(b"broken")
            assert await ask(b"whole") == [7, 3]


async def test_answer_without_classes_is_a_failure() -> None:
    with pytest.raises(AskError, match="no classes"):
        oip_client.classes(service_pb2.ModelInferResponse())


@pytest.mark.parametrize(
    ("mode", "requests"),
    [
        pytest.param(["open", "--rate", "50", "--seconds", "0.4", "--spacing", "fixed"], 20,
                     id="open"),
        pytest.param(["closed", "--concurrency", "1", "--seconds", "0.2"], None, id="closed"),
    ],
)  # fmt: skip
async def test_client_process_prints_its_report(
    mode: list[str], requests: int | None, tmp_path: Path
) -> None:
    (tmp_path / "000").write_bytes(b"first")
    slow = SlowServer(steady)
    async with serving(slow) as address:
        report = await client_process(address, tmp_path, mode)
    assert report["errors"] == {}
    assert report["answered"] == report["requests"] == (requests or report["requests"]) > 0
    assert report["client_cpu_us"] > 0
    assert set(slow.came) == {b"first"}


async def test_client_process_gives_the_classes_of_each_payload_in_order(tmp_path: Path) -> None:
    for name in ("001", "000"):
        (tmp_path / name).write_bytes(name.encode())
    slow = SlowServer(steady)
    async with serving(slow) as address:
        assert await client_process(address, tmp_path, ["once"]) == [[7, 3], [7, 3]]
    assert slow.came == [b"000", b"001"]


async def client_process(address: str, inputs: Path, mode: list[str]) -> Any:
    words = ["--protocol", "oip", "--address", address, "--inputs", str(inputs), *mode]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.load", *words, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    return json.loads(output)
