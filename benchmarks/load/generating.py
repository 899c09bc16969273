"""Clients that stream texts, a process of many: tokens per second, and when the first one came.

`python -m benchmarks.load.generating GATEWAY …` prints one JSON line. Each client asks again as
soon as it has its answer.
"""

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import uvloop

from protos.mesh.v1 import mesh_pb2, mesh_pb2_grpc

WARM_S = 2.0


@dataclass
class Seen:
    """What the clients of a process saw after the first seconds."""

    begins: float
    ends: float
    tokens: float = 0.0
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    def note(self, asked: float, first: float, done: float, tokens: int) -> None:
        """Count a generation, or the part of it that is of these seconds."""
        inside = min(done, self.ends) - max(asked, self.begins)
        if inside <= 0:
            return
        self.tokens += tokens * inside / (done - asked)
        if asked >= self.begins and done <= self.ends:
            self.first.append(first - asked)
            self.whole.append(done - asked)

    def record(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "tokens_per_s": self.tokens / (self.ends - self.begins),
            "generations": len(self.whole), "first_s": self.first, "whole_s": self.whole,
        }  # fmt: skip


async def client(job: argparse.Namespace, number: int, seen: Seen) -> None:
    """Ask until the time is over."""
    # A connection belongs to one of the gateway's data workers.
    options = [("grpc.use_local_subchannel_pool", 1)]
    texts = job.texts[number % len(job.texts) :] + job.texts[: number % len(job.texts)]
    async with grpc.aio.insecure_channel(job.gateway, options) as channel:
        generate: Any = mesh_pb2_grpc.MeshStub(channel).Generate
        turn = 0
        while time.monotonic() < seen.ends:
            request = mesh_pb2.GenerateRequest(pipeline=job.pipeline, text=texts[turn % len(texts)])
            if job.tokens:
                request.max_tokens = job.tokens
            turn += 1
            asked, first, tokens = time.monotonic(), 0.0, 0
            async for response in generate(request, timeout=60):
                first = first or time.monotonic()
                tokens = response.completion_tokens
            seen.note(asked, first, time.monotonic(), tokens)


async def run(job: argparse.Namespace) -> dict[str, Any]:
    now = time.monotonic() + WARM_S
    seen = Seen(now, now + job.seconds)
    await asyncio.gather(*(client(job, number, seen) for number in range(job.clients)))
    return seen.record()


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load.generating")
    parser.add_argument("gateway", metavar="HOST:PORT")
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--tokens", type=int, default=0, help="of each; 0: as the model says")
    parser.add_argument("--texts", nargs="+", required=True, metavar="TEXT")
    return parser.parse_args(words)


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of several processes together."""
    first, whole = (
        np.array([value for record in records for value in record[name]])
        for name in ("first_s", "whole_s")
    )
    seconds = {"first": first, "whole": whole}
    return {
        "tokens_per_s": round(sum(record["tokens_per_s"] for record in records)),
        "generations": len(whole),
        **{
            f"{name}_p{share}_ms": round(1e3 * float(np.percentile(values, share)), 1)
            for name, values in seconds.items()
            for share in (50, 99)
            if len(values)
        },
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(parse(sys.argv[1:])))))
