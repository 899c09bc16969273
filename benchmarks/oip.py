"""The Open Inference Protocol against our own, through the gateway: the same call, by turns.

A model that multiplies 64 numbers, alone: nothing but the calls costs time. Unary by gRPC, one at a
time and 32 at a time; CPU is that of all processes of the mesh for each call.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop
from tritonclient.grpc import service_pb2 as oip

from benchmarks.environment import keep
from benchmarks.load.cpu import cpu_seconds
from benchmarks.peers.server import running
from benchmarks.swaps import CONFIG, put
from mesh.cli.up import wait_ready
from mesh.port import free_ports
from mesh.tensor import to_proto
from protos.mesh.v1 import mesh_pb2

ROUNDS = 9
CALLS = 1500
CONCURRENCY = (1, 32)

Call = Callable[[], Awaitable[Any]]


def calls(channel: grpc.aio.Channel) -> dict[str, Call]:
    """Return a call of each protocol, with the same numbers."""
    numbers = np.ones((1, 64), np.float32)
    run = mesh_pb2.RunRequest(pipeline="times", inputs=[to_proto({"x": numbers})])
    infer = oip.ModelInferRequest(model_name="times")
    infer.inputs.add(name="x", datatype="FP32", shape=[1, 64])
    infer.raw_input_contents.append(numbers.tobytes())
    ours = channel.unary_unary(
        "/mesh.v1.Mesh/Run", mesh_pb2.RunRequest.SerializeToString,
        mesh_pb2.RunResponse.FromString,
    )  # fmt: skip
    theirs = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", oip.ModelInferRequest.SerializeToString,
        oip.ModelInferResponse.FromString,
    )  # fmt: skip
    return {"mesh.v1": lambda: ours(run, timeout=10), "oip": lambda: theirs(infer, timeout=10)}


async def timed(call: Call, concurrency: int) -> float:
    """Return the seconds that each call took of the clock."""

    async def caller() -> None:
        for _ in range(CALLS // concurrency):
            await call()

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return (time.perf_counter() - began) / (CALLS // concurrency * concurrency)


async def measure(pid: int, gateway: str) -> dict[str, Any]:
    """Return the figures."""
    found: dict[str, Any] = {}
    async with grpc.aio.insecure_channel(gateway) as channel:
        both = calls(channel)
        for call in both.values():
            await timed(call, 32)
        for concurrency in CONCURRENCY:
            clock: dict[str, list[float]] = {name: [] for name in both}
            cpu: dict[str, list[float]] = {name: [] for name in both}
            for number in range(ROUNDS):
                for name in sorted(both, reverse=number % 2 == 1):
                    before = sum(cpu_seconds(pid).values())
                    clock[name].append(await timed(both[name], concurrency))
                    cpu[name].append((sum(cpu_seconds(pid).values()) - before) / CALLS)
            found[f"{concurrency} at a time"] = {
                "time_us": {name: round(1e6 * statistics.median(clock[name]), 1) for name in both},
                "cpu_us": {name: round(1e6 * statistics.median(cpu[name]), 1) for name in both},
                "time_ratio": ratio(clock), "cpu_ratio": ratio(cpu),
            }  # fmt: skip
    return found


def ratio(seconds: dict[str, list[float]]) -> float:
    """Return the median of OIP's to ours over the rounds."""
    pairs = zip(seconds["oip"], seconds["mesh.v1"], strict=True)
    return round(statistics.median(theirs / ours for theirs, ours in pairs), 3)


def main() -> None:
    """Start a mesh, and measure."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        put(root / "models", 1)
        (root / "models/times/config.pbtxt").write_text(CONFIG)
        (root / "models/times/pipeline.yaml").write_text("model: times\n")
        gateway = f"127.0.0.1:{free_ports(1)[0]}"
        command = [
            sys.executable, "-m", "mesh.cli", "up", "--bind", gateway, "--http", "", "--models",
            str(root / "models"), "--workers", "gateway=1", "preprocess=1", "postprocess=1",
        ]  # fmt: skip
        environment = {"GATEWAY_METRICS_PORT": "0", "INFER_CPU_THREADS": "1"}

        def ready() -> bool:
            return asyncio.run(wait_ready(gateway, 1))

        with running(command, environment, root / "log", ready) as pid:
            found = uvloop.run(measure(pid, gateway))
    print(found)
    keep("oip", found)


if __name__ == "__main__":
    main()
