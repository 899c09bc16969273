"""One step of a request: what it has become goes to its next stage."""

from collections.abc import Callable

from mesh.client import StageClient
from mesh.item import Reply, Request
from mesh.lease import Lease
from protos.mesh.v1.stage_pb2 import Target
from protos.mesh.v1.tensor_pb2 import Slot


async def call_stage(
    client: StageClient,
    request: Request,
    target: Target,
    payload: bytes,
    *,
    context: bytes = b"",
    lease: Lease | None = None,
    slot: Slot | None = None,
    more: Callable[[Reply], None] | None = None,
    resume: Callable[[], bytes] | None = None,
    caller: str = "",
) -> Reply:
    """Send what a request has become to its next stage, with the time it has left.

    Args:
        client: of the stage.
        request: as it came to the gateway.
        target: op or model, with its parameters.
        payload: for it.
        context: as in `Request`.
        lease: to send it with; None: one is waited for.
        slot: where outputs may be written.
        more: called with each reply before the last one.
        resume: as in `Request`.
        caller: as in `Request`.

    Raises:
        MeshError: as the stage answered, or that it did not.
    """
    step = Request(
        target.name, payload, target.parameters, context, request.deadline, request.trace,
        request.client, slot, hops=request.hops, caller=caller, resume=resume,
    )  # fmt: skip
    reply = await client.call(step, lease, more)
    reply.check()
    return reply
