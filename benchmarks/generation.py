"""Generations that join and leave between steps, against a batch that begins when the last is done.

The same network (GPT-2's shape, random weights) and the same slots. 64 clients ask again and again;
lengths are geometric with a mean of 32, at most 256; prompts have 8 to 40 ids.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.environment import keep
from infer_svc.generation.gpt2 import gpt2_step
from infer_svc.generation.running import Prompt
from infer_svc.generation.scheduler import Scheduler
from infer_svc.generation.stepper import OrtStepper

CLIENTS = 64
SLOTS = 32
MEAN, MOST = 32, 256
LENGTH = 320
VOCABULARY, WIDTH, LAYERS = 2000, 256, 4
CONFIG = {
    "vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": WIDTH, "n_layer": LAYERS,
    "n_head": 4, "layer_norm_epsilon": 1e-5,
}  # fmt: skip


@dataclass
class Run:
    """What one way of scheduling made."""

    tokens: int
    seconds: float
    first: list[float]
    """Seconds from each question to its first token."""

    def record(self) -> dict[str, float]:
        """Return it for JSON."""
        return {
            "tokens": self.tokens, "tokens_per_s": round(self.tokens / self.seconds),
            "first_token_p50_ms": round(1e3 * float(np.percentile(self.first, 50)), 1),
            "first_token_p95_ms": round(1e3 * float(np.percentile(self.first, 95)), 1),
        }  # fmt: skip


def network() -> bytes:
    """Return the step graph with weights from a seed."""
    random, width = np.random.default_rng(0), WIDTH
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (VOCABULARY, width), "wpe.weight": (LENGTH, width),
        "ln_f.weight": (width,), "ln_f.bias": (width,),
    }  # fmt: skip
    for layer in range(LAYERS):
        for name, sizes in {
            "ln_1": (width,), "ln_2": (width,), "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width), "mlp.c_fc": (width, 4 * width),
            "mlp.c_proj": (4 * width, width),
        }.items():  # fmt: skip
            shapes[f"h.{layer}.{name}.weight"] = sizes
            shapes[f"h.{layer}.{name}.bias"] = sizes[-1:]
    weights = {name: random.normal(0, 0.1, shape) for name, shape in shapes.items()}
    model: bytes = gpt2_step(CONFIG, weights, LENGTH, np.float32).SerializeToString()
    return model


def questions(seed: int) -> Callable[[], tuple[list[int], int]]:
    """Return what gives the next prompt and how many tokens are to come."""
    random = np.random.default_rng(seed)

    def ask() -> tuple[list[int], int]:
        ids = random.integers(0, VOCABULARY, random.integers(8, 41)).tolist()
        return ids, int(min(MOST, random.geometric(1 / MEAN)))

    return ask


async def in_flight(step: bytes, seconds: float) -> Run:
    """Ask the scheduler."""
    scheduler = Scheduler(OrtStepper(step, SLOTS, threads=2))
    made = Run(0, seconds, [])
    end = time.perf_counter() + seconds

    def count(_: int) -> None:
        made.tokens += time.perf_counter() < end

    async def client(number: int) -> None:
        ask = questions(number)
        while time.perf_counter() < end:
            ids, tokens = ask()
            finish = await scheduler.run(Prompt(ids, tokens), count)
            made.first.append(finish.first - finish.asked)

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    await asyncio.to_thread(scheduler.close)
    return made


def by_batches(step: bytes, seconds: float) -> Run:
    """Run batches of as many as there are slots, one after the other; who is done waits."""
    stepper, made = OrtStepper(step, SLOTS, threads=2), Run(0, seconds, [])
    clients = [questions(number) for number in range(CLIENTS)]
    asked = [(time.perf_counter(), *ask()) for ask in clients]
    end, turn = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        batch = [(turn + row) % CLIENTS for row in range(SLOTS)]
        turn += SLOTS
        ids = [asked[number][1] for number in batch]
        left = [asked[number][2] for number in batch]
        start = [0] * SLOTS
        for at in range(max(left)):
            best = stepper.step(0, ids, start).best
            now = time.perf_counter()
            if now >= end:
                break
            if at == 0:
                made.first += [now - asked[number][0] for number in batch]
            made.tokens += sum(at < count for count in left)
            start = [place + len(row) for place, row in zip(start, ids, strict=True)]
            ids = [[int(token)] for token in best]
        for number in batch:
            asked[number] = (time.perf_counter(), *clients[number]())
    return made


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    job = parser.parse_args(words)
    step, rounds = network(), []
    for _ in range(job.rounds):
        flying = asyncio.run(in_flight(step, job.seconds))
        batched = by_batches(step, job.seconds)
        made: dict[str, Any] = {"in_flight": flying.record(), "by_batches": batched.record()}
        made["ratio"] = round(flying.tokens / batched.tokens, 2)
        print(made, flush=True)
        rounds.append(made)
    ratio = float(np.median([made["ratio"] for made in rounds]))
    keep(
        "generation", {"rounds": rounds, "median_ratio": ratio, "clients": CLIENTS, "slots": SLOTS}
    )


if __name__ == "__main__":
    main(sys.argv[1:])
