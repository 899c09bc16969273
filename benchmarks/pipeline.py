"""JPEG in, top-5 out: the four services against a plain loop in one process, in one run.

The model is a small CNN with seeded random weights over 224 x 224 pixels of uint8, the pictures
are 64 distinct JPEG files of 640 x 480. Clients are in a process of their own: unary callers, and
the coalescing stream that heavy clients use. Rounds are interleaved, and both sides use both cores:
the loop runs two threads.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import cv2
import grpc
import numpy as np
import onnx
import uvloop

from benchmarks.bench_model import bench_model, write_repository
from benchmarks.environment import keep
from infer_svc.backends.onnxruntime import load_onnxruntime
from mesh.cli.up import wait_ready
from mesh.client import StageClient
from mesh.item import Request
from mesh.tensor import Tensors, bytes_tensor, pack, unpack
from postprocess_svc.ops.top_k import TopK
from preprocess_svc.ops.center_crop import CenterCrop
from protos.mesh.v1 import mesh_pb2

GATEWAY = "127.0.0.1:18991"
CONCURRENCY = 32
SECONDS = 3.0
ROUNDS = 6


def pictures() -> list[bytes]:
    """Return 64 distinct JPEG files of 640 x 480, with the detail of photos."""
    random = np.random.default_rng(7)
    files = []
    for _ in range(64):
        coarse = random.integers(0, 255, (30, 40, 3), np.uint8)
        picture = cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC)
        noise = random.normal(0, 6, picture.shape)
        noisy = np.clip(picture + noise, 0, 255).astype(np.uint8)
        files.append(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())
    return files


MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
"""Of ImageNet, as every example normalizes."""


class PlainLoop:
    """What people write without a server: decode, resize, crop, normalize in numpy, run, sort."""

    def __init__(self, model: Path) -> None:
        self._engine = load_onnxruntime(model, 1).open()

    def run(self, file: bytes) -> Tensors:
        """Return the five best classes of one file."""
        picture = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            raise ValueError("not a picture")
        scale = 256 / min(picture.shape[:2])
        size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        top, left = (picture.shape[0] - 224) // 2, (picture.shape[1] - 224) // 2
        crop = cv2.cvtColor(picture[top : top + 224, left : left + 224], cv2.COLOR_BGR2RGB)
        pixels = ((crop.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)
        batch = np.ascontiguousarray(pixels[None])
        logits = self._engine.run([{"x0": batch}])["logits"][0].astype(np.float64)
        scores = np.exp(logits - logits.max())
        best = np.argsort(-scores)[:5]
        return {"classes": best, "scores": scores[best] / scores.sum()}


class OwnOpsLoop:
    """The same with the mesh's own ops, in one process."""

    def __init__(self, model: Path) -> None:
        self._engine = load_onnxruntime(model, 1).open()
        self._before = CenterCrop(size=(224, 224), resize=256)
        self._after = TopK(k=5)

    def run(self, file: bytes) -> Tensors:
        prepared = self._before({"image": bytes_tensor(file)}, {})
        return self._after(self._engine.run([prepared.tensors]), prepared.context).tensors


