"""What serving on a CPU needs on this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

PYTHON = (3, 11)
ARENA_BYTES = 48 * 2**20
"""Of a replica of infer, unless `INFER_ARENA_MBYTES` says otherwise."""


@dataclass(frozen=True)
class Finding:
    """What was found of one thing; nothing can be served without what is missing."""

    state: Literal["ok", "warn", "missing"]
    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.state:8} {self.text}" + (f"; {self.fix}" if self.fix else "")


def ask(program: str) -> tuple[int, str]:
    """Run a Python program in a process of its own.

    Returns:
        Its exit status, which is negative if a signal ended it, and the last line that it said.
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    lines = (done.stdout or done.stderr).strip().splitlines()
    return done.returncode, lines[-1] if lines else f"ended with {done.returncode}"


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Check the version of Python."""
    text = f"Python {'.'.join(map(str, version))}"
    if version >= PYTHON:
        return Finding("ok", text)
    wanted = ".".join(map(str, PYTHON))
    return Finding("missing", f"{text} came, wanted {wanted} or newer", f"install Python {wanted}")


def packages(distribution: str = "trtmesh") -> Iterator[Finding]:
    """Check that the packages are there which a distribution needs, in the versions it needs."""
    from packaging.requirements import Requirement  # noqa: PLC0415  itself a package of them

    try:
        wanted = [Requirement(text) for text in metadata.requires(distribution) or ()]
    except metadata.PackageNotFoundError:
        yield Finding("warn", f"{distribution} is not installed", "pip install .")
        return
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = 0
    for one in wanted:
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            version = "none"
        if version == "none" or not one.specifier.contains(version, prereleases=True):
            wrong += 1
            text = f"package {one.name}: {version} came, wanted {one.specifier or 'any'}"
            yield Finding("missing", text, f"pip install '{one}'")
    if not wrong:
        yield Finding("ok", f"{len(wanted)} packages of {distribution}")


def onnxruntime(module: str = "onnxruntime") -> Finding:
    """Check that ONNX Runtime can be loaded; it also reads the models that TensorRT runs."""
    status, text = ask(
        f"import {module} as it\n"
        "print('ONNX Runtime', it.__version__, *it.get_available_providers())"
    )
    if status == 0 and "CPUExecutionProvider" in text:
        return Finding("ok", text)
    return Finding("missing", f"ONNX Runtime: {text}", "pip install --force-reinstall onnxruntime")


def shared_memory(folder: Path = Path("/dev/shm"), needed: int = ARENA_BYTES) -> Finding:
    """Check that there is room for an arena; without it pixels are sent."""
    try:
        found = os.statvfs(folder)
    except OSError as err:
        return Finding("warn", f"{folder}: {err.strerror}", f"mount a tmpfs at {folder}")
    free, size = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    text = f"{folder}: {free // 2**20} of {size // 2**20} MB free"
    if free >= needed:
        return Finding("ok", text)
    return Finding(
        "warn", f"{text}, a replica of infer wants {needed // 2**20}",
        "docker run --shm-size 256m, or a smaller INFER_ARENA_MBYTES",
    )  # fmt: skip
