"""The split model of infer_svc/README.md, made as it says there."""

import os
import re
import shutil
from pathlib import Path

README = Path(__file__).parents[2] / "infer_svc" / "README.md"
NAME = "detect-split"


def split_detect(models: Path, root: Path, *, on_gpu: bool = False) -> Path:
    """Copy digits-detect into a repository in `root`, cut it in two there, and join the parts.

    Args:
        models: the demo models.
        root: gets the folder `models`.
        on_gpu: each part on a GPU of its own, as the README has it; else all on the CPU.

    Returns:
        The repository: the whole model, its two parts, and the ensemble.
    """
    repository = root / "models"
    shutil.copytree(models / "digits-detect", repository / "digits-detect")
    ((program, config),) = re.findall(
        r"```python\n(.*?)```.*```\n(.*?)```", README.read_text(), re.S
    )
    if not on_gpu:
        group = "kind: KIND_GPU gpus: [ {gpu} ]"
        assert group in program
        program = program.replace(group, "kind: KIND_CPU")
    before = Path.cwd()
    os.chdir(root)
    try:
        exec(compile(program, str(README), "exec"), {})
    finally:
        os.chdir(before)
    (repository / NAME / "config.pbtxt").write_text(config)
    return repository
