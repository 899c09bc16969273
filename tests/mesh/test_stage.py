"""A stage serves once it is prepared, describes itself, and finishes its work before it ends."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry, Gauge

import mesh
from mesh.client import ClientLimits, StageClient
from mesh.errors import InternalError, NotFound, StageUnavailable
from mesh.item import Request
from mesh.server import Limits
from mesh.settings import ServiceSettings, TelemetrySettings
from mesh.stage import Stage
from mesh.status import from_rpc_error
from mesh.telemetry import configure
from mesh.unary import ask
from protos.mesh.v1.stage_pb2 import MetricsRequest, MetricsResponse, Target, TargetSpec
from tests.conftest import STAGE, echo, eventually
from tests.mesh.test_host import NOT_SERVING, health, no_drain, path_of

ROOT = Path(__file__).parents[2]
SERVING = 1


def describe(targets: Iterable[Target]) -> Iterable[TargetSpec]:
    targets = list(targets)
    if any(target.name == "nope" for target in targets):
        raise NotFound("there is no 'nope'")
    if any(target.name == "crash" for target in targets):
        raise ZeroDivisionError("secret")
    return [TargetSpec(name=target.name, version="7") for target in targets]


@asynccontextmanager
async def serving_stage(bind: str, prepared: asyncio.Event) -> AsyncIterator[Stage]:
    """Serve a stage in this process; `prepared` ends its preparation."""
    settings = ServiceSettings(bind=bind, metrics_port=0, drain_s=1)
    tracing = configure("fake", TelemetrySettings())
    registry = CollectorRegistry()
    stage = Stage(STAGE, settings, echo, describe, tracing, Limits(), registry=registry)

    async def prepare() -> None:
        await prepared.wait()

    serving = asyncio.create_task(stage.serve(prepare))
    await eventually(path_of(bind).exists)
    try:
        yield stage
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await stage.host.stop(no_drain, 0)


async def test_nothing_is_serving_before_it_is_prepared(bind: str) -> None:
    prepared = asyncio.Event()
    async with serving_stage(bind, prepared), grpc.aio.insecure_channel(bind) as channel:
        async with StageClient(STAGE, bind, limits=ClientLimits(backoff_s=0.02)) as client:
            assert await health(channel) == NOT_SERVING
            call = asyncio.create_task(client.call(Request("t", b"x")))
            await eventually(lambda: client.waiting == 1)
            assert not client.replicas
            prepared.set()
            assert (await asyncio.wait_for(call, 5)).payload == b"x"
            assert [await health(channel), await health(channel, STAGE)] == [SERVING] * 2


async def test_describe_tells_the_versions_and_each_target_in_order(bind: str) -> None:
    prepared = asyncio.Event()
    prepared.set()
    async with serving_stage(bind, prepared), StageClient(STAGE, bind) as client:
        answer = await client.describe([Target(name="b"), Target(name="a")])
        assert answer.wire_version == mesh.WIRE_VERSION
        assert (answer.service, answer.version) == (STAGE, mesh.__version__)
        assert [(spec.name, spec.version) for spec in answer.targets] == [("b", "7"), ("a", "7")]


async def test_describe_that_fails_is_the_same_error_at_the_caller(bind: str) -> None:
    prepared = asyncio.Event()
    prepared.set()
    async with serving_stage(bind, prepared), StageClient(STAGE, bind) as client:
        with pytest.raises(NotFound, match="there is no 'nope'"):
            await client.describe([Target(name="nope")])


async def test_describe_that_crashes_tells_nothing_of_its_text(
    bind: str, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = asyncio.Event()
    prepared.set()
    async with serving_stage(bind, prepared), StageClient(STAGE, bind) as client:
        with pytest.raises(InternalError) as caught:
            await client.describe([Target(name="crash")])
        assert "secret" not in str(caught.value)
        assert "secret" in caplog.text


async def test_describe_of_a_stage_that_is_away_is_unavailable(bind: str) -> None:
    async with StageClient(STAGE, bind) as client:
        with pytest.raises(StageUnavailable, match=r"no replica of mesh\.v1\.Infer"):
            await client.describe([], timeout_s=0.05)


async def test_metrics_are_those_of_the_registry_before_it_serves(bind: str) -> None:
    async with serving_stage(bind, asyncio.Event()) as stage:
        Gauge("held", "What is held", registry=stage._registry).set(3)
        answer = await ask(bind, f"{STAGE}/Metrics", MetricsRequest().SerializeToString(), 5)
        (family,) = MetricsResponse.FromString(answer).families
        assert (family.name, family.samples[0].value) == ("held", 3)


async def test_metrics_that_crash_are_an_internal_error_and_logged(
    bind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving_stage(bind, asyncio.Event()) as stage:
        held = Gauge("held", "What is held", registry=stage._registry)
        held.set_function(lambda: 1 / 0)
        with pytest.raises(InternalError):
            await ask(bind, f"{STAGE}/Metrics", b"", 5)
        assert "ZeroDivisionError" in caplog.text


async def test_method_that_a_stage_does_not_have_is_told(bind: str) -> None:
    async with serving_stage(bind, asyncio.Event()), grpc.aio.insecure_channel(bind) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{STAGE}/No")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
        assert "not found" in str(from_rpc_error(caught.value)).lower()


class Process:
    """A stage in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lines: list[bytes] = []

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def end(self) -> tuple[int, list[dict[str, object]]]:
        """Wait for the end; return the status and the log lines."""
        _, err = await asyncio.wait_for(self._process.communicate(), 20)
        assert self._process.returncode is not None
        lines = [line for line in err.decode().splitlines() if line.startswith("{")]
        return self._process.returncode, [json.loads(line) for line in lines]


