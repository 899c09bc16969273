"""Work in the background, none of whose errors is forgotten."""

import asyncio
import logging
from collections.abc import Callable, Coroutine

from infer_svc.backends.errors import DeviceLost

log = logging.getLogger(__name__)


class Tasks:
    """Tasks of one model. Lives in the event loop.

    Args:
        lost: called with the reason when one fails: its requests and its lane are lost with it,
            and only a new process brings them back.
    """

    def __init__(self, lost: Callable[[str], None]) -> None:
        self._lost = lost
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def begin(self, work: Coroutine[None, None, None]) -> None:
        """Begin some work; its errors come to `lost`."""
        task = asyncio.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except DeviceLost as err:  # as the check of a lane found out
            self._lost(str(err))
        except Exception as err:  # the boundary: nobody awaits these tasks
            log.exception("background work failed")
            self._lost(f"{type(err).__name__}: {err}")
