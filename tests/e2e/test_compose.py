"""compose.yaml in real containers, with a stand-in for Jaeger. The tests run in this order."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import cv2
import grpc
import numpy as np
import pytest

from protos.mesh.v1 import mesh_pb2
from tests.conftest import eventually
from tests.e2e.conftest import ROOT, free_port
from tests.e2e.test_answers import DIGIT, PAGE
from tests.e2e.test_traces import EDGES

pytestmark = pytest.mark.compose

SERVICES = ("gateway", "preprocess", "infer", "postprocess")
FILES = ("-f", "compose.yaml", "-f", "tests/e2e/compose.standin.yaml")
LIMIT = ("--wait-timeout", "240")
CALLS = 200
GRACE_S = 30
"""The shortest `stop_grace_period` of compose.yaml: one that hangs is killed after it."""

Trace = dict[str, Any]
"""One trace in the JSON form of Jaeger's query API."""


def run(command: list[str], timeout_s: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **env},
        timeout=timeout_s,
    )  # fmt: skip


def docker(*words: str) -> str:
    done = run(["docker", *words])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def engine_fault() -> str:
    """Return why there is no container engine; empty when one answers."""
    try:
        done = run(["docker", "info", "--format", "{{.ServerVersion}}"])
    except FileNotFoundError:
        return "docker is not installed"
    return done.stderr.strip() if done.returncode else ""


def until(check: Callable[[], bool], within_s: float = 30) -> None:
    """Wait until something is true; fail when it is not in time."""
    end = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < end, f"not true within {within_s} s"
        time.sleep(0.2)


@dataclass(frozen=True)
class Stack:
    """The containers of one project, at ports that were free."""

    mesh: int
    http: int
    metrics: int
    jaeger: int

    def compose(self, *words: str, timeout_s: float = 300) -> str:
        """Run `docker compose` and return what it printed; it must succeed."""
        ports = {
            "MESH_PORT": self.mesh, "MESH_HTTP_PORT": self.http,
            "MESH_METRICS_PORT": self.metrics, "JAEGER_PORT": self.jaeger,
        }  # fmt: skip
        env = {name: str(port) for name, port in ports.items()}
        command = ["docker", "compose", "-p", "trtmesh-e2e", *FILES, *words]
        env |= {"GATEWAY_WORKERS": "2", "PREPROCESS_WORKERS": "2", "POSTPROCESS_WORKERS": "1"}
        done = run(command, timeout_s, TAG="e2e", **env)
        assert done.returncode == 0, f"{words} failed: {done.stderr[-4000:]}"
        return done.stdout

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `trtmesh` on this machine against the gateway."""
        gateway = f"127.0.0.1:{self.mesh}"
        return run([sys.executable, "-m", "mesh.cli", *words, "--gateway", gateway])

    def containers(self, *services: str) -> list[str]:
        """Return the ids of the containers of some services; none named: of all."""
        return self.compose("ps", "-a", "-q", *services).split()

    def trace(self, trace_id: str) -> Trace:
        """Ask Jaeger's port for a trace; without spans while none has come."""
        try:
            url = f"http://127.0.0.1:{self.jaeger}/api/traces/{trace_id}"
            with urlopen(url, timeout=20) as answer:
                trace: Trace = json.load(answer)["data"][0]
        except HTTPError as err:
            with err:
                assert err.code == 404
            return {"spans": [], "processes": {}}
        assert trace["traceID"] == trace_id
        return trace

    def metric(self, name: str) -> list[float]:
        """Return what each data worker of the gateway tells of the preprocess stage."""
        with urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=20) as answer:
            text = answer.read().decode()
        labels = r'\{stage="mesh.v1.Preprocess",worker="[01]"\}'
        found = re.findall(rf"^{name}{labels} (\S+)$", text, re.MULTILINE)
        assert len(found) == 2, text
        return [float(value) for value in found]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    fault = engine_fault()
    if fault:
        pytest.skip(f"no container engine answers: {fault}")
    stack = Stack(*(free_port() for _ in range(4)))
    stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "1")
    stack.compose("build", timeout_s=1200)
    try:
        stack.compose("up", "-d", "--wait", *LIMIT)
        yield stack
    finally:
        print(stack.compose("logs", "--no-color"))
        stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "1")


def names(trace: Trace) -> dict[str, str]:
    """Return `service: operation` of each span by its id."""
    services = {key: process["serviceName"] for key, process in trace["processes"].items()}
    return {
        span["spanID"]: f"{services[span['processID']]}: {span['operationName']}"
        for span in trace["spans"]
    }


