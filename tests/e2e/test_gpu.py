"""Two infer services on one GPU: contexts are broken for real, and no call fails."""

import re
from pathlib import Path
from shutil import copytree

import pytest

from tests.e2e.conftest import ROOT, start_mesh, stop_mesh
from tests.e2e.test_chaos import ask_until

ENDED = "ended with status 70; starts again"


def on_gpu(folder: Path) -> Path:
    """Return the demo repository with every model on a GPU, for callers who have the time.

    Both processes may be away at once, for as long as their models take to load.
    """
    copytree(ROOT / "models", folder)
    for path in folder.glob("*/pipeline.yaml"):
        path.write_text(f"{path.read_text()}\ndeadline_s: 60\n")
    for path in folder.glob("*/config.pbtxt"):
        text = path.read_text().replace("KIND_CPU", "KIND_GPU")
        path.write_text(re.sub(r"count: 1\b", "count: 2", text))
    return folder


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ("illegal=0.0007", "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("spin=0.0007", "has worked on one batch for more than 2 s"),
    ],
    ids=["illegal", "spin"],
)
async def test_no_call_fails_when_a_gpu_context_is_broken_for_real(
    tmp_path: Path, faults: str, reason: str
) -> None:
    models, cache = on_gpu(tmp_path / "models"), str(tmp_path / "engines")
    warm = start_mesh(tmp_path / "warm", models=models, INFER_ENGINE_CACHE=cache, limit_s=300)
    assert stop_mesh(warm) == 0
    mesh = start_mesh(
        tmp_path / "log", "--workers", "infer=2", models=models, limit_s=300,
        INFER_ENGINE_CACHE=cache, INFER_FAULTS=faults, INFER_HANG_S="2",
    )  # fmt: skip
    try:
        answers = await ask_until(mesh, lambda: mesh.log.read_text().count(ENDED) >= 2)
        assert answers > 100
        assert reason in mesh.log.read_text()
    finally:
        print(mesh.log.read_text()[-30_000:])  # shown where the test fails
        assert stop_mesh(mesh) == 0
