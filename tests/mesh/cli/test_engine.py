import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.cli import main
from mesh.cli.engine import build, show
from tests.conftest import eventually

CLEANING = """
import sys, time
from pathlib import Path
try:
    print("working", flush=True)
    time.sleep(60)
finally:
    time.sleep(0.5)  # longer than subprocess.run would wait
    Path(sys.argv[1]).touch()
"""


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def phase(name: str, step: int = 0, steps: int = 0) -> str:
    return json.dumps({"phase": name, "step": step, "steps": steps}) + "\n"


RESULT = {
    "result": "built", "model": "m", "precision": "fp16", "target": "tensorrt 11 on sm_90",
    "bytes": 3 * 2**19, "build_s": 2.26, "folder": "/engines/abc",
}  # fmt: skip
LINES = [phase("converting"), phase("building", 1, 4), phase("building", 3, 4)]


def program(*lines: str, then: str = "") -> list[str]:
    return [sys.executable, "-c", f"print({''.join(lines)!r}, end='', flush=True); {then}"]


def test_a_terminal_has_one_line_that_is_kept_up_to_date_and_removed() -> None:
    screen = Terminal()
    assert show([*LINES, json.dumps(RESULT)], screen) == RESULT
    text = screen.getvalue()
    assert "\n" not in text
    states = [state.strip() for state in text.split("\r")]
    assert states == [
        "",
        f"[{'.' * 24}] converting",
        f"[{'#' * 6}{'.' * 18}] building 1/4",
        f"[{'#' * 18}{'.' * 6}] building 3/4",
        "",
        "",
    ]


def test_elsewhere_each_phase_has_a_line_and_other_text_is_passed_on() -> None:
    screen = io.StringIO()
    assert show([*LINES, "a warning\n"], screen) == {}
    assert screen.getvalue() == "converting\nbuilding\na warning\n"


def test_what_was_built_is_told_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    assert build(program(*LINES, json.dumps(RESULT)), screen) == 0
    assert screen.getvalue().splitlines()[-2:] == [
        "m: fp16 for tensorrt 11 on sm_90, 1.5 MiB, built in 2.3 s",
        "/engines/abc",
    ]
    screen = io.StringIO()
    assert capsys.readouterr().err == ""
    build(program(json.dumps(RESULT | {"result": "found", "note": "beware"})), screen)
    assert "1.5 MiB, in the cache\n" in screen.getvalue()
    assert capsys.readouterr().err == "trtmesh: beware\n"


def test_error_is_told_and_the_status_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    line = json.dumps({"result": "refused", "error": "too wrong"})
    assert build(program(line, then="raise SystemExit(3)"), io.StringIO()) == 3
    assert capsys.readouterr().err == "trtmesh: refused: too wrong\n"


def test_builder_that_is_killed_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    words = program(phase("building"), then="import os; os.kill(os.getpid(), 9)")
    assert build(words, io.StringIO()) == 1
    assert "killed by signal 9" in capsys.readouterr().err


async def test_ctrl_c_ends_the_builder() -> None:
    child = program(
        phase("building"), then="import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    )
    source = f"import sys; from mesh.cli.engine import build; build({child!r}, sys.stdout)"
    with subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as front:
        assert front.stdout is not None
        assert front.stdout.readline() == "building\n"
        builder = int(front.stdout.readline())
        front.send_signal(signal.SIGINT)
        _, said = front.communicate(timeout=20)
        assert "trtmesh: stopped; there is no engine of this build" in said
        await eventually(lambda: not Path(f"/proc/{builder}/exe").exists())


def test_program_cleans_up_after_ctrl_c(tmp_path: Path) -> None:
    child = [sys.executable, "-c", CLEANING, str(tmp_path / "cleaned")]
    source = f"from mesh.cli.engine import follow; follow({child!r})"
    with subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as front:  # fmt: skip
        assert front.stdout is not None
        assert front.stdout.readline() == "working\n"
        os.killpg(front.pid, signal.SIGINT)
        front.communicate(timeout=20)
    assert (tmp_path / "cleaned").exists()


def test_actions_reach_their_program(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engines = str(tmp_path / "engines")
    assert main(["engine", "list", "--cache", engines]) == 0
    assert capfd.readouterr().out == f"no engines in {engines}\n"
    with pytest.raises(SystemExit):
        main(["engine", "nothing"])
    assert main(["engine", "build", "--help"]) == 0
    assert "--calibration DATA" in capfd.readouterr().out


def test_build_and_list_of_a_demo_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engines = str(tmp_path / "engines")
    words = ["engine", "build", "digits-classify", "--precision", "fp16", "--cache", engines]
    assert main(words) == 0
    assert "digits-classify: fp16 for tensorrt" in capfd.readouterr().out
    assert main(words) == 0
    assert "in the cache" in capfd.readouterr().out
    assert main(["engine", "list", "--cache", engines]) == 0
    assert capfd.readouterr().out.splitlines()[1].split()[:2] == ["digits-classify", "fp16"]
    assert os.listdir(tmp_path) == ["engines"]
