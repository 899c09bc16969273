"""One hop between two processes: plain unary calls against the coalesced stream, in one run.

Both carry a deadline, a trace context and a 64-byte payload. Three variants: unary calls between
processes as people write them, unary calls between processes that are tuned as the mesh's are
(`mesh.process`), and the stream between such. Rounds are interleaved, so that a machine that slows
down slows all; each client is a process of its own.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import grpc
import uvloop

from benchmarks.environment import keep
from mesh.client import StageClient
from mesh.grpc_types import Methods
from mesh.host import SERVER_OPTIONS, run_process
from mesh.item import Reply, Request
from mesh.server import StageServer
from protos.mesh.v1.stage_pb2 import Envelope, Item

PORTS = {"plain": 18990, "tuned": 18989}
STAGE = "mesh.v1.Infer"
ROUNDS = 5
SECONDS = 2.0
PAYLOAD = b"x" * 64
LARGE = b"x" * 600_000
TRACE = os.urandom(24) + b"\0"

Call = Callable[[], Awaitable[object]]


async def serve(port: str) -> None:
    async def echo(request: Request) -> Reply:
        return Reply(request.payload[:64])

    async def unary(item: Item, _: object) -> Item:
        return Item(id=item.id, payload=item.payload)

    stage = StageServer(echo)
    stage.open()
    server = grpc.aio.server(options=SERVER_OPTIONS)
    run = grpc.stream_stream_rpc_method_handler(
        stage.run, Envelope.FromString, Envelope.SerializeToString
    )
    plain = grpc.unary_unary_rpc_method_handler(unary, Item.FromString, Item.SerializeToString)
    methods: Methods = {"Run": run, "Unary": plain}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(STAGE, methods),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


@asynccontextmanager
async def unary_call(address: str) -> AsyncIterator[Call]:
    async with grpc.aio.insecure_channel(address) as channel:
        method = channel.unary_unary(f"/{STAGE}/Unary", Item.SerializeToString, Item.FromString)

        async def call() -> None:
            item = Item(id=1, target="t", payload=PAYLOAD, trace=TRACE)
            await method(item, timeout=5, wait_for_ready=True)

        yield call


@asynccontextmanager
async def stream_call(address: str, payload: bytes = PAYLOAD) -> AsyncIterator[Call]:
    async with StageClient(STAGE, address) as client:
        await client.wait_ready(10)

        async def call() -> None:
            deadline = time.monotonic() + 5
            await client.call(Request("t", payload, deadline=deadline, trace=TRACE))

        yield call


CALLS = {"unary": unary_call, "stream": stream_call}


async def drive(kind: str, port: str, concurrency: str) -> None:
    """Print calls per second and the median latency in microseconds of a closed loop."""
    waits: list[float] = []
    async with CALLS[kind](f"127.0.0.1:{port}") as call:
        end = time.perf_counter() + SECONDS

        async def worker() -> None:
            while (started := time.perf_counter()) < end:
                await call()
                waits.append(time.perf_counter() - started)

        await call()
        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(int(concurrency))))
        print(len(waits) / (time.perf_counter() - began), statistics.median(waits) * 1e6)


async def heavy(port: str) -> None:
    """Stream 600 kB items, eight at a time, until killed."""
    async with stream_call(f"127.0.0.1:{port}", LARGE) as call:

        async def forever() -> None:
            while True:
                await call()

        await asyncio.gather(*(forever() for _ in range(8)))


async def small(port: str) -> None:
    """Print the median and the 99th percentile wait, in ms, of small items one at a time."""
    waits: list[float] = []
    async with stream_call(f"127.0.0.1:{port}") as call:
        for _ in range(400):
            started = time.perf_counter()
            await call()
            waits.append((time.perf_counter() - started) * 1e3)
            await asyncio.sleep(0.005)
    print(statistics.median(waits), statistics.quantiles(waits, n=100)[98])


ROLES: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "serve": serve, "drive": drive, "heavy": heavy, "small": small,
}  # fmt: skip


def command(tuning: str, role: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.wire", tuning, role, *words]


def figures_of(words: list[str]) -> tuple[float, float]:
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    first, second = map(float, done.stdout.split())
    return first, second


@contextmanager
def background(words: list[str]) -> Iterator[None]:
    process = subprocess.Popen(words)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def compare(concurrency: int) -> dict[str, float]:
    variants = (("plain", "unary"), ("tuned", "unary"), ("tuned", "stream"))
    rows = [
        [
            figures_of(command(tuning, "drive", kind, str(PORTS[tuning]), str(concurrency)))
            for tuning, kind in variants
        ]
        for _ in range(ROUNDS)
    ]
    median = statistics.median
    figures: dict[str, float] = {}
    for index, name in enumerate(("plain", "tuned", "stream")):
        figures[f"{name}_per_s"] = round(median(row[index][0] for row in rows))
        figures[f"{name}_p50_us"] = round(median(row[index][1] for row in rows))
    for index, name in enumerate(("plain", "tuned")):
        figures[f"rate_to_{name}"] = round(median(row[2][0] / row[index][0] for row in rows), 2)
        figures[f"wait_to_{name}"] = round(median(row[2][1] / row[index][1] for row in rows), 2)
    return figures


def measure() -> None:
    with ExitStack() as stack:
        for tuning, number in PORTS.items():
            stack.enter_context(background(command(tuning, "serve", str(number))))
        figures = {f"concurrency_{count}": compare(count) for count in (1, 32, 256)}
        port = str(PORTS["tuned"])
        stack.enter_context(background(command("tuned", "heavy", port)))
        time.sleep(1.5)
        p50, p99 = figures_of(command("tuned", "small", port))
        figures["small_beside_600kB"] = {"p50_ms": round(p50, 2), "p99_ms": round(p99, 2)}
    for name, row in figures.items():
        print(name, row)
    keep("wire", figures)


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            measure()
        case ["tuned", role, *words]:
            run_process(lambda: ROLES[role](*words))
        case [_, role, *words]:
            uvloop.run(ROLES[role](*words))
