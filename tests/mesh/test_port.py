"""One program has a port for its workers, and any other that wants it is told so."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from mesh.errors import SettingsError
from mesh.port import PortHold
from tests.e2e.conftest import free_port


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_port()}"


@contextmanager
def held(address: str) -> Iterator[PortHold]:
    hold = PortHold(address)
    hold.take()
    try:
        yield hold
    finally:
        hold.release()


def worker(address: str) -> socket.socket:
    """Listen as gRPC does with `grpc.so_reuseport`."""
    host, _, port = address.rpartition(":")
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind((host, int(port)))
    found.listen()
    return found


def test_workers_of_the_holder_listen_side_by_side(address: str) -> None:
    with held(address), closing(worker(address)), closing(worker(address)):
        pass


def test_second_holder_is_refused_before_any_worker_listens(address: str) -> None:
    with held(address):
        with pytest.raises(SettingsError, match=f"cannot listen at {address}: another program"):
            PortHold(address).take()
    with held(address):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "[::]", "localhost"])
def test_listener_with_another_spelling_of_the_address_is_noticed(host: str, address: str) -> None:
    with closing(worker(address)):
        wanted = f"{host}:{address.rpartition(':')[2]}"
        with pytest.raises(SettingsError, match="another program does, perhaps a mesh"):
            PortHold(wanted).take()


def test_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(SettingsError, match=r"cannot listen at 192.0.2.1:80"):
        PortHold("192.0.2.1:80").take()
    with pytest.raises(SettingsError, match=r"cannot listen at no.such.host.invalid:8001"):
        PortHold("no.such.host.invalid:8001").take()


@pytest.mark.parametrize("bind", ["unix:/nowhere/x.sock", "nonsense", "a:b"])
def test_what_is_no_port_is_left_to_the_worker(bind: str) -> None:
    with held(bind):
        pass


def test_hold_ends_with_a_process_that_is_killed(address: str) -> None:
    program = (
        "import os, sys; from mesh.port import PortHold; hold = PortHold(sys.argv[1]);"
        "hold.take(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, address]).returncode == -9
    with held(address):
        pass
