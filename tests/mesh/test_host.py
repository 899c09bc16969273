"""A server process binds what it was told, tells its services, and leaves nothing behind."""

import asyncio
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from prometheus_client import CollectorRegistry, Gauge

from mesh.errors import SettingsError
from mesh.host import Host, serve_metrics
from mesh.unary import unary_method
from protos.mesh.v1 import stage_pb2
from tests.conftest import echo

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

SERVICE = "mesh.v1.Infer"


FAILING = """
import sys
from prometheus_client import CollectorRegistry
from mesh import log, telemetry
from mesh.errors import SettingsError
from mesh.host import run_process
from mesh.server import Limits
from mesh.settings import ServiceSettings, TelemetrySettings
from mesh.stage import Stage

async def fails():
    raise SettingsError("no")

async def main():
    log.configure("test", "INFO")
    settings = ServiceSettings(bind=sys.argv[1])
    tracing = telemetry.configure("test", TelemetrySettings())
    limits = Limits(1, 1, 1.0)
    stage = Stage("t", settings, None, lambda _: [], tracing, limits, None, CollectorRegistry())
    await stage.serve(fails)

run_process(main)
"""


def path_of(bind: str) -> Path:
    return Path(bind.removeprefix("unix:"))


async def no_drain() -> None:
    """Nothing is under way."""


@asynccontextmanager
async def running_host(bind: str) -> AsyncIterator[Host]:
    host = Host(bind)
    host.add(SERVICE, {"Describe": unary_method(echo, "t")})
    await host.start()
    try:
        yield host
    finally:
        await host.stop(no_drain, 0)


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return int(answer.status)


def listening(address: tuple[str, int] | str) -> socket.socket:
    found = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    found.bind(address)
    found.listen()
    return found


async def test_port_in_use_is_an_error_that_names_it() -> None:
    with listening(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SettingsError, match=f"cannot listen at {bind}"):
            await Host(bind).start()


async def test_two_hosts_do_not_share_a_port() -> None:
    with listening(("127.0.0.1", 0)) as probe:
        bind = f"127.0.0.1:{probe.getsockname()[1]}"
    async with running_host(bind):
        with pytest.raises(SettingsError, match=f"cannot listen at {bind}"):
            await Host(bind).start()


@pytest.mark.parametrize(
    "bind",
    [
        "unix:/no/such/folder/x.sock",
        f"unix:/tmp/{'x' * 200}.sock",
        "256.0.0.1:80",
        "localhost",
        "127.0.0.1:65536",
        "127.0.0.1:http",
    ],
    ids=str,
)
async def test_address_that_cannot_be_is_an_error_that_names_it(bind: str) -> None:
    with pytest.raises(SettingsError) as caught:
        await Host(bind).start()
    assert bind in str(caught.value)


async def test_socket_that_a_killed_process_left_is_taken_over(bind: str) -> None:
    listening(str(path_of(bind))).close()
    assert path_of(bind).is_socket()
    async with running_host(bind), grpc.aio.insecure_channel(bind) as channel:
        assert await health(channel) == NOT_SERVING
    assert not path_of(bind).exists()


async def test_socket_in_use_is_refused_and_stays(bind: str) -> None:
    async with running_host(bind), grpc.aio.insecure_channel(bind) as channel:
        with pytest.raises(SettingsError, match="another process does"):
            await Host(bind).start()
        assert await health(channel) == NOT_SERVING


async def test_file_that_is_no_socket_is_never_removed(bind: str) -> None:
    path_of(bind).write_text("precious")
    with pytest.raises(SettingsError, match="no socket"):
        await Host(bind).start()
    assert path_of(bind).read_text() == "precious"


async def test_reflection_lists_every_service(bind: str) -> None:
    async with running_host(bind), grpc.aio.insecure_channel(bind) as channel:
        listed = await reflected(channel, list_services="")
        names = {service.name for service in listed.list_services_response.service}
        assert names == {
            SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection",
        }  # fmt: skip


async def test_reflection_tells_the_messages_of_a_service(bind: str) -> None:
    async with running_host(bind), grpc.aio.insecure_channel(bind) as channel:
        found = await reflected(channel, file_containing_symbol=SERVICE)
        files = found.file_descriptor_response.file_descriptor_proto
        assert stage_pb2.DESCRIPTOR.serialized_pb in files


async def reflected(channel: grpc.aio.Channel, **question: Any) -> Any:
    call: grpc.aio.StreamStreamCall[Any, Any] = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )(iter([reflection_pb2.ServerReflectionRequest(**question)]))
    return await anext(aiter(call))


async def test_stop_lets_a_unary_call_end_within_its_grace(bind: str) -> None:
    began, answer = asyncio.Event(), asyncio.Event()

    async def hold(request: Any) -> Any:
        began.set()
        await answer.wait()
        return await echo(request)

    host = Host(bind)
    host.add(SERVICE, {"Describe": unary_method(hold, "t")})
    await host.start()
    async with grpc.aio.insecure_channel(bind) as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{SERVICE}/Describe"
        )
        call = asyncio.ensure_future(method(b"x"))
        await began.wait()
        stopping = asyncio.create_task(host.stop(no_drain, 5))
        await asyncio.sleep(0)
        answer.set()
        assert await call == b"x"
        await asyncio.wait_for(stopping, 5)


def test_metrics_port_in_use_is_an_error_that_names_it() -> None:
    with listening(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"cannot serve metrics at port {port}"):
            serve_metrics(port)


def test_metrics_port_0_serves_nothing() -> None:
    before = os.listdir("/proc/self/task")
    serve_metrics(0)
    assert os.listdir("/proc/self/task") == before


def test_metrics_are_those_of_the_registry_it_was_given() -> None:
    registry = CollectorRegistry()
    Gauge("held", "What is held", registry=registry).set(3)
    with listening(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serve_metrics(port, registry)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert answer.read().decode().splitlines()[-1] == "held 3.0"


@pytest.mark.parametrize("ending", ["bind", "prepare"])
def test_start_that_fails_ends_with_one_line(ending: str, tmp_path: Path) -> None:
    bind = "localhost:65536" if ending == "bind" else f"unix:{tmp_path / 's.sock'}"
    ended = subprocess.run(
        [sys.executable, "-c", FAILING, bind], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert '"event": "cannot start"' in line


@pytest.mark.parametrize("hangs", [False, True], ids=["drain_ends", "drain_hangs"])
async def test_process_whose_parent_is_dead_does_not_wait_for_what_never_ends(
    hangs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.host.is_orphan", lambda: True)
    monkeypatch.setattr("mesh.host.ORPHAN_S", 0.2)
    found = Host(f"unix:{tmp_path}/x.sock")
    await found.start()
    ended = False

    async def drain() -> None:
        nonlocal ended
        await asyncio.sleep(3600 if hangs else 0.02)
        ended = True

    async with asyncio.timeout(10):
        await found.stop(drain, 3600)
    assert ended is not hangs
    assert not (tmp_path / "x.sock").exists()
