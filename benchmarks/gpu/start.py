"""How soon a new process serves ResNet-50 when engine and kernels are in the cache.

As a program of its own (`python -m benchmarks.gpu.start MODELS CACHE BEGAN`) it is that process.
"""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RUNS = 3
LANES = 4


async def measure(root: Path) -> dict[str, Any]:
    """Return the seconds of each run of a process; the first one fills the caches."""
    from benchmarks.gpu.networks import RESNET, write  # noqa: PLC0415  PyTorch, not in the process

    write(RESNET, root / "models", LANES)
    runs = [_run(root) for _ in range(RUNS + 1)]
    return {"lanes": LANES, "first": runs[0], "warm": runs[1:]}


def _run(root: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.gpu.start", str(root / "models/resnet50")]
    command += [str(root / "engines"), str(time.time())]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(ended.stderr[-4000:])
    times: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return times


async def start(folder: Path, cache: Path, began: float) -> dict[str, float]:
    """Load a model and tell after how many seconds each step was done."""
    import numpy as np  # noqa: PLC0415  counted

    from infer_svc.backends.machine import Machine  # noqa: PLC0415  counted
    from infer_svc.build.builds import Builds  # noqa: PLC0415  counted
    from infer_svc.lane import Lane  # noqa: PLC0415  counted
    from infer_svc.repository import load_model  # noqa: PLC0415  counted

    times = {"imports_s": time.time() - began}
    model = load_model(folder, Machine(builds=Builds(cache)))
    times["engine_s"] = time.time() - began
    (placement,) = model.placements
    loop = asyncio.get_running_loop()
    lanes = [Lane("first", placement.engine, loop)]
    lanes[0].answer({"x": np.zeros((1, 3, 224, 224), np.float16)})
    times["first_lane_s"] = time.time() - began
    lanes += [Lane(f"lane-{n}", placement.engine, loop) for n in range(placement.lanes)]
    times["all_lanes_s"] = time.time() - began
    placement.engine.settle()
    for lane in lanes:
        lane.close()
    placement.engine.close()
    return {name: round(seconds, 2) for name, seconds in times.items()}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(start(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))))
