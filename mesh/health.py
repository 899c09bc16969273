"""`grpc.health.v1.Health`: what serves, told when asked and to everyone who watches."""

import asyncio

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from mesh.errors import NotFound
from mesh.grpc_types import Context
from mesh.status import abort

NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Health(health_pb2_grpc.HealthServicer):
    """The health of services by name; the empty name stands for the process.

    Not the servicer of `grpc_health.v1.health.aio`: when one of its watchers leaves, the others
    of the same service get no more news (version 1.81).
    """

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._changed = asyncio.Event()
        self._leaving = False

    def set(self, service: str, serving: bool) -> None:
        """Tell the health of a service; does nothing once the process is leaving."""
        if self._leaving or self._serving.get(service) is serving:
            return
        self._serving[service] = serving
        self._tell()

    def leave(self) -> None:
        """Turn every service NOT_SERVING for good."""
        self._leaving = True
        self._serving = dict.fromkeys(self._serving, False)
        self._tell()

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """Answer with the health of a service now."""
        if request.service not in self._serving:
            await abort(context, NotFound(f"the health of {request.service!r} is not known here"))
        return HealthCheckResponse(status=self._status(request.service))

    async def Watch(self, request: HealthCheckRequest, context: Context) -> None:
        """Send the health of a service now and whenever it changes."""
        last = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != last:
                await context.write(HealthCheckResponse(status=status))
            last = status
            await changed.wait()

    def _status(self, service: str) -> int:
        serving = self._serving.get(service)
        if serving is None:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
