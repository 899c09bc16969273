"""A client of the Open Inference Protocol over gRPC, as Triton speaks it, by a raw stub."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from benchmarks.load.loops import Ask, AskError

MODELS = {"jpeg": "bench", "text": "language"}
METHOD = "/inference.GRPCInferenceService/ModelInfer"


@asynccontextmanager
async def unary(address: str, work: str, timeout_s: float) -> AsyncIterator[Ask]:
    """Call an ensemble that takes BYTES "input" [1, 1] and gives INT32 "classes" [1, k]."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(
            METHOD,
            service_pb2.ModelInferRequest.SerializeToString,
            service_pb2.ModelInferResponse.FromString,
        )

        async def ask(payload: bytes) -> list[int]:
            try:
                response = await call(question(MODELS[work], payload), timeout=timeout_s)
            except grpc.aio.AioRpcError as err:
                raise AskError(err.code().name) from err
            return classes(response)

        yield ask


@asynccontextmanager
async def versions(address: str, work: str, timeout_s: float) -> AsyncIterator[Ask]:
    """Call the model "times", that multiplies FP32 "x" [1, 64] by its version, and compare them."""
    request = service_pb2.ModelInferRequest(model_name="times")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 64])
    request.raw_input_contents.append(np.ones(64, np.float32).tobytes())
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(
            METHOD,
            service_pb2.ModelInferRequest.SerializeToString,
            service_pb2.ModelInferResponse.FromString,
        )

        async def ask(_: bytes) -> list[int]:
            try:
                response = await call(request, timeout=timeout_s)
            except grpc.aio.AioRpcError as err:
                raise AskError(err.code().name) from err
            factor = int(np.frombuffer(response.raw_output_contents[0], np.float32)[0])
            if str(factor) != response.model_version:
                raise AskError(f"version {response.model_version} answered as {factor}")
            return [factor]

        yield ask


def question(model: str, payload: bytes) -> service_pb2.ModelInferRequest:
    """Return the request for one payload; BYTES elements begin with their length, 4 bytes."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="input", datatype="BYTES", shape=[1, 1])
    request.outputs.add(name="classes")
    request.outputs.add(name="scores")
    request.raw_input_contents.append(len(payload).to_bytes(4, "little") + payload)
    return request


def classes(response: service_pb2.ModelInferResponse) -> list[int]:
    """Return the classes of an answer.

    Raises:
        AskError: it has none.
    """
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.name == "classes":
            found: list[int] = np.frombuffer(raw, np.int32).tolist()
            return found
    raise AskError("no classes in the answer")
