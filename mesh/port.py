"""A port for the worker processes of one service, and for nobody else."""

import errno
import socket
from contextlib import ExitStack

from mesh.errors import SettingsError

UNIX = "unix:"


class PortHold:
    """The right of one program to let several processes of its own listen at one address.

    They listen with `SO_REUSEPORT`, with which the kernel spreads connections over them; it would
    let another program of the same user join as well. So whoever starts them looks first whether
    anybody listens, and holds a name meanwhile that the kernel gives to one process at a time and
    frees with it.

    Args:
        bind: `host:port`; a `unix:/path` needs no hold, as a socket file has one owner.
    """

    def __init__(self, bind: str) -> None:
        self._bind = bind
        self._name = socket.socket(socket.AF_UNIX)

    def take(self) -> None:
        """Take the address until `release`.

        Raises:
            SettingsError: somebody else has it, or it is none of this machine.
        """
        host, _, port = self._bind.rpartition(":")
        if self._bind.startswith(UNIX) or not port.isdigit():
            return  # a worker says what is wrong with an address
        try:
            self._name.bind(f"\0trtmesh {self._bind}")
            _demand_free(host.strip("[]"), int(port))
        except (OSError, OverflowError, UnicodeError) as err:
            self.release()
            used = isinstance(err, OSError) and err.errno == errno.EADDRINUSE
            reason = "another program does, perhaps a mesh" if used else str(err)
            raise SettingsError(
                f"cannot listen at {self._bind}: {reason}; stop it, or choose another address"
            ) from err

    def release(self) -> None:
        """Give the address back."""
        self._name.close()


def _demand_free(host: str, port: int) -> None:
    """Bind without `SO_REUSEPORT` for a moment, which fails where anybody listens."""
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # for what just ended
            probe.bind(address)


def free_ports(count: int) -> list[int]:
    """Return distinct ports of 127.0.0.1 at which nobody listens."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
