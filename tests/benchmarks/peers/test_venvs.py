"""Each peer's environment is pinned, and decodes and runs with the mesh's own versions."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.peers import venvs
from benchmarks.peers.venvs import CLIENT, FASTAPI, LITSERVE, TRITON, Venv

ALL = (TRITON, FASTAPI, LITSERVE, CLIENT)


@pytest.mark.parametrize("venv", ALL, ids=lambda venv: venv.name)
def test_every_requirement_has_one_version(venv: Venv) -> None:
    for requirement in (*venv.bare, *venv.requirements()):
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", requirement)


@pytest.mark.parametrize("venv", (TRITON, FASTAPI, LITSERVE), ids=lambda venv: venv.name)
def test_every_server_decodes_and_runs_with_the_same_libraries(venv: Venv) -> None:
    everything = {*venv.bare, *venv.requirements()}
    for name in ("onnxruntime", "opencv-python-headless"):
        assert f"{name}=={version(name)}" in everything


def test_environment_of_just_these_requirements_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(venvs, "FOLDER", tmp_path)
    monkeypatch.setattr(venvs, "_run", lambda *words: commands.append(words))
    (tmp_path / "one").mkdir()
    Venv("one", ("a==1",)).make()
    assert [command[1:3] for command in commands] == [("-m", "venv"), ("-m", "pip")]
    Venv("one", ("a==1",)).make()
    assert len(commands) == 2
    Venv("one", ("a==2",)).make()
    assert len(commands) == 4
    assert commands[-1][-1] == "a==2"
