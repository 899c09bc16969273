"""`python -m benchmarks.gpu [PART ...]`: all parts or those named, each with its result file.

Part `two` needs two GPUs, and is left out where it is not named and there is one.
"""

import importlib
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from benchmarks.environment import keep
from benchmarks.gpu.served import show
from infer_svc.backends.cuda import visible_gpus
from mesh.process import tune

PARTS = ("inside", "reference", "recovery", "start", "generate", "through", "two")


def main(parts: list[str]) -> None:
    """Run parts one after the other; engines are built once for all."""
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise SystemExit(f"parts {sorted(unknown)} came, there are {PARTS}")
    with tempfile.TemporaryDirectory() as folder:
        for part in parts or (PARTS if visible_gpus() > 1 else PARTS[:-1]):
            began = time.perf_counter()
            module = importlib.import_module(f"benchmarks.gpu.{part}")
            figures = uvloop.run(module.measure(Path(folder)))
            show({part: figures, "took_s": round(time.perf_counter() - began)})
            keep(f"gpu_{part}", figures)


if __name__ == "__main__":
    tune()
    main(sys.argv[1:])
