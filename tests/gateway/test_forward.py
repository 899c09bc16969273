"""A data worker passes calls on to the control process, and waits for one that starts anew."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gateway.forward import forward, forwarded_traces
from gateway.trace_store import TraceStore, trace_handler, trace_service
from mesh.errors import DeadlineExceeded, InvalidInput, NotFound
from mesh.host import Host
from mesh.item import Request
from mesh.layers import errors
from mesh.unary import ask, unary_method
from protos.mesh.v1.mesh_pb2 import GetTraceRequest, GetTraceResponse
from tests.gateway.test_trace_store import group, key_of, request_span

GET_TRACE = "mesh.v1.Mesh/GetTrace"


@asynccontextmanager
async def control(address: str, store: TraceStore) -> AsyncIterator[None]:
    host = Host(address)
    method = unary_method(errors(trace_handler(store)), "GetTrace")
    host.add("mesh.v1.Mesh", {"GetTrace": method})
    host.add(*trace_service(store))
    await host.start()
    try:
        yield
    finally:
        await host.server.stop(None)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/control.sock"


def get_trace(trace_id: str = "", left_s: float = math.inf) -> Request:
    payload = GetTraceRequest(trace_id=trace_id).SerializeToString()
    return Request("GetTrace", payload, deadline=time.monotonic() + left_s)


async def test_answers_and_errors_come_as_the_control_process_gave_them(address: str) -> None:
    store = TraceStore()
    async with control(address, store), grpc.aio.insecure_channel(address) as channel:
        handler = forward(channel, GET_TRACE)
        with pytest.raises(NotFound, match="is not kept here"):
            await handler(get_trace())
        with pytest.raises(InvalidInput, match="wanted 32 hexadecimal digits"):
            await handler(get_trace("zz"))
        store.add([group("gateway", request_span(1))])
        reply = await handler(get_trace())
        assert GetTraceResponse.FromString(reply.payload).trace_id == key_of(1).hex()


async def test_call_waits_for_a_control_process_that_starts_anew(address: str) -> None:
    store = TraceStore()
    store.add([group("gateway", request_span(1))])
    async with grpc.aio.insecure_channel(address) as channel:
        waiting = asyncio.create_task(_answer(channel))
        await asyncio.sleep(0)
        async with control(address, store):
            assert await waiting == key_of(1).hex()
        waiting = asyncio.create_task(_answer(channel))
        await asyncio.sleep(0)
        async with control(address, store):
            assert await waiting == key_of(1).hex()


async def _answer(channel: grpc.aio.Channel) -> str:
    reply = await forward(channel, GET_TRACE)(get_trace())
    return str(GetTraceResponse.FromString(reply.payload).trace_id)


async def test_callers_deadline_is_kept(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await forward(channel, GET_TRACE)(get_trace(left_s=0.2))
        assert time.monotonic() - started < 2


async def test_spans_that_stages_send_to_a_data_worker_are_kept(tmp_path: Path) -> None:
    store = TraceStore()
    public = f"unix:{tmp_path}/public.sock"
    address = f"unix:{tmp_path}/control.sock"
    async with control(address, store), grpc.aio.insecure_channel(address) as channel:
        host = Host(public)
        host.add(*forwarded_traces(channel))
        await host.start()
        message = ExportTraceServiceRequest(resource_spans=[group("infer", request_span(1))])
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        await ask(public, f"{service}/Export", message.SerializeToString(), 5)
        await host.server.stop(None)
    assert store.get("")[0] == key_of(1).hex()