@asynccontextmanager
async def stage_process(bind: str, **variables: str) -> AsyncIterator[Process]:
    variables = {"FAKE_BIND": bind, **variables}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.mesh.stage_process",
        cwd=ROOT, env=os.environ | variables, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@asynccontextmanager
async def client_of(bind: str) -> AsyncIterator[StageClient]:
    async with StageClient(STAGE, bind, limits=ClientLimits(backoff_s=0.02)) as client:
        await client.wait_ready(20)
        yield client


async def held(client: StageClient, until: Path) -> "asyncio.Task[bytes]":
    """Send an item that is under way until a file exists."""

    async def call() -> bytes:
        return (await client.call(Request("t", str(until).encode()))).payload

    task = asyncio.create_task(call())
    await eventually(lambda: bool(client.replicas) and client.replicas[0].items == 1)
    await client.call(Request("t", b""))  # behind it on the same stream, so it has come
    return task


async def test_sigterm_finishes_what_is_under_way(bind: str, tmp_path: Path) -> None:
    async with stage_process(bind) as process, client_of(bind) as client:
        call = await held(client, tmp_path / "go")
        process.signal(signal.SIGTERM)
        await eventually(lambda: not client.replicas)
        assert not call.done()
        (tmp_path / "go").touch()
        assert await asyncio.wait_for(call, 5) == b"done"
        assert client.retries == 0
        status, lines = await process.end()
        assert status == 0
        # On a busy machine gRPC tells that the client was slow to close its stream.
        events = [str(line["event"]) for line in lines]
        assert [one for one in events if "Aborting" not in one] == ["draining", "stopped"]
        assert not path_of(bind).exists()


async def test_second_signal_ends_it_at_once(bind: str, tmp_path: Path) -> None:
    async with stage_process(bind) as process, client_of(bind) as client:
        call = await held(client, tmp_path / "never")
        process.signal(signal.SIGTERM)
        await eventually(lambda: not client.replicas)
        process.signal(signal.SIGINT)
        assert (await process.end())[0] == 130
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


async def test_drain_ends_after_its_time_and_says_so(bind: str, tmp_path: Path) -> None:
    async with stage_process(bind, FAKE_DRAIN_S="0.1") as process, client_of(bind) as client:
        call = await held(client, tmp_path / "never")
        process.signal(signal.SIGTERM)
        status, lines = await process.end()
        assert status == 0
        events = [line["event"] for line in lines]
        assert events[:2] == ["draining", "drain gave up"]
        assert "stopped" in events
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


async def test_wrong_setting_ends_it_with_status_2_and_one_line(bind: str) -> None:
    async with stage_process(bind, FAKE_DRAIN_S="0") as process:
        status, lines = await process.end()
    assert status == 2
    (line,) = lines
    assert line["event"] == "cannot start"
    assert str(line["error"]).startswith("FAKE_DRAIN_S: ")
