"""A server's processes start, are waited for, and leave nothing behind."""

import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.peers.server import ServerFailed, listens, running
from mesh.port import free_ports

SERVER = """
import http.server, subprocess, sys
print("child", subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid)
sys.stdout.flush()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler)\\
    .serve_forever()
"""


def test_server_runs_for_the_body_and_its_children_end_with_it(tmp_path: Path) -> None:
    port, log = free_ports(1)[0], tmp_path / "logs/server.log"
    command = [sys.executable, "-c", SERVER, str(port)]
    with running(command, {}, log, lambda: listens(port)) as pid:
        assert listens(port)
        (child,) = psutil.Process(pid).children()
        assert f"child {child.pid}" in log.read_text()
    assert not listens(port)
    assert not psutil.pid_exists(pid)
    gone, alive = psutil.wait_procs([child], timeout=5)
    assert [child] == gone or all(p.status() == psutil.STATUS_ZOMBIE for p in alive)


def test_server_that_ends_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os; exit(os.environ['WHY'])"]
    with pytest.raises(ServerFailed, match=r"status 1.*no model"):
        with running(command, {"WHY": "no model"}, tmp_path / "log", lambda: False):
            pass


def test_server_that_is_never_ready_is_given_up_and_stopped(tmp_path: Path) -> None:
    here = str(tmp_path / "nobody.py")
    Path(here).write_text("import time\ntime.sleep(600)\n")
    with pytest.raises(ServerFailed, match="status None"):
        with running([sys.executable, here], {}, tmp_path / "log", lambda: False, 0.3):
            pass
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not any(here in command for command in commands)
