"""`python -m tests.mesh.supervisor_process`: a supervisor in a process of its own, to be killed."""

import asyncio
import os
import sys
from pathlib import Path

from mesh.supervisor import Supervisor


async def _main() -> None:
    supervisor = Supervisor(Path(), {}, os.environ, sys.argv[1], print)
    supervisor.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
