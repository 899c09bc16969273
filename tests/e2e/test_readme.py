"""What the README tells people to type is typed here, and its links lead somewhere."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Mesh

README = (ROOT / "README.md").read_text()
FOREIGN = (".venv", "build")  # what pip installed; the benchmarks' peers are under build/
PAGES = [page for page in ROOT.rglob("*.md") if page.relative_to(ROOT).parts[0] not in FOREIGN]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line]
    return [line for line in lines if line.startswith("trtmesh ") and " up" not in line]


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("command", commands(), ids=str)
def test_command_of_the_readme_works(mesh: Mesh, command: str, tmp_path: Path) -> None:
    (ROOT / "build").mkdir(exist_ok=True)
    mesh.cli("language", "Good morning")  # so that there is a trace to show
    done = mesh.cli(*shlex.split(command, comments=True)[1:])
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_program_of_the_readme_works(mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = blocks("python")
    exec(compile(program.replace("127.0.0.1:8001", mesh.gateway), "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 9


def test_other_commands_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wanted = set(re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", README, re.MULTILINE))
    assert wanted
    assert wanted <= targets
    assert shutil.which("make")


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target
