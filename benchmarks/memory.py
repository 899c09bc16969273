"""Memory of each service: proportional set size (PSS) at rest, and after each 5,000 requests.

`python -m benchmarks.memory rest` prints the first alone.
"""

import asyncio
import statistics
import subprocess
import sys
import time
from pathlib import Path

import grpc
import psutil
import uvloop

from benchmarks.environment import keep
from mesh.cli.up import wait_ready
from protos.mesh.v1 import mesh_pb2

GATEWAY = "127.0.0.1:18992"
STEP = 5_000
STEPS = 7
CONCURRENCY = 32
REST_S = 3.0
MODELS = Path(__file__).parent.parent / "models"
DIGIT = MODELS / "digits-classify/samples/digit.png"


async def send(count: int) -> None:
    """Send requests of an image and of a text in turn."""
    image = DIGIT.read_bytes()
    left = iter(range(count))
    async with grpc.aio.insecure_channel(GATEWAY) as channel:
        classify = channel.unary_unary(
            "/mesh.v1.Mesh/Classify",
            request_serializer=mesh_pb2.ClassifyRequest.SerializeToString,
            response_deserializer=mesh_pb2.ClassifyResponse.FromString,
        )
        language = channel.unary_unary(
            "/mesh.v1.Mesh/ClassifyText",
            request_serializer=mesh_pb2.ClassifyTextRequest.SerializeToString,
            response_deserializer=mesh_pb2.ClassifyTextResponse.FromString,
        )

        async def worker() -> None:
            for number in left:
                if number % 4:
                    await classify(mesh_pb2.ClassifyRequest(images=[image]), timeout=60)
                else:
                    text = f"This is sentence number {number}."
                    await language(mesh_pb2.ClassifyTextRequest(texts=[text]), timeout=60)

        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))


def memory(supervisor: int) -> dict[str, float]:
    """Return the PSS of each service in MB."""
    children = psutil.Process(supervisor).children()
    return {child.cmdline()[-1]: child.memory_full_info().pss / 1e6 for child in children}


def slope(values: list[float]) -> float:
    """Return MB per 10,000 requests, by least squares over what followed the first 5,000."""
    xs = [STEP * index / 10_000 for index in range(len(values))]
    return statistics.linear_regression(xs, values).slope


def measure() -> None:
    up = [
        sys.executable,
        "-m",
        "mesh.cli",
        "up",
        "--http",
        "",
        "--models",
        str(MODELS),
        "--bind",
        GATEWAY,
    ]
    up += ["--workers", "gateway=1", "preprocess=1", "postprocess=1"]
    mesh = subprocess.Popen(up, stderr=subprocess.DEVNULL)
    try:
        if not asyncio.run(wait_ready(GATEWAY, 60)):
            raise RuntimeError("the mesh is not ready")
        time.sleep(REST_S)
        rest = memory(mesh.pid)
        print("at rest:", {name: round(value, 1) for name, value in rest.items()}, flush=True)
        if sys.argv[1:] == ["rest"]:
            return
        rows = []
        for step in range(STEPS):
            began = time.perf_counter()
            uvloop.run(send(STEP))
            rows.append(memory(mesh.pid))
            rate = STEP / (time.perf_counter() - began)
            rounded = {name: round(value, 2) for name, value in rows[-1].items()}
            print(f"{STEP * (step + 1):6} requests, {rate:.0f}/s: {rounded}", flush=True)
    finally:
        mesh.terminate()
        mesh.wait()
    figures = {
        name: {
            "rest_mb": round(rest[name], 1),
            "pss_mb": round(rows[-1][name], 1),
            "growth_mb_per_10k": round(slope([row[name] for row in rows]), 3),
        }
        for name in rows[0]
    }
    print(figures)
    keep("memory", figures)


if __name__ == "__main__":
    measure()
