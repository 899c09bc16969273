"""An attempt at a replica that has no span: what a trace needs of it, should one be written."""

import time
from collections.abc import Callable

from mesh.errors import Cancelled, MeshError
from mesh.item import Hop, Reply, Request
from mesh.link import Link
from mesh.status import to_status
from protos.mesh.v1.stage_pb2 import Status


async def send_noted(
    link: Link,
    request: Request,
    method: str,
    attempt: int,
    more: Callable[[Reply], None] | None = None,
) -> Reply:
    """Send an item, and note the attempt where the request has a list of them.

    Args:
        link: to the replica.
        request: the item.
        method: full name, as `mesh.v1.Infer/Run`.
        attempt: 0 for the first one.
        more: called with each reply before the last one.

    Raises:
        MeshError: no reply could be had.
    """
    if request.hops is None:
        return await link.send(request, request.trace, more)
    hop = Hop(method, request.target, link.address, attempt, time.monotonic())
    request.hops.append(hop)
    try:
        reply = await link.send(request, request.trace, more)
    except MeshError as err:
        hop.status = to_status(err)
        raise
    except BaseException:
        hop.status = to_status(Cancelled("the caller gave up"))
        raise
    else:
        hop.answered, hop.timings = True, reply.timings
        if reply.status is not None:
            hop.status = Status()
            hop.status.CopyFrom(reply.status)  # its own would keep the whole envelope alive
        return reply
    finally:
        hop.ended = time.monotonic()
