"""200 versions of a model, one after the other, under load: what fails, what is late, what stays.

Each version multiplies by its number, so that an answer tells which one made it, and the client
compares that with the version that the answer reports. The load is an open loop at 0.8 of the peak
of a closed one, through the gateway by the Open Inference Protocol. A version is copied into the
repository, which is watched, and the one before is removed. Rounds with swaps and without take
turns, so that what else the machine does falls on both.
"""

import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx
import tritonclient.grpc as triton
from onnx import TensorProto, helper

from benchmarks.environment import keep
from benchmarks.overload import pss_mb
from benchmarks.peers.server import ROOT, running
from mesh.cli.up import wait_ready
from mesh.port import free_ports

SWAPS = 200
LOAD = 0.8
PEAK = 8
"""Requests under way in the closed loop."""
ROUND_S = 20.0
CONFIG = "max_batch_size: 16 dynamic_batching { } version_policy { latest { } }"
COPIED = "model.onnx"


def times(factor: int) -> bytes:
    """Return a model that multiplies 64 numbers."""
    constant = helper.make_tensor("factor", TensorProto.FLOAT, [1], [float(factor)])
    shape = ["rows", 64]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])], "times",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [constant],
    )  # fmt: skip
    opset = helper.make_opsetid("", 17)
    made = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.checker.check_model(made)
    serialized: bytes = made.SerializeToString()
    return serialized


def put(models: Path, version: int) -> None:
    """Write a version."""
    folder = models / "times" / str(version)
    folder.mkdir(parents=True)
    (folder / COPIED).write_bytes(times(version))


class Load:
    """Client processes.

    Args:
        address: of the gateway.
        inputs: a folder with any file: the payload is not used.
    """

    def __init__(self, address: str, inputs: Path) -> None:
        self._command = [
            sys.executable, "-m", "benchmarks.load", "--protocol", "oip-versions",
            "--address", address, "--inputs", str(inputs),
        ]  # fmt: skip

    def start(self, *mode: object) -> subprocess.Popen[str]:
        """Begin a load."""
        words = [*self._command, *map(str, mode)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def report(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Wait for the end of a load, and return its report."""
    out, _ = process.communicate(timeout=600)
    found: dict[str, Any] = json.loads(out)
    return found


def swap(models: Path, client: triton.InferenceServerClient, version: int) -> float:
    """Let a version take the place of the one before; return how long that took."""
    began = time.perf_counter()
    put(models, version)
    while str(version) not in client.get_model_metadata("times").versions:
        time.sleep(0.02)
    shutil.rmtree(models / "times" / str(version - 1))
    return time.perf_counter() - began


def measure(swaps: int = SWAPS) -> dict[str, Any]:
    """Return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        models = root / "models"
        put(models, 1)
        (models / "times/config.pbtxt").write_text(CONFIG)
        (models / "times/pipeline.yaml").write_text("model: times\n")
        (root / "inputs").mkdir()
        (root / "inputs/x").write_bytes(b"")
        gateway = f"127.0.0.1:{free_ports(1)[0]}"
        command = [
            sys.executable, "-m", "mesh.cli", "up", "--bind", gateway, "--models", str(models),
        ]  # fmt: skip
        environment = {
            "GATEWAY_METRICS_PORT": "0", "GATEWAY_HTTP": "", "GATEWAY_WORKERS": "1",
            "PREPROCESS_WORKERS": "1", "POSTPROCESS_WORKERS": "1", "INFER_CPU_THREADS": "1",
        }  # fmt: skip
        with running(
            command, environment, root / "log", lambda: asyncio.run(wait_ready(gateway, 1))
        ) as pid:
            return _measure(pid, gateway, root, swaps)


def _measure(pid: int, gateway: str, root: Path, swaps: int) -> dict[str, Any]:
    load = Load(gateway, root / "inputs")
    client = triton.InferenceServerClient(gateway)
    models = root / "models"
    peak = report(load.start("closed", "--concurrency", PEAK, "--seconds", 10))
    rate = LOAD * peak["per_s"]
    version = 1
    while version < 11:  # what is taken once is no leak
        version += 1
        swap(models, client, version)
    before = pss_mb(pid)
    took: list[float] = []
    calm: list[dict[str, Any]] = []
    swapped: list[dict[str, Any]] = []
    while len(took) < swaps:
        mode = ("open", "--rate", rate, "--seed", len(calm), "--seconds", ROUND_S)
        calm.append(report(load.start(*mode)))
        busy = load.start(*mode)
        while busy.poll() is None:
            version += 1
            took.append(swap(models, client, version))
        swapped.append(report(busy))
    time.sleep(2)
    growth = pss_mb(pid) - before
    requests = sum(one["requests"] for one in calm + swapped)
    ratios = [busy["p99_ms"] / quiet["p99_ms"] for quiet, busy in zip(calm, swapped, strict=True)]
    return {
        "swaps": len(took), "swap_p50_s": round(statistics.median(took), 3),
        "peak_per_s": peak["per_s"], "rate_per_s": round(rate, 1),
        "requests": requests,
        "answered": sum(one["answered"] for one in calm + swapped),
        "errors": [one["errors"] for one in calm + swapped if one["errors"]],
        "calm_p99_ms": [one["p99_ms"] for one in calm],
        "swapped_p99_ms": [one["p99_ms"] for one in swapped],
        "calm_max_ms": max(one["max_ms"] for one in calm),
        "swapped_max_ms": max(one["max_ms"] for one in swapped),
        "swapped_p99_to_calm": round(statistics.median(ratios), 3),
        "swapped_p99_to_calm_each": [round(ratio, 3) for ratio in ratios],
        "pss_growth_mb": round(growth, 2),
        "pss_growth_mb_per_10000": round(growth / requests * 10_000, 3),
    }  # fmt: skip


if __name__ == "__main__":
    found = measure(*map(int, sys.argv[1:]))
    print(found)
    keep("swaps", found)
