"""Requests to a server, and their answers as plain values that can be compared."""

import http.client
import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc import service_pb2_grpc

from tests.e2e.conformance.servers import Server

Outcome = Any
Case = Callable[[Server], Outcome]
"""Returns what can be JSON; an error's text is not looked at."""
LIMIT_S = 20
NO_LIMITS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
NUMPY = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1",
    "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
    "BF16": "<u2",
}  # fmt: skip
HEADER = "Inference-Header-Content-Length"


def bytes_of(*elements: bytes) -> bytes:
    """Return BYTES elements as raw contents."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def raw_of(dtype: str, values: Sequence[Any]) -> bytes:
    """Return values as raw contents."""
    return bytes_of(*values) if dtype == "BYTES" else np.array(values, NUMPY[dtype]).tobytes()


def values_of(dtype: str, raw: bytes) -> Any:
    """Return raw contents as values that JSON has."""
    if dtype not in NUMPY:
        found, at = [], 0
        while at < len(raw):
            size = struct.unpack_from("<I", raw, at)[0]
            found.append(raw[at + 4 : at + 4 + size].decode("latin-1"))
            at += 4 + size
        return found
    values = np.frombuffer(raw, NUMPY[dtype]).tolist()
    return [value if math.isfinite(value) else str(value) for value in values]


@dataclass
class Given:
    """An input of a gRPC request."""

    name: str
    dtype: str
    shape: Sequence[int]
    raw: bytes | None = None
    typed: Mapping[str, Sequence[Any]] | None = None
    """Values by field of `InferTensorContents`."""
    parameters: Mapping[str, Any] = field(default_factory=dict)


def floats(name: str = "x", rows: int = 1, columns: int = 4) -> Given:
    """Return an input of rising numbers."""
    raw = np.arange(rows * columns, dtype=np.float32).tobytes()
    return Given(name, "FP32", [rows, columns], raw)


def texts(name: str, *elements: bytes) -> Given:
    """Return an input of one row of BYTES."""
    return Given(name, "BYTES", [1, len(elements)], bytes_of(*elements))


def set_parameters(target: Any, values: Mapping[str, Any]) -> None:
    """Fill a map of `InferParameter`s."""
    fields = {bool: "bool_param", int: "int64_param", float: "double_param"}
    for name, value in values.items():
        setattr(target[name], fields.get(type(value), "string_param"), value)


def infer_request(
    model: str,
    *inputs: Given,
    version: str = "",
    key: str = "",
    outputs: Iterable[str | tuple[str, Mapping[str, Any]]] = (),
    **parameters: Any,
) -> Any:
    """Return a `ModelInferRequest`; contents are raw where an input has them."""
    request = oip.ModelInferRequest(model_name=model, model_version=version, id=key)
    set_parameters(request.parameters, parameters)
    for given in inputs:
        tensor = request.inputs.add(name=given.name, datatype=given.dtype, shape=given.shape)
        set_parameters(tensor.parameters, given.parameters)
        for name, values in (given.typed or {}).items():
            getattr(tensor.contents, name).extend(values)
        if given.raw is not None:
            request.raw_input_contents.append(given.raw)
    for output in outputs:
        name, own = (output, {}) if isinstance(output, str) else output
        set_parameters(request.outputs.add(name=name).parameters, own)
    return request


def told(response: Any) -> Outcome:
    """Return a `ModelInferResponse` as plain values."""
    raws = list(response.raw_output_contents)
    outputs = []
    for index, output in enumerate(response.outputs):
        raw = raws[index] if raws else b""
        outputs.append(
            [output.name, output.datatype, list(output.shape), values_of(output.datatype, raw)]
        )
    made: dict[str, Any] = {"model": response.model_name, "version": response.model_version}
    if response.id:
        made["id"] = response.id
    if response.parameters:
        made["parameters"] = {
            name: getattr(value, value.WhichOneof("parameter_choice"))
            for name, value in sorted(response.parameters.items())
        }
    return made | {"outputs": outputs}


def plain(message: Any) -> Any:
    """Return a message as JSON has it, with its fields' own names."""
    return MessageToDict(message, preserving_proto_field_name=True)


