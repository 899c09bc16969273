"""What every benchmark prints and keeps: its command, the machine, versions."""

import json
import os
import platform
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "grpcio", "protobuf", "onnxruntime", "numpy", "opencv-python-headless", "uvloop", "pycuda",
    "tensorrt", "tensorrt-rtx-cu13-bindings", "torch", "transformers",
)  # fmt: skip
"""Those of them that are installed are named."""


def environment() -> dict[str, Any]:
    """Return what a figure depends on beside the code."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "command": " ".join(["python -m", _module(Path(sys.argv[0])), *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": model[0] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": _versions(),
    }


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[parts.index("benchmarks") :]).removesuffix(".__main__")


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def keep(name: str, figures: dict[str, Any]) -> None:
    """Print the environment, and write the figures with it to `results/<name>.json`."""
    record = {"environment": environment(), "figures": figures}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    env = record["environment"]
    print(f"{env['command']}  |  {env['cpu']}, {env['cores']} cores, Python {env['python']}")
    print(f"written: {path}")
