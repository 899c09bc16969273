"""Requests of `/infer` to messages, and answers back."""

import json
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as oip

from gateway.rest.tensors import Wishes, answer_of, raw_request, request_of
from mesh.errors import InvalidInput
from mesh.tensor import NUMPY_DTYPES, TensorSpec

JSON_ONLY = Wishes({}, others=False)


def body(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def one(datatype: str, data: Any, shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": "x", "datatype": datatype, "shape": shape or [len(data)], "data": data}


@pytest.mark.parametrize(
    ("datatype", "data", "raw"),
    [
        ("INT64", [1, -(2**63)], np.array([1, -(2**63)], np.int64).tobytes()),
        ("UINT64", [2**64 - 1], np.array([2**64 - 1], np.uint64).tobytes()),
        ("UINT8", [0, 255], b"\x00\xff"),
        ("FP32", [1, 0.5], np.array([1, 0.5], np.float32).tobytes()),
        ("FP64", [1e300], np.array([1e300]).tobytes()),
        ("BOOL", [True, False], b"\x01\x00"),
        ("BYTES", ["", "größer"], b"\0\0\0\0\x08\0\0\0" + "größer".encode()),
    ],
)
def test_data_is_that_of_its_datatype(datatype: str, data: list[Any], raw: bytes) -> None:
    request, _ = request_of(body(one(datatype, data)), None)
    assert list(request.raw_input_contents) == [raw]
    assert list(request.inputs[0].shape) == [len(data)]


def test_nested_and_flat_data_are_the_same() -> None:
    nested = body(one("INT32", [[[1, 2], [3, 4]]], [1, 2, 2]))
    flat = body(one("INT32", [1, 2, 3, 4], [1, 2, 2]))
    assert request_of(nested, None) == request_of(flat, None)


def test_tensors_may_stand_behind_the_json_in_their_order() -> None:
    head = body(
        {"name": "a", "datatype": "FP16", "shape": [1], "parameters": {"binary_data_size": 2}},
        {**one("INT8", [7]), "name": "b"},
        {"name": "c", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}},
    )
    request, _ = request_of(head + b"\x00\x3c\x01\x00\x00\x00z", str(len(head)))
    assert list(request.raw_input_contents) == [b"\x00\x3c", b"\x07", b"\x01\x00\x00\x00z"]
    assert "binary_data_size" not in request.inputs[0].parameters


def test_parameters_keep_their_kinds() -> None:
    parameters = {"a": True, "b": 7, "c": 0.5, "d": "x"}
    request, _ = request_of(
        body(one("INT8", [1]), parameters=parameters, id="r7",
             outputs=[{"name": "y", "parameters": {"classification": 3}}]),
        None,
    )  # fmt: skip
    kinds = {
        name: value.WhichOneof("parameter_choice") for name, value in request.parameters.items()
    }
    assert kinds == {
        "a": "bool_param", "b": "int64_param", "c": "double_param", "d": "string_param",
    }  # fmt: skip
    assert request.id == "r7"
    assert request.outputs[0].parameters["classification"].int64_param == 3


def test_outputs_are_wanted_as_the_request_says() -> None:
    outputs = [{"name": "y", "parameters": {"binary_data": False}}, {"name": "z"}]
    request, wishes = request_of(
        body(one("INT8", [1]), outputs=outputs, parameters={"binary_data_output": True}), None
    )
    assert (wishes.is_binary("y"), wishes.is_binary("z")) == (False, True)
    assert not request.parameters


BAD: dict[str, tuple[bytes, str | None, str]] = {
    "no JSON": (b"{", None, "no inference: JSON: Invalid JSON"),
    "no inputs": (b"{}", None, "inputs: Field required"),
    "no shape": (body({"name": "x", "datatype": "INT8"}), None, "inputs.0.shape"),
    "no data": (
        body({"name": "x", "datatype": "INT8", "shape": [1]}), None, "neither data nor binary",
    ),
    "datatype": (body(one("INT7", [1])), None, "datatype 'INT7'; as JSON come"),
    "half": (body(one("FP16", [1])), None, "FP16 and BF16 in binary"),
    "count": (body(one("INT8", [1, 2], [3])), None, "2 values, its shape is"),
    "text": (body(one("INT8", ["1"])), None, "value '1', wanted INT8"),
    "number": (body(one("BYTES", [1])), None, "value 1, wanted texts"),
    "fraction": (body(one("INT8", [1.5])), None, "value 1.5, wanted INT8"),
    "bool": (body(one("INT8", [True])), None, "value True, wanted INT8"),
    "range": (body(one("INT8", [128])), None, "no INT8"),
    "header": (body(one("INT8", [1])), "x", "Content-Length is 'x'"),
    "header beyond": (body(one("INT8", [1])), "9999", "at most the"),
    "behind": (body(one("INT8", [1])) + b"zz", str(len(body(one("INT8", [1])))), "2 bytes came"),
    "size": (
        body({"name": "x", "datatype": "INT8", "shape": [1],
              "parameters": {"binary_data_size": 7}}),
        None, "binary_data_size 7, wanted no more than the 0 bytes",
    ),
    "nested parameter": (body(one("INT8", [1]), parameters={"a": {}}), None, "parameters.a"),
    "parameter": (body(one("INT8", [1]), parameters={"a": 2**70}), None, "parameter 'a' is"),
    "surrogate": (
        b'{"inputs":[{"name":"x","datatype":"BYTES","shape":[1],"data":["\\ud800"]}]}', None,
        "no inference|wanted texts",
    ),
    "nested lists": (b'{"inputs":[{"name":"x","datatype":"INT8","shape":[1],"data":'
                     + b"[" * 5000 + b"]" * 5000 + b"}]}", None, "no inference|0 values"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "header", "message"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_is_told(given: bytes, header: str | None, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        request_of(given, header)


@pytest.mark.parametrize(
    ("shape", "batched", "size", "made"),
    [
        ((-1, 4), True, 16, [1, 4]), ((-1, -1), True, 12, [1, 3]), ((4,), False, 16, [4]),
        ((-1, 2), False, 16, [2, 2]), ((-1,), False, 0, [0]), ((), False, 4, []),
    ],
)  # fmt: skip
def test_body_may_be_the_only_input(
    shape: tuple[int, ...], batched: bool, size: int, made: list[int]
) -> None:
    request = raw_request(TensorSpec("x", "FP32", shape), batched, bytes(size))
    assert list(request.inputs[0].shape) == made
    assert request.raw_input_contents[0] == bytes(size)


@pytest.mark.parametrize(
    ("shape", "batched", "size"),
    [((-1, 4), True, 15), ((-1, 4), True, 32), ((-1, -1, -1), True, 16), ((-1, 3), False, 16)],
)
def test_body_that_is_no_row_is_told(shape: tuple[int, ...], batched: bool, size: int) -> None:
    with pytest.raises(InvalidInput, match=f"{size} bytes came for the input x: FP32"):
        raw_request(TensorSpec("x", "FP32", shape), batched, bytes(size))


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_body_may_be_one_text_or_file(shape: tuple[int, ...]) -> None:
    request = raw_request(TensorSpec("image", "BYTES", shape), True, b"file")
    assert (list(request.inputs[0].shape), request.raw_input_contents[0]) == (
        [1] * len(shape), b"\x04\x00\x00\x00file",
    )  # fmt: skip


def response(datatype: str, raw: bytes, *shape: int) -> Any:
    made = oip.ModelInferResponse(model_name="m", model_version="3", id="r7")
    made.outputs.add(name="y", datatype=datatype, shape=shape)
    made.raw_output_contents.append(raw)
    return made


def test_answer_has_values_or_bytes() -> None:
    made = response("INT16", b"\x01\x00\xff\xff", 1, 2)
    made.parameters["final"].bool_param = True
    text, head = answer_of(made, JSON_ONLY)
    assert head is None
    assert json.loads(text) == {
        "model_name": "m", "model_version": "3", "id": "r7", "parameters": {"final": True},
        "outputs": [{"name": "y", "datatype": "INT16", "shape": [1, 2], "data": [1, -1]}],
    }  # fmt: skip
    text, head = answer_of(made, Wishes({"y": True}, others=False))
    assert head is not None
    assert json.loads(text[:head])["outputs"][0]["parameters"] == {"binary_data_size": 4}
    assert text[head:] == b"\x01\x00\xff\xff"


@pytest.mark.parametrize("datatype", sorted(NUMPY_DTYPES.keys() - {"FP16", "BF16"}))
def test_each_datatype_comes_back_as_it_went(datatype: str) -> None:
    data = {"BOOL": [True, False], "BYTES": ["a", ""]}.get(datatype, [1, 0])
    request, _ = request_of(body(one(datatype, data)), None)
    text, _ = answer_of(response(datatype, request.raw_input_contents[0], 2), JSON_ONLY)
    assert json.loads(text)["outputs"][0]["data"] == data


@pytest.mark.parametrize(
    ("datatype", "raw", "message"),
    [
        ("FP16", b"\0\0", "FP16, which JSON has not"),
        ("FP32", np.array([np.nan], np.float32).tobytes(), "not finite"),
        ("BYTES", b"\x01\0\0\0\xff", "no text"),
    ],
)
def test_what_json_has_not_is_told_with_the_way_out(
    datatype: str, raw: bytes, message: str
) -> None:
    with pytest.raises(InvalidInput, match=f"{message}.*binary_data: true"):
        answer_of(response(datatype, raw, 1), JSON_ONLY)
    answer_of(response(datatype, raw, 1), Wishes({}, others=True))
