"""deploy/compose.gpu.yaml and the image behind it, as far as they go without a GPU."""

import json
import os
import re
import subprocess
import tomllib
from typing import Any

import pytest

from tests.e2e.conftest import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
OVERLAY = (ROOT / "deploy/compose.gpu.yaml").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_flavour_of_the_image_is_an_extra_that_can_build_and_run_engines(flavour: str) -> None:
    names = {re.split(r"[<>=]", one)[0] for one in EXTRAS[flavour]}
    assert {"onnx", "pycuda"} < names
    assert any(name.startswith(flavour) for name in names)
    assert re.search(rf"# An extra .*: .*{flavour}\b", DOCKERFILE)
    assert re.search(rf"FLAVOUR .*{flavour}\b", OVERLAY)


def test_stages_for_a_gpu_are_built_for_no_other_target() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert [name for _, name in stages[-2:]] == ["gpu-libraries", "infer-gpu"]
    others = DOCKERFILE[: DOCKERFILE.index("AS gpu-libraries")]
    assert "gpu-libraries" not in others


def composed(**variables: str) -> dict[str, Any]:
    """Return the services as compose reads both files."""
    files = ("-f", "compose.yaml", "-f", "deploy/compose.gpu.yaml")
    done = subprocess.run(
        ["docker", "compose", *files, "config", "--format", "json"],
        cwd=ROOT, env={**os.environ, **variables},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


@pytest.mark.compose
def test_only_infer_gets_the_gpu_and_keeps_what_it_had() -> None:
    services = composed(GPUS="2", FLAVOUR="tensorrt-rtx")
    infer = services.pop("infer")
    (device,) = infer["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 2, "capabilities": ["gpu"]}
    assert infer["build"]["target"] == "infer-gpu"
    assert infer["build"]["args"]["FLAVOUR"] == "tensorrt-rtx"
    assert infer["environment"]["INFER_ENGINE_CACHE"] == "/engines"
    assert [volume["target"] for volume in infer["volumes"]] == ["/models", "/dev/shm", "/engines"]
    assert infer["read_only"]
    assert infer["cap_drop"] == ["ALL"]
    assert not any("deploy" in service for service in services.values())
