"""Addresses of a stage's replicas: a list, or a DNS name that is asked again and again."""

import asyncio
import socket

from mesh.errors import SettingsError

DNS = "dns:///"


async def resolve(targets: str) -> set[str]:
    """Return the addresses of all replicas now.

    Args:
        targets: comma-separated `host:port`, `unix:/path` or `dns:///name:port`; the last stands
            for one replica per address that the name has.

    Raises:
        SettingsError: no address, or one without a port.
    """
    found: set[str] = set()
    for target in filter(None, (part.strip() for part in targets.split(","))):
        if target.startswith(DNS):
            found |= await _lookup(target.removeprefix(DNS))
        elif target.startswith("unix:") or target.rpartition(":")[2].isdigit():
            found.add(target)
        else:
            raise SettingsError(f"address {target!r} came, wanted host:port, unix:/path or {DNS}…")
    if not found and DNS not in targets:
        raise SettingsError(f"no address in {targets!r}; give host:port,host:port,…")
    return found


async def _lookup(target: str) -> set[str]:
    name, _, port = target.rpartition(":")
    if not name or not port.isdigit():
        raise SettingsError(f"DNS target {target!r} came, wanted {DNS}name:port")
    try:
        rows = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return set()  # a name without addresses has no replicas now
    hosts = {str(row[4][0]) for row in rows}
    return {f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts}
