"""`python -m tests.mesh.replica_process`: a replica in a process of its own, for tests to hurt."""

import asyncio

from mesh.item import Reply, Request
from tests.conftest import echo, running_replica


async def _answer(request: Request) -> Reply:
    if request.target == "hang":
        await asyncio.Event().wait()
    return await echo(request)


async def _main() -> None:
    async with running_replica(_answer) as replica:
        print(replica.address, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