def edges(trace: Trace) -> set[tuple[str, str]]:
    """Return the names of each span's parent and of the span."""
    name = names(trace)
    return {
        (name.get(reference["spanID"], ""), name[span["spanID"]])
        for span in trace["spans"]
        for reference in span["references"]
        if reference["refType"] == "CHILD_OF"
    }


def preprocess_addresses(trace: Trace) -> set[str]:
    """Return where the gateway sent the items of a trace."""
    name = names(trace)
    return {
        tag["value"]
        for span in trace["spans"]
        if name[span["spanID"]] == "gateway: mesh.v1.Preprocess/Run"
        for tag in span["tags"]
        if tag["key"] == "server.address"
    }


@cache
def white_png() -> bytes:
    """A picture of few bytes whose decoding takes about 10 ms."""
    _, png = cv2.imencode(".png", np.full((1000, 1000, 3), 255, np.uint8))
    return png.tobytes()


async def classify(channel: grpc.aio.Channel, trace_id: str = "") -> str:
    """Send a white picture, so that most of the work is in preprocess; return its label."""
    call = channel.unary_unary(
        "/mesh.v1.Mesh/Classify",
        request_serializer=mesh_pb2.ClassifyRequest.SerializeToString,
        response_deserializer=mesh_pb2.ClassifyResponse.FromString,
    )
    metadata = (("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"),) if trace_id else ()
    request = mesh_pb2.ClassifyRequest(images=[white_png()])
    response = await call(request, timeout=60, metadata=metadata)
    return str(response.results[0].categories[0].label)


@pytest.mark.parametrize("service", SERVICES)
def test_service_is_not_root_and_can_write_only_to_tmp(stack: Stack, service: str) -> None:
    program = (
        "import os; print(os.getuid(), *(path for path in ('/', '/models', '/tmp')"
        " if not os.statvfs(path).f_flag & os.ST_RDONLY))"
    )
    assert stack.compose("exec", "-T", service, "python", "-c", program).split() == [
        "10001",
        "/tmp",
    ]
    status = stack.compose("exec", "-T", service, "cat", "/proc/self/status")
    assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)


def test_ports_are_published_on_this_machine_only_and_none_of_a_stage(stack: Stack) -> None:
    ports = (
        "{{range $port, $at := .HostConfig.PortBindings}}{{$port}} {{(index $at 0).HostIp}} {{end}}"
    )
    bound = docker("inspect", "-f", ports, *stack.containers()).split()
    assert sorted(bound[::2]) == ["16686/tcp", "8000/tcp", "8001/tcp", "8002/tcp"]
    assert set(bound[1::2]) == {"127.0.0.1"}


def test_command_line_gets_answers_from_the_containers(stack: Stack) -> None:
    classified = stack.cli("classify", str(DIGIT))
    assert re.search(r"7\s+0\.", classified.stdout), classified.stderr
    text = "Where is the railway station, please?"
    assert "English" in stack.cli("language", text).stdout
    assert stack.cli("health").stdout == "SERVING\n"


def test_http_gets_answers_from_the_containers(stack: Stack) -> None:
    url = f"http://127.0.0.1:{stack.http}/v1/classify"
    request = Request(url, DIGIT.read_bytes(), {"Content-Type": "image/png"})
    with urlopen(request, timeout=20) as answer:
        assert json.load(answer)["results"][0]["categories"][0]["label"] == "7"
    with urlopen(f"http://127.0.0.1:{stack.http}/v2/health/ready", timeout=20) as answer:
        assert answer.status == 200


@pytest.fixture(scope="module")
def detect_trace(stack: Stack) -> Trace:
    """The trace of a picture, once all of it has come; else as much as came in time."""
    done = stack.cli("detect", str(PAGE))
    assert "9 found" in done.stdout, done.stderr
    found = re.search("trace: ([0-9a-f]{32})", done.stdout)
    assert found
    end = time.monotonic() + 10
    while not set(EDGES[1:]) <= edges(stack.trace(found[1])) and time.monotonic() < end:
        time.sleep(0.2)
    return stack.trace(found[1])


# The first edge is the client's: its spans are made outside, where port 4317 is not published.
@pytest.mark.parametrize(("caller", "callee"), EDGES[1:], ids=[f"{a}->{b}" for a, b in EDGES[1:]])
def test_jaeger_has_the_edge(detect_trace: Trace, caller: str, callee: str) -> None:
    assert (caller, callee) in edges(detect_trace)


