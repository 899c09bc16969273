"""Faults that are real: each breaks the context of a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

PROGRAM = """
import sys
from infer_svc.backends.cuda import Stream, device
from infer_svc.backends.ptx import launch

gpu = device(0)
with gpu.current():
    stream = Stream(gpu.driver)
    launch(gpu.driver, sys.argv[1], stream)
    print("queued", flush=True)
    code = gpu.library.probe(stream.handle)
    print(gpu.library.name(code), code, flush=True)
    import os
    os._exit(0)
"""


def run(kernel: str, limit_s: float) -> str:
    command = [sys.executable, "-c", PROGRAM, kernel]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=limit_s)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.gpu
def test_kernel_that_writes_to_address_0_leaves_a_sticky_error() -> None:
    assert run("illegal", 60).split() == ["queued", "CUDA_ERROR_ILLEGAL_ADDRESS", "700"]


@pytest.mark.gpu
def test_kernel_that_never_ends_is_waited_for_until_somebody_ends_the_process() -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        run("spin", 15)
    assert b"queued" in (caught.value.stdout or b"")
