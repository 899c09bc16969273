"""`trtmesh health` against a real server, run as the processes that containers start."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.host import Host

HEAVY = ("cv2", "numpy", "onnxruntime", "opentelemetry", "pydantic", "transformers")


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    """A server at `<tmp_path>/mesh.sock`, NOT_SERVING until told otherwise."""
    host = Host(f"unix:{tmp_path}/mesh.sock")
    await host.start()
    yield host
    await host.server.stop(None)


async def ask(*arguments: str) -> tuple[int, str, str]:
    """Run `trtmesh health` and return its exit status, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mesh.cli", "health", *arguments,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return await process.wait(), out.decode().strip(), err.decode().strip()


async def test_health_ends_with_0_when_serving_at_a_unix_socket(host: Host, tmp_path: Path) -> None:
    host.set_health("", True)
    assert await ask("--gateway", f"unix:{tmp_path}/mesh.sock") == (0, "SERVING", "")


async def test_health_ends_with_0_when_serving_at_a_port() -> None:
    host = Host("127.0.0.1:0")
    port = host.server.add_insecure_port("127.0.0.1:0")  # which one the host took is not told
    await host.start()
    host.set_health("", True)
    try:
        assert await ask("--gateway", f"127.0.0.1:{port}") == (0, "SERVING", "")
    finally:
        await host.server.stop(None)


async def test_health_ends_with_1_when_not_serving(host: Host, tmp_path: Path) -> None:
    assert await ask("--gateway", f"unix:{tmp_path}/mesh.sock") == (1, "NOT_SERVING", "")


async def test_health_asks_for_the_service_that_is_named(host: Host, tmp_path: Path) -> None:
    host.set_health("", True)
    host.set_health("digits", False)
    status, out, _ = await ask("--gateway", f"unix:{tmp_path}/mesh.sock", "--service", "digits")
    assert (status, out) == (1, "NOT_SERVING")


async def test_health_ends_with_1_for_a_service_without_a_status(
    host: Host, tmp_path: Path
) -> None:
    host.set_health("", True)
    status, out, err = await ask("--gateway", f"unix:{tmp_path}/mesh.sock", "--service", "nobody")
    assert (status, out) == (1, "")
    assert err == f"trtmesh: unix:{tmp_path}/mesh.sock tells no health of 'nobody'"


async def test_health_ends_with_1_when_nobody_listens(tmp_path: Path) -> None:
    status, out, err = await ask("--gateway", f"unix:{tmp_path}/nobody.sock")
    assert (status, out) == (1, "")
    assert err.startswith("trtmesh: ")


async def test_health_gives_up_a_server_that_never_answers(tmp_path: Path) -> None:
    path = tmp_path / "mute.sock"
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen()  # the kernel connects, nobody answers
        started = time.monotonic()
        status, _, err = await ask("--gateway", f"unix:{path}", "--timeout", "0.5")
    assert status == 1
    assert err.startswith("trtmesh: ")
    assert time.monotonic() - started < 15  # importing is most of it


def test_health_loads_none_of_the_heavy_libraries() -> None:
    program = (
        "import sys; from mesh.cli import main; main(['health', '--gateway', 'unix:/nobody']);"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