def test_pixels_go_between_containers_by_shared_memory(stack: Stack) -> None:
    """Slots were leased, as their generation grew from 1, and pixels are in them."""
    assert "9 found" in stack.cli("detect", str(PAGE)).stdout
    program = (
        "import pathlib, struct; data = next(pathlib.Path('/dev/shm').glob('trtmesh-*'))"
        ".read_bytes(); slots = struct.unpack_from('<Q', data, 16)[0];"
        "ages = [struct.unpack_from('<Q', data, 4112 + 64 * at)[0] for at in range(slots)];"
        "print(max(ages) > 1, any(data[-slots * struct.unpack_from('<Q', data, 8)[0]:]))"
    )
    for service in ("gateway", "preprocess", "infer"):
        assert stack.compose("exec", "-T", service, "python", "-c", program) == "True True\n"
    assert "memory is not shared" not in stack.compose("logs", "preprocess")


def test_route_outlives_the_gateways_container(stack: Stack) -> None:
    assert stack.cli("model", "route", "digits-classify", "--stable", "1").returncode == 0
    before = stack.containers("gateway")
    stack.compose("up", "-d", "--force-recreate", "--no-deps", "--wait", *LIMIT, "gateway")
    assert stack.containers("gateway") != before
    told = stack.cli("model", "route")
    assert "digits-classify\n  stable        1" in told.stdout, told.stderr
    assert stack.cli("model", "route", "digits-classify", "--remove").returncode == 0


def test_gateway_is_serving_only_while_every_stage_is_there(stack: Stack) -> None:
    stack.compose("stop", "infer")
    until(lambda: stack.cli("health").stdout == "NOT_SERVING\n")
    assert stack.cli("health").returncode == 1
    stack.compose("start", "infer")
    until(lambda: stack.cli("health").returncode == 0)


async def test_each_worker_of_a_container_that_is_added_gets_items(stack: Stack) -> None:
    stack.compose("up", "-d", "--wait", *LIMIT, "--no-recreate", "--scale", "preprocess=2")
    until(lambda: stack.metric("mesh_stage_replicas") == [4, 4])
    trace_ids = [uuid.uuid4().hex for _ in range(40)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.mesh}") as channel:
        await asyncio.gather(*(classify(channel, key) for key in trace_ids))
    form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    hosts = docker("inspect", "-f", form, *stack.containers("preprocess")).split()
    wanted = {f"{host}:{port}" for host in hosts for port in (8111, 8211)}
    assert len(wanted) == 4
    until(lambda: all(preprocess_addresses(stack.trace(key)) for key in trace_ids))
    assert set().union(*(preprocess_addresses(stack.trace(key)) for key in trace_ids)) == wanted


async def test_no_call_fails_when_a_container_is_killed_and_it_comes_back(stack: Stack) -> None:
    victim = stack.containers("preprocess")[0]
    retries = sum(stack.metric("mesh_stage_retries"))
    labels: list[str] = []

    # So few at once that a slow machine answers each within its deadline by one replica.
    slots = asyncio.Semaphore(32)

    async def ask(channel: grpc.aio.Channel) -> None:
        async with slots:
            labels.append(await classify(channel))

    # From inside and not by `docker kill`, after which the engine would not start it again.
    program = "import os; print('ready', flush=True); input(); os.kill(-1, 9)"
    killer = await asyncio.create_subprocess_exec(
        "docker", "exec", "-i", victim, "python", "-c", program,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert killer.stdin is not None
    assert killer.stdout is not None
    assert await killer.stdout.readline() == b"ready\n"
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.mesh}") as channel:
        calls = [asyncio.create_task(ask(channel)) for _ in range(CALLS)]
        await eventually(lambda: len(labels) > CALLS // 10, 60)
        await killer.communicate(b"\n")
        assert len(labels) < CALLS, "all were answered before the container died"
        await asyncio.gather(*calls)
    assert len(labels) == CALLS
    assert len(set(labels)) == 1
    assert sum(stack.metric("mesh_stage_retries")) > retries, "the container died idle"
    until(lambda: docker("inspect", "-f", "{{.RestartCount}}", victim) == "1")
    until(lambda: stack.metric("mesh_stage_replicas") == [4, 4])


def test_log_has_no_traceback(stack: Stack) -> None:
    assert "model ready" in stack.compose("logs", "infer")
    assert "traceback" not in stack.compose("logs").lower()


def test_stop_ends_every_service_in_good_order_before_its_grace_is_over(stack: Stack) -> None:
    started = time.monotonic()
    stack.compose("stop")
    assert time.monotonic() - started < GRACE_S
    ids = stack.containers()
    assert len(ids) == 6
    codes = docker("inspect", "-f", "{{.Name}} {{.State.ExitCode}}", *ids)
    assert {line.split()[1] for line in codes.splitlines()} == {"0"}, codes


def test_down_leaves_nothing_behind(stack: Stack) -> None:
    stack.compose("down")
    label = "label=com.docker.compose.project=trtmesh-e2e"
    assert docker("ps", "-a", "-q", "--filter", label) == ""
    assert docker("network", "ls", "-q", "--filter", label) == ""
