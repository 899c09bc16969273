"""Where the replicas of a stage are now: addresses, and the workers behind each."""

import asyncio
import logging
import time

from mesh.errors import DeadlineExceeded, MeshError, StageUnavailable
from mesh.resolver import resolve
from mesh.unary import ask
from protos.mesh.v1.stage_pb2 import DescribeRequest, DescribeResponse

ASK_S = 1.0
"""How long an address may take to tell of its workers."""
ASK_AGAIN_S = 15.0
RESOLVE_EVERY_S = 3.0

log = logging.getLogger(__name__)


class Directory:
    """Looks a stage's addresses up, and asks each for its workers.

    An address stands for one replica, or for a parent whose workers are replicas of their own at
    other ports of the same host: it says so in `Describe`.

    Args:
        targets: as `mesh.resolver.resolve` takes them.
        stage: full name of the gRPC service, as `mesh.v1.Preprocess`.
    """

    def __init__(self, targets: str, stage: str) -> None:
        self.targets = targets
        self.stage = stage
        self._workers: dict[str, set[str]] = {}
        self._asked: dict[str, float] = {}
        self._found: set[str] = set()

    @property
    def addresses(self) -> list[str]:
        """Every replica that was found last."""
        return sorted(self._found)

    async def find(self) -> set[str]:
        """Return the addresses of all replicas now.

        Raises:
            SettingsError: no address, or one without a host or a port.
            StageUnavailable: a name cannot be looked up now.
        """
        heads = await resolve(self.targets)
        # A socket file is one process: who starts several gives each its own.
        hosts = {head for head in heads if not head.startswith("unix:")}
        for gone in self._asked.keys() - hosts:
            del self._asked[gone]
            self._workers.pop(gone, None)
        now = time.monotonic()
        due = [head for head in hosts if now - self._asked.get(head, -1e9) >= ASK_AGAIN_S]
        await asyncio.gather(*map(self._ask, due))
        self._found = set().union(*(self._workers.get(head, {head}) for head in heads))
        return self._found

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                await self.find()
            except StageUnavailable as err:
                log.warning("addresses stay as they are", extra={"error": str(err)})
            await asyncio.sleep(RESOLVE_EVERY_S)

    async def _ask(self, head: str) -> None:
        request = DescribeRequest().SerializeToString()
        try:
            answer = await ask(head, f"{self.stage}/Describe", request, ASK_S)
            ports = list(DescribeResponse.FromString(answer).worker_ports)
        except (StageUnavailable, DeadlineExceeded):
            return  # nobody is there now; what was known may still be true
        except MeshError:
            ports = []  # it has no such method, or cannot tell: it is itself
        host = head.rpartition(":")[0]
        self._asked[head] = time.monotonic()
        self._workers[head] = {f"{host}:{port}" for port in ports} or {head}
