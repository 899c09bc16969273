"""The limit: the same work as a loop inside one process, without any server.

`python -m benchmarks.peers.inprocess LOOP --place DIR --inputs DIR --threads N --seconds S` prints
the report of one run as JSON, or the classes of each payload with `--once`.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import cv2

from benchmarks.load.report import Report, Sample, summarize
from benchmarks.peers.apps.plain import Tokens, prepare, rank, session
from infer_svc.backends.onnxruntime import load_onnxruntime
from mesh.tensor import bytes_tensor
from postprocess_svc.ops.top_k import TopK
from preprocess_svc.ops.center_crop import CenterCrop

Loop = Callable[[bytes], list[int]]
"""Returns the classes of one payload, best first."""


class PlainLoop:
    """What people write without a server: decode, resize, crop, normalize in numpy, run, sort."""

    def __init__(self, place: Path) -> None:
        self._session = session(str(place / "floats.onnx"))

    def __call__(self, payload: bytes) -> list[int]:
        """Return the five best classes of a picture."""
        (logits,) = self._session.run(["logits"], prepare(payload))
        return rank(logits[0])["classes"]


class OwnOpsLoop:
    """The same with the mesh's own ops, in one process."""

    def __init__(self, place: Path) -> None:
        self._engine = load_onnxruntime(place / "models/bench/1/model.onnx", 1).open()
        self._before = CenterCrop(size=(224, 224), resize=256)
        self._after = TopK(k=5)

    def __call__(self, payload: bytes) -> list[int]:
        """Return the five best classes of a picture."""
        prepared = self._before({"image": bytes_tensor(payload)}, {})
        best = self._after(self._engine.run([prepared.tensors]), prepared.context).tensors
        found: list[int] = best["classes"][0].tolist()
        return found


class TextLoop:
    """What people write for a text: a Hugging Face tokenizer, run, sort."""

    def __init__(self, place: Path) -> None:
        self._tokens = Tokens(str(place / "models/language/tokenizer"))
        self._session = session(str(place / "models/language/1/model.onnx"))

    def __call__(self, payload: bytes) -> list[int]:
        """Return the three best classes of a text."""
        (logits,) = self._session.run(["logits"], self._tokens.prepare(payload))
        return rank(logits[0], 3)["classes"]


LOOPS: dict[str, Callable[[Path], Loop]] = {
    "plain": PlainLoop, "own-ops": OwnOpsLoop, "text": TextLoop,
}  # fmt: skip


def run_loop(loop: Loop, payloads: list[bytes], threads: int, seconds: float) -> Report:
    """Run a loop in so many threads for so long; each request is due when it begins."""
    samples: list[Sample] = []
    cpu, began = time.process_time(), time.perf_counter()

    def work(index: int) -> None:
        while (started := time.perf_counter()) < began + seconds:
            loop(payloads[index % len(payloads)])
            samples.append(Sample(started, started, time.perf_counter()))
            index += threads

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return summarize(samples, began, time.process_time() - cpu)


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.inprocess")
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("--place", type=Path, required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--once", action="store_true")
    job = parser.parse_args(words)
    cv2.setNumThreads(1)
    payloads = [path.read_bytes() for path in sorted(job.inputs.iterdir())]
    loop = LOOPS[job.loop](job.place)
    if job.once:
        print(json.dumps([loop(payload) for payload in payloads]))
        return
    loop(payloads[0])
    print(json.dumps(asdict(run_loop(loop, payloads, job.threads, job.seconds))))


if __name__ == "__main__":
    main(sys.argv[1:])
