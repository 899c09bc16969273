"""What is asked over HTTP."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import tritonclient.http as triton

from tests.e2e.conformance.calls import (
    HEADER,
    Case,
    Outcome,
    binary,
    bytes_of,
    get,
    infer_path,
    json_input,
    post,
    raw_of,
    shown,
    web,
)
from tests.e2e.conformance.grpc_cases import FILLED, REGION, TWINS, without
from tests.e2e.conformance.servers import Server

SPARE = infer_path("spare")
FOUR = [0.5, 1.5, 2.5, 3.5]
INTS = {"datatype": "INT32", "data": [1, 2, 3, 4]}
IN_BINARY = {
    "name": "x",
    "datatype": "FP32",
    "shape": [1, 4],
    "parameters": {"binary_data_size": 16},
}
X = json_input("x", "FP32", [1, 4], FOUR)
DATE = json_input("text", "BYTES", [1], ["27 novembre 2026"])
ROW = raw_of("FP32", FOUR)
KINDS = [
    {"name": "half", "datatype": "FP16", "shape": [1, 2], "parameters": {"binary_data_size": 4}},
    json_input("number", "INT64", [1, 2], [-1, 7]),
    json_input("flag", "BOOL", [1, 2], [True, False]),
    json_input("text", "BYTES", [1, 2], ["hi", ""]),
]  # fmt: skip
HALF = raw_of("FP16", [0.5, 2.0])


def kinds(*outputs: Any, **parameters: Any) -> tuple[bytes, dict[str, str]]:
    """Return a request with four inputs, of which one comes in binary."""
    head: dict[str, Any] = {"inputs": KINDS}
    if outputs:
        head["outputs"] = list(outputs)
    if parameters:
        head["parameters"] = parameters
    return binary(head, HALF)


def y(**parameters: Any) -> dict[str, Any]:
    """Return an output that is asked for."""
    return {"name": "y", "parameters": parameters}


def in_binary(size: Any = 16, rest: bytes = ROW, **more: Any) -> tuple[bytes, dict[str, str]]:
    """Return a request whose input comes in binary."""
    given = {
        "name": "x",
        "datatype": "FP32",
        "shape": [1, 4],
        "parameters": {"binary_data_size": size},
    }
    return binary({"inputs": [given | more]}, rest)


def value(dtype: str, data: Any, shape: tuple[int, ...] = (1, 2)) -> tuple[str, Any]:
    """Return path and body of a request with one input."""
    path = infer_path(f"same_{dtype.lower()}")
    return path, {"inputs": [json_input("x", dtype, shape, data)]}


BODIES: dict[str, Any] = {
    "numbers": {"inputs": [X]},
    "nested numbers": {"inputs": [json_input("x", "FP32", [2, 4], [FOUR, FOUR])]},
    "nested otherwise than the shape": {"inputs": [json_input("x", "FP32", [2, 4], [FOUR * 2])]},
    "nothing": b"",
    "no JSON": b"{nothing",
    "JSON with more behind it": b'{"inputs": []} x',
    "a list": [],
    "null": None,
    "an empty object": {},
    "no inputs": {"inputs": []},
    "inputs that are an object": {"inputs": {}},
    "an input that is a number": {"inputs": [5]},
    "an input without a name": {"inputs": [{"datatype": "FP32", "shape": [1, 4], "data": FOUR}]},
    "an input without a datatype": {"inputs": [{"name": "x", "shape": [1, 4], "data": FOUR}]},
    "an input without a shape": {"inputs": [{"name": "x", "datatype": "FP32", "data": FOUR}]},
    "an input without data": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}]},
    "an input whose data is null": {"inputs": [json_input("x", "FP32", [1, 4], None)]},
    "data that is a number": {"inputs": [json_input("x", "FP32", [1, 4], 5)]},
    "a shape of text": {"inputs": [X | {"shape": ["1", "4"]}]},
    "a shape that is a number": {"inputs": [X | {"shape": 4}]},
    "a shape of fractions": {"inputs": [X | {"shape": [1.0, 4.0]}]},
    "a negative size": {"inputs": [json_input("x", "FP32", [-1, 4], FOUR)]},
    "too few values": {"inputs": [json_input("x", "FP32", [1, 4], FOUR[:3])]},
    "too many values": {"inputs": [json_input("x", "FP32", [1, 4], [*FOUR, 1])]},
    "no batch dimension": {"inputs": [json_input("x", "FP32", [4], FOUR)]},
    "a batch too large": {"inputs": [json_input("x", "FP32", [9, 4], FOUR * 9)]},
    "no rows": {"inputs": [json_input("x", "FP32", [0, 4], [])]},
    "another datatype than the model's": {"inputs": [X | INTS]},
    "an unknown datatype": {"inputs": [json_input("x", "FP99", [1, 4], FOUR)]},
    "an unknown input": {"inputs": [json_input("z", "FP32", [1, 4], FOUR)]},
    "an input twice": {"inputs": [X, X]},
    "an input too many": {"inputs": [X, X | {"name": "more"}]},
    "unknown fields": {"inputs": [X | {"color": "blue"}], "color": "blue"},
    "whole numbers for floats": {"inputs": [json_input("x", "FP32", [1, 4], [1, 2, 3, 4])]},
    "texts for numbers": {"inputs": [json_input("x", "FP32", [1, 4], ["1", "2", "3", "4"])]},
    "null among numbers": {"inputs": [json_input("x", "FP32", [1, 4], [1, None, 3, 4])]},
    "a number beyond FP32": {"inputs": [json_input("x", "FP32", [1, 4], [1e300, 0, 0, 0])]},
    "NaN": {"inputs": [X | {"data": [float("nan"), 1, 2, 3]}]},
    "an id": {"id": "r7 ü", "inputs": [X]},
    "an empty id": {"id": "", "inputs": [X]},
    "an id that is a number": {"id": 7, "inputs": [X]},
    "parameters of each kind": {
        "parameters": {"a": 1, "b": 1.5, "c": True, "d": "x"}, "inputs": [X]
    },
    "a parameter that is a list": {"parameters": {"a": [1]}, "inputs": [X]},
    "a parameter that is null": {"parameters": {"a": None}, "inputs": [X]},
    "parameters that are a list": {"parameters": [], "inputs": [X]},
    "a reserved parameter": {"parameters": {"triton_x": 1}, "inputs": [X]},
    "priority and timeout": {"parameters": {"priority": 1, "timeout": 9_000_000}, "inputs": [X]},
    "priority as text": {"parameters": {"priority": "1"}, "inputs": [X]},
    "timeout as text": {"parameters": {"timeout": "1"}, "inputs": [X]},
    "an output": {"inputs": [X], "outputs": [{"name": "y"}]},
    "no outputs": {"inputs": [X], "outputs": []},
    "an unknown output": {"inputs": [X], "outputs": [{"name": "z"}]},
    "an output without a name": {"inputs": [X], "outputs": [{}]},
    "an output that is text": {"inputs": [X], "outputs": ["y"]},
    "an output twice": {"inputs": [X], "outputs": [{"name": "y"}, {"name": "y"}]},
    "an output in binary": {"inputs": [X], "outputs": [y(binary_data=True)]},
    "an output not in binary": {"inputs": [X], "outputs": [y(binary_data=False)]},
    "binary_data that is text": {"inputs": [X], "outputs": [y(binary_data="yes")]},
    "all outputs in binary": {"inputs": [X], "parameters": {"binary_data_output": True}},
    "all outputs in binary but one": {
        "inputs": [X], "parameters": {"binary_data_output": True},
        "outputs": [y(binary_data=False)],
    },
    "binary_data_output that is text": {"inputs": [X], "parameters": {"binary_data_output": "yes"}},
    "two classes": {"inputs": [X], "outputs": [y(classification=2)]},
    "two classes in binary": {
        "inputs": [X], "outputs": [y(classification=2, binary_data=True)]
    },
    "no classes": {"inputs": [X], "outputs": [y(classification=0)]},
    "classes of text": {"inputs": [X], "outputs": [y(classification="2")]},
    "shared memory that is not registered": {
        "inputs": [IN_BINARY | {"parameters": REGION}]
    },
}  # fmt: skip
"""Bodies for the inferences of one model, by what is special."""

BINARY: dict[str, tuple[bytes, Mapping[str, str]]] = {
    "an input in binary": in_binary(),
    "an output beside it": binary(
        {"inputs": [IN_BINARY], "outputs": [y(binary_data=True)]}, ROW
    ),
    "fewer bytes than its size": in_binary(16, ROW[:12]),
    "a size other than its shape's": in_binary(12, ROW[:12]),
    "more bytes than sizes": in_binary(16, ROW + b"more"),
    "size 0": in_binary(0, b""),
    "a negative size": in_binary(-16),
    "a size of text": in_binary("16"),
    "a size that is a fraction": in_binary(16.0),
    "data beside it": in_binary(data=FOUR),
    "a header that is no number": (in_binary()[0], {HEADER: "many"}),
    "a negative header": (in_binary()[0], {HEADER: "-5"}),
    "a header beyond the body": (in_binary()[0], {HEADER: "5000"}),
    "a header within the JSON": (in_binary()[0], {HEADER: "20"}),
    "no header": (in_binary()[0], {}),
    "a header without binary": (b'{"inputs": []}', {HEADER: "14"}),
}  # fmt: skip
"""Bodies with binary tensors for the same model."""

VALUES: dict[str, tuple[str, Any]] = {
    "BOOL": value("BOOL", [True, False]), "BOOL as numbers": value("BOOL", [1, 0]),
    "UINT8": value("UINT8", [0, 255]), "UINT8 of 256": value("UINT8", [0, 256]),
    "UINT8 of -1": value("UINT8", [0, -1]),
    "UINT64": value("UINT64", [0, 2**64 - 1]), "INT8": value("INT8", [-128, 127]),
    "INT8 of 300": value("INT8", [300, 0]), "INT16": value("INT16", [-(2**15), 1]),
    "INT32": value("INT32", [-(2**31), 1]), "INT32 beyond": value("INT32", [2**40, 1]),
    "INT64": value("INT64", [-(2**63), 2**63 - 1]), "INT64 beyond": value("INT64", [2**64, 1]),
    "INT64 of fractions": value("INT64", [1.5, 2.0]),
    "INT64 of BOOL": value("INT64", [True, False]),
    "UINT16": value("UINT16", [0, 65535]), "UINT32": value("UINT32", [0, 2**32 - 1]),
    "FP16": value("FP16", [1.5, 2]), "FP32": value("FP32", [1.5, 0.1]),
    "FP64": value("FP64", [0.1, 1e-300]), "BF16": value("BF16", [1.5, 2]),
    "BYTES": value("BYTES", ["", "grün\u0000"]), "BYTES of numbers": value("BYTES", [1, 2]),
    "failure inside the model": (
        infer_path("lookup"), {"inputs": [json_input("x", "INT64", [1, 1], [9])]}
    ),
    "ensemble": (
        infer_path("chain"), {"inputs": [X | {"name": "left"}, X | {"name": "right"}]}
    ),
    "pipeline of a model": (
        infer_path("piped"), {"inputs": [X | {"name": "left"}, X | {"name": "right"}]}
    ),
    "missing input": (infer_path("add"), {"inputs": [X | {"name": "left"}]}),
    "one version": (infer_path("versions", "1"), {"inputs": [X]}),
    "newest version": (infer_path("versions"), {"inputs": [X]}),
    "unknown version": (infer_path("versions", "2"), {"inputs": [X]}),
    "version that is no number": (infer_path("versions", "abc"), {"inputs": [X]}),
    "unknown model": (infer_path("nobody"), {"inputs": [X]}),
    "escaped name": (infer_path("sp%61re"), {"inputs": [X]}),
    "model that generates": (infer_path("dates"), {"inputs": [DATE]}),
}  # fmt: skip
"""Paths and bodies."""

NEWER = "max_inflight_requests"
"""A field of newer releases of Triton than this one."""
FP16_OUT = {"name": "half_out", "parameters": {"binary_data": True}}
TEXT_OUT = {"name": "text_out", "parameters": {"binary_data": True}}
SEVERAL = {
    "all outputs in binary": kinds(binary_data_output=True),
    "FP16 as JSON": kinds(),
    "two of four outputs, one in binary": kinds(FP16_OUT, {"name": "number_out"}),
    "outputs in another order": kinds(TEXT_OUT, FP16_OUT),
}

RAW: dict[str, tuple[str, bytes]] = {
    "BYTES": ("same_bytes", b"any bytes, as text"), "no bytes": ("same_bytes", b""),
    "free size": ("same_fp32", raw_of("FP32", [1, 2, 3])), "fixed size": ("spare", ROW),
    "fixed size, wrong": ("spare", ROW + ROW), "part of a number": ("same_fp32", ROW[:7]),
    "model without batches": ("single", ROW[:12]), "two free sizes": ("loose", ROW),
    "two inputs": ("add", ROW), "unknown model": ("nobody", ROW),
}  # fmt: skip
"""Raw binary requests: a model and the body, which is its only input."""

PATHS = (
    "GET /v2", "GET /v2/", "GET /", "GET /v2/health/live", "GET /v2/health/ready",
    "POST /v2/health/live", "GET /v2/health/nothing", "GET /v2/models", "GET /v2/models/spare/",
    "GET /v2/models/spare/nothing", "GET /v2/models/spare/infer", "POST /v2/models/spare",
    "POST /v2/models/spare/ready", "PUT /v2/models/spare/infer", "DELETE /v2/models/spare",
    "GET /v2/models/spare/versions", "GET /v2/models/spare/versions/",
    "GET /v2/models/spare/ready", "GET /v2/models/spare/versions/1/ready",
    "GET /v2/models/spare/versions/2/ready", "GET /v2/models/spare/versions/abc/ready",
    "GET /v2/models/nobody", "GET /v2/models/nobody/ready", "GET /v2/models/nobody/config",
    "GET /v2/models/nobody/stats", "GET /v2/models/versions/versions/2",
    "GET /v2/models/versions/versions/abc", "GET /v2/models/versions/versions/2/config",
    "GET /v2/models/versions/versions/2/stats", "GET /v2/repository/index",
    "GET /v2/repository/models/spare/load", "POST /v2/repository/models/spare/nothing",
    "POST /v2/repository/nothing", "GET /nothing", "GET /v1/nothing",
    "GET /v2/systemsharedmemory/status", "GET /v2/cudasharedmemory/status",
    "POST /v2/systemsharedmemory/unregister",
)  # fmt: skip
"""Of which the status is compared, and what kind of body an error has."""


def cases() -> Iterator[tuple[str, Case]]:
    """Yield all by their names."""
    for name, body in BODIES.items():
        yield f"HTTP infer: {name}", partial(post, path=SPARE, body=body)
    for name, (data, headers) in BINARY.items():
        yield f"HTTP binary: {name}", partial(post, path=SPARE, body=data, headers=headers)
    for name, (path, body) in VALUES.items():
        yield f"HTTP infer: {name}", partial(post, path=path, body=body)
    for name, (data, headers) in SEVERAL.items():
        case = partial(post, path=infer_path("kinds"), body=data, headers=headers)
        yield f"HTTP several kinds: {name}", case
    for name, (model, data) in RAW.items():
        case = partial(post, path=infer_path(model), body=data, headers={HEADER: "0"})
        yield f"HTTP raw binary: {name}", case
    for route in PATHS:
        method, path = route.split()
        yield route, partial(_status, method=method, path=path)
    yield from ((case.__name__.replace("_", " "), case) for case in OTHERS)


def _status(server: Server, method: str, path: str) -> Outcome:
    answer = web(server, method, path)
    told = shown(answer)
    return told if answer.status >= 400 else {"status": answer.status}


def http_metadata_of_the_server_has_fields(server: Server) -> Outcome:
    return sorted(get(server, "/v2")["body"])


def http_metadata_of_a_model(server: Server) -> Outcome:
    return without(get(server, "/v2/models/add"), TWINS)


def http_metadata_of_a_version(server: Server) -> Outcome:
    return without(get(server, "/v2/models/versions/versions/1"), TWINS)


def http_config_of_a_model(server: Server) -> Outcome:
    return without(get(server, "/v2/models/add/config"), TWINS + FILLED)


def http_config_of_an_ensemble(server: Server) -> Outcome:
    return without(get(server, "/v2/models/chain/config"), (*TWINS, *FILLED, NEWER))


def http_ready_body(server: Server) -> Outcome:
    return [
        len(web(server, "GET", path).body)
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/spare/ready")
    ]


def http_media_types(server: Server) -> Outcome:
    packed, headers = in_binary()
    whole = json.dumps({"inputs": [X], "parameters": {"binary_data_output": True}}).encode()
    answers = {
        "json": web(server, "POST", SPARE, packed, headers),
        "binary": web(server, "POST", SPARE, whole),
        "error": web(server, "POST", SPARE, b"{"),
        "metadata": web(server, "GET", "/v2"),
        "index": web(server, "POST", "/v2/repository/index"),
    }
    return {name: answer.headers.get("content-type") for name, answer in answers.items()}


def http_head_of_health(server: Server) -> Outcome:
    return web(server, "HEAD", "/v2/health/live").status


def http_head_of_metadata(server: Server) -> Outcome:
    return web(server, "HEAD", "/v2").status


def http_request_in_gzip(server: Server) -> Outcome:
    body = gzip.compress(json.dumps({"inputs": [X]}).encode())
    return post(server, SPARE, body, {"Content-Encoding": "gzip"})


def http_request_in_deflate(server: Server) -> Outcome:
    body = zlib.compress(json.dumps({"inputs": [X]}).encode())
    return post(server, SPARE, body, {"Content-Encoding": "deflate"})


def http_request_in_gzip_that_is_none(server: Server) -> Outcome:
    return post(server, SPARE, {"inputs": [X]}, {"Content-Encoding": "gzip"})


def http_request_in_another_encoding(server: Server) -> Outcome:
    return post(server, SPARE, {"inputs": [X]}, {"Content-Encoding": "br"})


def http_request_in_the_encoding_identity(server: Server) -> Outcome:
    return post(server, SPARE, {"inputs": [X]}, {"Content-Encoding": "identity"})


def http_answer_as_accepted(server: Server) -> Outcome:
    body = json.dumps({"inputs": [X]})
    accepted = ("gzip", "deflate", "gzip, deflate", "deflate, gzip", "br", "identity", "*", "GZIP")
    found = {}
    for words in accepted:
        answer = web(server, "POST", SPARE, body, {"Accept-Encoding": words})
        found[words] = [answer.status, answer.headers.get("content-encoding")]
    return found


def http_accepted_encodings_with_weights(server: Server) -> Outcome:
    body = json.dumps({"inputs": [X]})
    found = {}
    for words in ("gzip;q=0", "gzip;q=0.5, deflate;q=1"):
        answer = web(server, "POST", SPARE, body, {"Accept-Encoding": words})
        found[words] = [answer.status, answer.headers.get("content-encoding")]
    return found


def http_binary_answer_in_gzip(server: Server) -> Outcome:
    body = json.dumps({"inputs": [X], "parameters": {"binary_data_output": True}})
    answer = web(server, "POST", SPARE, body, {"Accept-Encoding": "gzip"})
    head = int(answer.headers[HEADER.lower()])
    whole = gzip.decompress(answer.body)
    return [json.loads(whole[:head]), whole[head:] == ROW]


def http_body_in_chunks(server: Server) -> Outcome:
    body = json.dumps({"inputs": [X]})
    headers = {"Transfer-Encoding": "chunked"}
    return shown(web(server, "POST", SPARE, body, headers, chunked=True))


def http_body_after_100_continue(server: Server) -> Outcome:
    return shown(
        web(server, "POST", SPARE, json.dumps({"inputs": [X]}), {"Expect": "100-continue"})
    )


def http_body_of_20_megabytes(server: Server) -> Outcome:
    raw = np.arange(5_000_000, dtype=np.float32).tobytes()
    given = {"name": "x", "datatype": "FP32", "shape": [1, 5_000_000],
             "parameters": {"binary_data_size": len(raw)}}  # fmt: skip
    body, headers = binary({"inputs": [given], "parameters": {"binary_data_output": True}}, raw)
    answer = web(server, "POST", infer_path("same_fp32"), body, headers)
    return [answer.status, answer.body.endswith(raw)]


def http_client_reads_arrays(server: Server) -> Outcome:
    arrays = {
        "half": np.array([[0.5, 2.0]], np.float16), "number": np.array([[-1, 7]], np.int64),
        "flag": np.array([[True, False]]), "text": np.array([["grün".encode(), b""]], np.object_),
    }  # fmt: skip
    kinds_ = {"half": "FP16", "number": "INT64", "flag": "BOOL", "text": "BYTES"}
    inputs = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, [1, 2], kinds_[name])
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    client = triton.InferenceServerClient(server.http)
    try:
        result = client.infer(
            "kinds", inputs, request_id="r", request_compression_algorithm="gzip",
            response_compression_algorithm="deflate",
        )  # fmt: skip
    finally:
        client.close()
    found = [result.as_numpy(f"{name}_out") for name in arrays]
    return [[str(array.dtype), str(array.tolist())] for array in found]


def http_bytes_that_are_no_text_as_JSON(server: Server) -> Outcome:
    given = {
        "name": "x",
        "datatype": "BYTES",
        "shape": [1, 1],
        "parameters": {"binary_data_size": 6},
    }
    return post(
        server, infer_path("same_bytes"), *binary({"inputs": [given]}, bytes_of(b"\xff\xfe"))
    )


def http_numbers_that_are_not_finite_as_JSON(server: Server) -> Outcome:
    nan = raw_of("FP32", [float("nan"), float("inf"), 0, 0])
    answer = web(server, "POST", SPARE, *in_binary(16, nan))
    if answer.status >= 400:
        return shown(answer)
    return {"status": answer.status, "data": answer.body.decode().partition('"data":')[2]}


def http_generate_for_a_model_of_text(server: Server) -> Outcome:
    return post(server, "/v2/models/same_bytes/generate", {"x": "hi"})


def http_generate_for_an_unknown_model(server: Server) -> Outcome:
    return post(server, "/v2/models/nobody/generate", {"text_input": "hi"})


def http_generate_of_no_JSON(server: Server) -> Outcome:
    return post(server, "/v2/models/dates/generate", b"{")


def http_generate_of_an_empty_body(server: Server) -> Outcome:
    return post(server, "/v2/models/dates/generate", b"")


def http_generate_of_a_text(server: Server) -> Outcome:
    return post(server, "/v2/models/dates/generate", {"text": "27 novembre 2026"})


def http_generate_stream_of_a_text(server: Server) -> Outcome:
    body = json.dumps({"text": "27 novembre 2026"})
    answer = web(server, "POST", "/v2/models/dates/generate_stream", body)
    if answer.status >= 400:
        return shown(answer)
    lines = [line for line in answer.body.decode().split("\n") if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    return {
        "status": answer.status, "type": answer.headers.get("content-type"),
        "fields": sorted(events[0]), "text": "".join(event["text"] for event in events),
    }  # fmt: skip


def http_stream_of_an_unknown_model(server: Server) -> Outcome:
    return post(server, "/v2/models/nobody/generate_stream", {"text_input": "hi"})


OTHERS = (
    http_metadata_of_the_server_has_fields, http_metadata_of_a_model, http_metadata_of_a_version,
    http_config_of_a_model, http_config_of_an_ensemble, http_ready_body, http_media_types,
    http_head_of_health, http_head_of_metadata, http_request_in_gzip, http_request_in_deflate,
    http_request_in_gzip_that_is_none, http_request_in_another_encoding,
    http_request_in_the_encoding_identity, http_answer_as_accepted,
    http_accepted_encodings_with_weights, http_binary_answer_in_gzip, http_body_in_chunks,
    http_body_after_100_continue, http_body_of_20_megabytes, http_client_reads_arrays,
    http_bytes_that_are_no_text_as_JSON, http_numbers_that_are_not_finite_as_JSON,
    http_generate_for_a_model_of_text, http_generate_for_an_unknown_model,
    http_generate_of_no_JSON, http_generate_of_an_empty_body, http_generate_of_a_text,
    http_generate_stream_of_a_text, http_stream_of_an_unknown_model,
)  # fmt: skip