def loop_rate(loop: PlainLoop | OwnOpsLoop, files: list[bytes], seconds: float) -> float:
    """Return requests per second of two threads."""
    counts = [0, 0]
    end = time.perf_counter() + seconds

    def work(index: int) -> None:
        while time.perf_counter() < end:
            loop.run(files[counts[index] % len(files)])
            counts[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


Ask = Callable[[bytes], Awaitable[int]]
"""Sends one file and returns the number of classes of the answer."""


@asynccontextmanager
async def unary() -> AsyncIterator[Ask]:
    """Call `Classify`, as any gRPC client does."""
    async with grpc.aio.insecure_channel(GATEWAY) as channel:
        call = channel.unary_unary(
            "/mesh.v1.Mesh/Classify",
            request_serializer=mesh_pb2.ClassifyRequest.SerializeToString,
            response_deserializer=mesh_pb2.ClassifyResponse.FromString,
        )

        async def ask(file: bytes) -> int:
            response = await call(mesh_pb2.ClassifyRequest(images=[file]), timeout=30)
            return len(response.results[0].categories)

        yield ask


@asynccontextmanager
async def stream() -> AsyncIterator[Ask]:
    """Call `Stream`, as heavy clients do."""
    async with StageClient("mesh.v1.Mesh", GATEWAY, "Stream") as mesh:
        await mesh.wait_ready(10)

        async def ask(file: bytes) -> int:
            payload = pack({"image": bytes_tensor(file)})
            request = Request("bench", payload, deadline=time.monotonic() + 30)
            reply = await mesh.call(request)
            return unpack(reply.payload)["classes"].size

        yield ask


CLIENTS = {"unary": unary, "stream": stream}


async def client(kind: str, concurrency: int, seconds: float) -> None:
    """Call the mesh in a closed loop; print requests, seconds and the median latency in ms."""
    files = pictures()
    waits: list[float] = []
    async with CLIENTS[kind]() as ask:
        end = time.perf_counter() + seconds

        async def worker(index: int) -> None:
            while (started := time.perf_counter()) < end:
                if await ask(files[index % len(files)]) != 5:
                    raise ValueError("not five categories")
                waits.append(time.perf_counter() - started)
                index += concurrency

        began = time.perf_counter()
        await asyncio.gather(*(worker(index) for index in range(concurrency)))
        took = time.perf_counter() - began
    print(len(waits), took, statistics.median(waits) * 1e3)


def mesh_rate(kind: str, concurrency: int, seconds: float) -> tuple[float, float]:
    """Return requests per second and the median latency in ms, measured by a client process."""
    words = ["-m", "benchmarks.pipeline", kind, str(concurrency), str(seconds)]
    done = subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True)
    count, took, wait = map(float, done.stdout.split())
    return count / took, wait


def measure() -> None:
    cv2.setNumThreads(1)
    files = pictures()
    with tempfile.TemporaryDirectory() as folder:
        model = write_repository(Path(folder))
        floats = Path(folder) / "floats.onnx"
        onnx.save(bench_model(normalizes=False), floats)
        loops = (PlainLoop(floats), OwnOpsLoop(model))
        words = ["-m", "mesh.cli", "up", "--models", folder, "--bind", GATEWAY]
        up = [sys.executable, *words, "--workers", "gateway=1", "preprocess=2", "postprocess=1"]
        mesh = subprocess.Popen(up)
        try:
            if not asyncio.run(wait_ready(GATEWAY, 60)):
                raise RuntimeError("the mesh is not ready")
            mesh_rate("unary", CONCURRENCY, 1.0)
            rows = [
                (
                    *(loop_rate(loop, files, SECONDS) for loop in loops),
                    *mesh_rate("unary", CONCURRENCY, SECONDS),
                    *mesh_rate("unary", 1, SECONDS / 2),
                    *mesh_rate("stream", CONCURRENCY, SECONDS),
                )
                for _ in range(ROUNDS)
            ]  # fmt: skip
        finally:
            mesh.terminate()
            mesh.wait()
    names = [
        "loop_per_s", "own_ops_loop_per_s", "mesh_per_s", "p50_ms", "alone_per_s", "alone_ms",
        "stream_per_s", "stream_p50_ms",
    ]  # fmt: skip
    columns = zip(*rows, strict=True)
    figures: dict[str, float] = {
        name: round(statistics.median(column), 2)
        for name, column in zip(names, columns, strict=True)
    }
    figures["mesh_to_loop"] = round(statistics.median(row[2] / row[0] for row in rows), 3)
    figures["stream_to_loop"] = round(statistics.median(row[6] / row[0] for row in rows), 3)
    figures["mesh_to_own_ops_loop"] = round(statistics.median(row[2] / row[1] for row in rows), 3)
    print(figures)
    keep("pipeline", figures)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        uvloop.run(client(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
    else:
        measure()
