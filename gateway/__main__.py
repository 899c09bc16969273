"""`python -m gateway`: the data workers and the control process of one gateway."""

import asyncio
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from gateway.settings import GatewaySettings
from mesh import log
from mesh.cores import workers
from mesh.crew import Crew
from mesh.errors import MeshError, SettingsError
from mesh.port import UNIX, PortHold
from mesh.process import SOCKETS, pin, wait_for_signal
from mesh.settings import load
from mesh.supervisor import gateway_children

logger = logging.getLogger(__name__)


async def main() -> None:
    """Start the processes, keep them running, and stop them on SIGTERM or SIGINT."""
    log.configure("gateway", "INFO")
    settings = load(GatewaySettings)
    log.configure("gateway", settings.log_level)
    count = workers("gateway", settings.workers)
    if settings.bind.startswith(UNIX):
        count = 1  # a socket file has one owner
    holds = [PortHold(address) for address in (settings.bind, settings.http) if address]
    for hold in holds:
        hold.take()
    with tempfile.TemporaryDirectory(prefix=SOCKETS) as sockets:
        children = gateway_children(count, Path(sockets), os.environ)  # noqa: TID251 passed on
        crew = Crew(children, logger.warning)
        crew.start()
        signalled = asyncio.create_task(wait_for_signal())
        ends: set[asyncio.Future[Any]] = {signalled, crew.failed}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        signalled.cancel()
        await crew.stop(2 * settings.drain_s + 5)
        for hold in holds:
            hold.release()
    if crew.failed.done():
        raise SettingsError(crew.failed.result())


if __name__ == "__main__":
    pin()
    try:
        asyncio.run(main())
    except MeshError as err:
        logger.error("cannot start", extra={"error": str(err)})
        raise SystemExit(2) from None
