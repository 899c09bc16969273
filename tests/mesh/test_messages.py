"""A handler of messages takes and gives their bytes, and refuses what is none."""

import pytest

from mesh.errors import InvalidInput
from mesh.item import Request
from mesh.messages import message_handler
from protos.mesh.v1.mesh_pb2 import GetTraceRequest, GetTraceResponse


async def answer(message: GetTraceRequest, _: Request) -> GetTraceResponse:
    return GetTraceResponse(trace_id=message.trace_id + "!")


async def test_message_is_read_and_the_answer_written() -> None:
    handler = message_handler(GetTraceRequest, answer)
    reply = await handler(Request("t", GetTraceRequest(trace_id="a").SerializeToString()))
    assert GetTraceResponse.FromString(reply.payload).trace_id == "a!"


@pytest.mark.parametrize("payload", [b"\xff\xff", b"\x0a\x02\xff\xfe"], ids=["noise", "no_text"])
async def test_bytes_that_are_no_message_are_refused_by_its_name(payload: bytes) -> None:
    handler = message_handler(GetTraceRequest, answer)
    with pytest.raises(InvalidInput, match=rf"{len(payload)} bytes came that are no mesh.v1.GetT"):
        await handler(Request("t", payload))
