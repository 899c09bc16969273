"""Calls that a data worker passes on to the control process, as the bytes they are."""

import time

import grpc

from gateway.trace_store import TRACE_SERVICE
from mesh.grpc_types import Call, Methods
from mesh.item import Handler, Reply, Request
from mesh.layers import errors, logging_failures, stack
from mesh.status import from_rpc_error
from mesh.unary import unary_method

PATIENCE_S = 10.0
"""How long a call waits for a control process that starts anew."""


def forward(channel: grpc.aio.Channel, method: str) -> Handler:
    """Return a handler that asks the control process.

    Args:
        channel: to the control process.
        method: full name, as `mesh.v1.Mesh/GetTrace`.
    """
    call: Call = channel.unary_unary(f"/{method}")

    async def handle(request: Request) -> Reply:
        left = min(request.deadline - time.monotonic(), PATIENCE_S)
        try:
            return Reply(await call(request.payload, timeout=left, wait_for_ready=True))
        except grpc.aio.AioRpcError as err:
            raise from_rpc_error(err) from err

    return handle


def forwarded_traces(channel: grpc.aio.Channel) -> tuple[str, Methods]:
    """Return OTLP's `TraceService` as its name and methods: whose spans come here, go on."""
    name = f"{TRACE_SERVICE}/Export"
    handler = stack(forward(channel, name), [logging_failures(name), errors])
    return TRACE_SERVICE, {"Export": unary_method(handler, "Export")}
