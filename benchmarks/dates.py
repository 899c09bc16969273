"""Dates read by `models/dates`, eight at a time, against transformers on this machine's CPU.

The mesh answers streaming clients in a process of their own, through all services; transformers
runs inside one process, one by one, by eight threads, and by batches of eight. Both say the same.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.environment import keep
from benchmarks.load.generating import summary
from benchmarks.peers.server import ROOT, running
from benchmarks.peers.systems import Place, start_mesh
from mesh.port import free_ports

AT_ONCE = 8
TEXTS = 64
MESH = {"gateway": 1, "preprocess": 1, "infer": 1, "postprocess": 1}


def samples() -> list[dict[str, Any]]:
    """Return texts, and what transformers said to them when the model was made."""
    path = ROOT / "models/dates/samples/expected.json"
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found[:TEXTS]


def ours(seconds: float) -> dict[str, Any]:
    """Return the figures of the mesh; each client's texts come in turn."""
    port, place = free_ports(1)[0], Place(ROOT)
    start = start_mesh(place, port, "dates", MESH)
    assert start.ready is not None
    words = [
        sys.executable, "-m", "benchmarks.load.generating", f"127.0.0.1:{port}", "--pipeline",
        "dates", "--clients", str(AT_ONCE), "--seconds", str(seconds), "--texts",
        *(sample["text"] for sample in samples()),
    ]  # fmt: skip
    log = ROOT / "build/dates.log"
    with running(start.command, start.environment, log, start.ready):
        done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT)
    return summary([json.loads(done.stdout.splitlines()[-1])])


def theirs(python: Path, seconds: float) -> dict[str, Any]:
    """Return the figures of transformers, whose tokens must be those of the samples."""
    script = ROOT / "benchmarks/peers/apps/transformers_dates.py"
    texts = json.dumps([sample["text"] for sample in samples()])
    done = subprocess.run(
        [python, script, ROOT / "models/dates", str(seconds)],
        input=texts, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    if found.pop("ids") != [sample["ids"] for sample in samples()]:
        raise SystemExit("transformers said other tokens than when the samples were made")
    return found


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dates", description=__doc__)
    parser.add_argument(
        "--python", type=Path, required=True, help="an interpreter with torch and transformers"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    job = parser.parse_args(words)
    rounds = []
    for _ in range(job.rounds):
        made = {"mesh": ours(job.seconds), "transformers": theirs(job.python, job.seconds)}
        print(made, flush=True)
        rounds.append(made)
    ratios = {
        way: statistics.median(
            made["mesh"]["tokens_per_s"] / made["transformers"]["tokens_per_s"][way]
            for made in rounds
        )
        for way in rounds[0]["transformers"]["tokens_per_s"]
    }
    keep("dates", {"at_once": AT_ONCE, "rounds": rounds, "mesh_to_transformers": ratios})


if __name__ == "__main__":
    main(sys.argv[1:])
