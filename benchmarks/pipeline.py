"""JPEG in, top-5 out: the four services against a plain loop in one process, in one run.

The model is a small CNN with seeded random weights over 224 x 224 pixels of uint8, the pictures
are 64 distinct JPEG files of 640 x 480. Clients and loops are in processes of their own: unary
callers, and the coalescing stream that heavy clients use. The mesh stays up, rounds are
interleaved, and both sides use both cores: the loop runs two threads. `benchmarks.peers` compares
the same with other servers.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.environment import keep
from benchmarks.peers.systems import BY_NAME, Place
from benchmarks.peers.turn import CONCURRENCY, client, loop

SECONDS = 3.0
ROUNDS = 6


def rounds(place: Place) -> list[dict[str, Any]]:
    """Return the reports of each round."""
    unary, stream = BY_NAME["mesh"], BY_NAME["mesh-stream"]
    closed = ("closed", "--seconds", SECONDS, "--concurrency")
    with unary.serve(place) as (_, address):
        ask, heavy = client(unary, place, address), client(stream, place, address)
        ask(*closed, CONCURRENCY)
        return [
            {
                "loop": loop("plain", place, "--seconds", str(SECONDS)),
                "own": loop("own-ops", place, "--seconds", str(SECONDS)),
                "unary": ask(*closed, CONCURRENCY),
                "alone": ask(*closed, 1),
                "stream": heavy(*closed, CONCURRENCY),
            }
            for _ in range(ROUNDS)
        ]


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return medians over the rounds, and ratios of figures of one round each."""

    def median(kind: str, figure: str) -> float:
        return round(statistics.median(float(row[kind][figure]) for row in rows), 2)

    def ratio(over: str, under: str) -> float:
        pairs = (float(row[over]["per_s"] / row[under]["per_s"]) for row in rows)
        return round(statistics.median(pairs), 3)

    return {
        "loop_per_s": median("loop", "per_s"), "own_ops_loop_per_s": median("own", "per_s"),
        "mesh_per_s": median("unary", "per_s"), "p50_ms": median("unary", "p50_ms"),
        "alone_per_s": median("alone", "per_s"), "alone_ms": median("alone", "p50_ms"),
        "stream_per_s": median("stream", "per_s"), "stream_p50_ms": median("stream", "p50_ms"),
        "mesh_to_loop": ratio("unary", "loop"), "stream_to_loop": ratio("stream", "loop"),
        "mesh_to_own_ops_loop": ratio("unary", "own"),
    }  # fmt: skip


def measure() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        place.prepare()
        found = figures(rounds(place))
    print(found)
    keep("pipeline", found)


if __name__ == "__main__":
    measure()
