"""`trtmesh trace` prints the newest trace or the one asked for, or writes it for Jaeger's page."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from gateway.trace_store import TraceStore
from mesh.cli import main
from mesh.item import Reply, Request
from mesh.layers import errors
from mesh.sync_client import SERVICE
from mesh.unary import unary_method
from protos.mesh.v1.mesh_pb2 import GetTraceRequest, GetTraceResponse
from tests.mesh.cli.test_trace_view import TRACE, example


@pytest.fixture
async def gateway() -> AsyncIterator[str]:
    """A gateway that keeps one trace."""
    store = TraceStore()
    store.add(example().resource_spans)

    async def answer(request: Request) -> Reply:
        trace_id, data = store.get(GetTraceRequest.FromString(request.payload).trace_id)
        response = GetTraceResponse(trace_id=trace_id, traces=data.SerializeToString())
        return Reply(response.SerializeToString())

    server = grpc.aio.server()
    table = {"GetTrace": unary_method(errors(answer), "GetTrace")}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, table),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.mark.parametrize("words", [[], [TRACE.hex()]], ids=["newest", "by_id"])
async def test_trace_is_printed_as_a_tree(
    words: list[str], gateway: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asyncio.to_thread(main, ["trace", *words, "--gateway", gateway]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"trace {TRACE.hex()}"
    assert lines[1].startswith("gateway: mesh.v1.Mesh/Detect server")
    assert len(lines) == 7


async def test_trace_is_written_for_jaeger(
    gateway: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.json"
    argv = ["trace", "--jaeger", str(path), "--gateway", gateway]
    assert await asyncio.to_thread(main, argv) == 0
    assert capsys.readouterr().out == f"written: {path}\n"
    assert json.loads(path.read_text())["data"][0]["traceID"] == TRACE.hex()


@pytest.mark.parametrize("trace_id", ["ff" * 16, "zz"], ids=["unknown", "no_id"])
async def test_trace_that_is_not_there_is_one_line_and_status_1(
    trace_id: str, gateway: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asyncio.to_thread(main, ["trace", trace_id, "--gateway", gateway]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert trace_id in captured.err
