"""One hop between two processes: plain unary calls against the coalesced stream, in one run.

Both carry a deadline, a trace context and a 64-byte payload, to the same server process.
Rounds are interleaved, so that a machine that slows down slows both.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import grpc
import uvloop

from benchmarks.environment import keep
from mesh.client import StageClient
from mesh.grpc_types import Methods
from mesh.host import SERVER_OPTIONS
from mesh.item import Reply, Request
from mesh.server import StageServer
from protos.mesh.v1.stage_pb2 import Envelope, Item

ADDRESS = "127.0.0.1:18990"
STAGE = "mesh.v1.Infer"
ROUNDS = 5
SECONDS = 2.0
PAYLOAD = b"x" * 64
LARGE = b"x" * 600_000

Call = Callable[[], Awaitable[object]]


async def serve() -> None:
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
    server.add_insecure_port(ADDRESS)
    await server.start()
    await server.wait_for_termination()


async def drive(concurrency: int, call: Call, seconds: float = SECONDS) -> tuple[float, float]:
    """Return calls per second and the median latency in microseconds of a closed loop."""
    waits: list[float] = []
    end = time.perf_counter() + seconds

    async def worker() -> None:
        while (started := time.perf_counter()) < end:
            await call()
            waits.append(time.perf_counter() - started)

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return len(waits) / (time.perf_counter() - began), statistics.median(waits) * 1e6


async def compare(concurrency: int, unary: Call, stream: Call) -> dict[str, float]:
    rows = []
    for _ in range(ROUNDS):
        rows.append((*await drive(concurrency, unary), *await drive(concurrency, stream)))
    rate_u, wait_u, rate_s, wait_s = (
        statistics.median(column) for column in zip(*rows, strict=True)
    )
    return {
        "unary_per_s": round(rate_u), "stream_per_s": round(rate_s),
        "rate_ratio": round(statistics.median(row[2] / row[0] for row in rows), 2),
        "unary_p50_us": round(wait_u), "stream_p50_us": round(wait_s),
        "wait_ratio": round(statistics.median(row[3] / row[1] for row in rows), 2),
    }  # fmt: skip


async def small_beside_large() -> dict[str, float]:
    """Measure a small item's wait while another client process streams 600 kB items."""
    heavy = subprocess.Popen([sys.executable, "-m", "benchmarks.wire", "heavy"])
    try:
        await asyncio.sleep(1.5)
        async with StageClient(STAGE, ADDRESS) as client:
            await client.wait_ready(10)
            waits: list[float] = []
            for _ in range(400):
                started = time.perf_counter()
                await client.call(Request("t", PAYLOAD, deadline=time.monotonic() + 5))
                waits.append((time.perf_counter() - started) * 1e3)
                await asyncio.sleep(0.005)
    finally:
        heavy.kill()
        heavy.wait()
    cuts = statistics.quantiles(waits, n=100)
    return {"p50_ms": round(statistics.median(waits), 2), "p99_ms": round(cuts[98], 2)}


async def heavy() -> None:
    async with StageClient(STAGE, ADDRESS) as client:
        await client.wait_ready(10)

        async def forever() -> None:
            while True:
                await client.call(Request("t", LARGE, deadline=time.monotonic() + 5))

        await asyncio.gather(*(forever() for _ in range(8)))


async def measure() -> None:
    trace = os.urandom(24) + b"\0"
    server = subprocess.Popen([sys.executable, "-m", "benchmarks.wire", "serve"])
    try:
        async with (
            StageClient(STAGE, ADDRESS) as client,
            grpc.aio.insecure_channel(ADDRESS) as channel,
        ):
            await client.wait_ready(10)
            method = channel.unary_unary(f"/{STAGE}/Unary", Item.SerializeToString, Item.FromString)

            async def unary() -> None:
                await method(Item(id=1, target="t", payload=PAYLOAD, trace=trace), timeout=5)

            async def stream() -> None:
                deadline = time.monotonic() + 5
                await client.call(Request("t", PAYLOAD, deadline=deadline, trace=trace))

            figures = {f"concurrency_{n}": await compare(n, unary, stream) for n in (1, 32, 256)}
        figures["small_beside_600kB"] = await small_beside_large()
    finally:
        server.kill()
        server.wait()
    for name, row in figures.items():
        print(name, row)
    keep("wire", figures)


if __name__ == "__main__":
    ROLES = {"serve": serve, "heavy": heavy}
    uvloop.run(ROLES.get(sys.argv[-1], measure)())
