"""Addresses of a stage's replicas: a list, or a DNS name that is asked again and again."""

import asyncio
import socket

from mesh.errors import SettingsError, StageUnavailable

DNS = "dns:///"
_NO_ADDRESS = (socket.EAI_NONAME, socket.EAI_NODATA)
"""Answers of DNS; any other error is a want of one."""


async def resolve(targets: str) -> set[str]:
    """Return the addresses of all replicas now.

    Args:
        targets: comma-separated `host:port`, `unix:/path` or `dns:///name:port`; the last stands
            for one replica per address that the name has.

    Raises:
        SettingsError: no address, or one without a host or a port.
        StageUnavailable: a name cannot be looked up now.
    """
    found: set[str] = set()
    for target in filter(None, (part.strip() for part in targets.split(","))):
        if target.startswith(DNS):
            found |= await _lookup(target.removeprefix(DNS))
        elif target.startswith("unix:") or _has_host_and_port(target):
            found.add(target)
        else:
            raise SettingsError(f"address {target!r} came, wanted host:port, unix:/path or {DNS}…")
    if not found and DNS not in targets:
        raise SettingsError(f"no address in {targets!r}; give host:port,host:port,…")
    return found


def _has_host_and_port(target: str) -> bool:
    host, _, port = target.rpartition(":")
    return bool(host) and port.isdigit()


async def _lookup(target: str) -> set[str]:
    name, _, port = target.rpartition(":")
    wrong = SettingsError(f"DNS target {target!r} came, wanted {DNS}name:port")
    if not _has_host_and_port(target):
        raise wrong
    try:
        rows = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except UnicodeError as err:
        raise wrong from err
    except socket.gaierror as err:
        if err.errno in _NO_ADDRESS:
            return set()  # a name without addresses has no replicas now
        raise StageUnavailable(f"{name!r} cannot be looked up now: {err.strerror}") from err
    hosts = {str(row[4][0]) for row in rows}
    return {f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts}