@contextmanager
def stub(server: Server, compression: grpc.Compression | None = None) -> Any:
    """Give the stub of a connection of its own."""
    with grpc.insecure_channel(server.grpc, NO_LIMITS, compression) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def attempt(ask: Callable[[], Any]) -> Outcome:
    """Return what a gRPC call answers, or the status of its error."""
    try:
        return ask()
    except grpc.RpcError as err:
        return {"error": err.code().name}


def rpc(server: Server, method: str, request: Any, show: Callable[[Any], Any] = plain) -> Outcome:
    """Call a method and return its answer."""
    with stub(server) as made:
        return attempt(lambda: show(getattr(made, method)(request, timeout=LIMIT_S)))


def infer(server: Server, request: Any) -> Outcome:
    """Call `ModelInfer` and return its answer."""
    return rpc(server, "ModelInfer", request, told)


def stream(server: Server, *requests: Any, metadata: Any = ()) -> list[Outcome]:
    """Return the answers of a stream of requests; an error at its end is the last."""
    answers: list[Outcome] = []
    with stub(server) as made:
        call = made.ModelStreamInfer(iter(requests), timeout=LIMIT_S, metadata=metadata)

        def read() -> None:
            for response in call:
                answer = told(response.infer_response)
                failed = bool(response.error_message)
                answers.append({"error": True, "id": answer.get("id")} if failed else answer)

        if (end := attempt(read)) is not None:
            answers.append(end)
    return answers


@dataclass
class Answer:
    """An answer over HTTP."""

    status: int
    headers: Mapping[str, str]
    """Names in small letters."""
    body: bytes


def web(
    server: Server,
    method: str,
    path: str,
    body: bytes | str | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    chunked: bool = False,
) -> Answer:
    """Send a request over HTTP on a connection of its own."""
    connection = http.client.HTTPConnection(server.http, timeout=LIMIT_S)
    data: Any = body.encode() if isinstance(body, str) else body
    try:
        connection.request(
            method, path, iter([data]) if chunked else data, dict(headers or {}),
            encode_chunked=chunked,
        )  # fmt: skip
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, response.read())
    finally:
        connection.close()


def shown(answer: Answer) -> Outcome:
    """Return the status and the body of an answer; of an error only what kind of body it is."""
    if answer.status >= 400:
        return {"status": answer.status, "body": _error_kind(answer.body)}
    if (length := answer.headers.get(HEADER.lower())) is not None:
        head = json.loads(answer.body[: int(length)])
        return {
            "status": answer.status,
            "body": head,
            "behind": _behind(head, answer.body[int(length) :]),
        }
    try:
        return {"status": answer.status, "body": json.loads(answer.body or b"null")}
    except ValueError:
        return {"status": answer.status, "body": answer.body.decode("latin-1")}


def _error_kind(body: bytes) -> str:
    try:
        return "error" if isinstance(json.loads(body)["error"], str) else "other JSON"
    except (ValueError, KeyError, TypeError):
        return "none" if not body else "no JSON"


def _behind(head: Any, rest: bytes) -> dict[str, Any]:
    """Return the tensors behind the JSON of an answer."""
    found = {}
    for output in head["outputs"]:
        if (size := output.get("parameters", {}).get("binary_data_size")) is not None:
            found[output["name"]] = values_of(output["datatype"], rest[:size])
            rest = rest[size:]
    return found | ({"more": len(rest)} if rest else {})


def post(
    server: Server, path: str, body: Any = b"", headers: Mapping[str, str] | None = None
) -> Outcome:
    """Post a body, or a value as JSON, and return the answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return shown(web(server, "POST", path, data, headers))


def get(server: Server, path: str) -> Outcome:
    """Return what a path answers."""
    return shown(web(server, "GET", path))


def infer_path(model: str, version: str = "") -> str:
    """Return the path of a model's inferences."""
    return f"/v2/models/{model}{f'/versions/{version}' if version else ''}/infer"


def json_input(name: str, dtype: str, shape: Sequence[int], data: Any, **more: Any) -> Any:
    """Return an input of a JSON request."""
    return {"name": name, "datatype": dtype, "shape": list(shape), "data": data, **more}


def binary(
    head: Mapping[str, Any], rest: bytes, headers: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a request with tensors behind its JSON."""
    text = json.dumps(head).encode()
    return text + rest, {HEADER: str(len(text)), **(headers or {})}
