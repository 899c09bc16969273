"""Tensors of the protocol become ours and back: raw and typed, one and several, good and bad."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc import service_pb2 as oip

from mesh.errors import InvalidInput, NotFound
from mesh.oip.regions import Regions
from mesh.oip.tensors import TYPED, fill_outputs, inputs_of, items_of, joined
from mesh.tensor import NUMPY_DTYPES, TensorSpec, bytes_tensor, from_proto, pack, to_proto
from protos.mesh.v1.tensor_pb2 import Tensors

TEXT = TensorSpec("text", "BYTES", (1,))
NONE = Regions()


def raw_request(**arrays: NDArray[Any]) -> Any:
    """Return a request as tritonclient makes it."""
    request = oip.ModelInferRequest()
    for name, array in arrays.items():
        dtype = to_proto({name: array}).tensors[0].dtype
        given = InferInput(name, list(array.shape), dtype)
        given.set_data_from_numpy(array)
        request.inputs.append(given._get_tensor())
        request.raw_input_contents.append(given._get_content())
    return request


def typed_request(dtype: str, shape: Sequence[int], **contents: list[Any]) -> Any:
    request = oip.ModelInferRequest()
    given = request.inputs.add(name="x", datatype=dtype, shape=shape)
    for field, values in contents.items():
        getattr(given.contents, field).extend(values)
    return request


def arrays_of(request: Any) -> dict[str, Any]:
    return from_proto(Tensors(tensors=inputs_of(request, NONE)))


@pytest.mark.parametrize("dtype", sorted(NUMPY_DTYPES.keys() - {"BYTES"}))
def test_raw_contents_are_the_elements(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(NUMPY_DTYPES[dtype])
    found = arrays_of(raw_request(x=array, y=array + array))
    np.testing.assert_array_equal(found["x"], array)
    assert found["y"].dtype == array.dtype


def test_raw_texts_are_the_elements() -> None:
    array = np.array([[b"a", b""], ["ü".encode(), b"\0\0"]], object)
    assert arrays_of(raw_request(x=array))["x"].tolist() == array.tolist()


@pytest.mark.parametrize(("dtype", "field"), TYPED.items())
def test_typed_contents_are_the_elements(dtype: str, field: str) -> None:
    values: list[Any] = [b"a", b"", b"c"] if dtype == "BYTES" else [0, 1, 1]
    found = arrays_of(typed_request(dtype, [3], **{field: values}))["x"]
    assert found.tolist() == values
    assert found.dtype == NUMPY_DTYPES[dtype]


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        (typed_request("FP16", [1], fp32_contents=[1.0]), "raw_input_contents only"),
        (typed_request("BF16", [1], fp32_contents=[1.0]), "raw_input_contents only"),
        (typed_request("FP8", [1]), "datatype 'FP8', wanted one of"),
        (typed_request("FP32", [2], fp32_contents=[1.0]), r"1 elements, its shape is \[2\]"),
        (typed_request("FP32", [1], int_contents=[1]), r"\['int_contents'\] came for FP32"),
        (typed_request("INT8", [1], int_contents=[300]), "no INT8"),
        (typed_request("UINT8", [-1], uint_contents=[3]), "sizes from 0"),
        (typed_request("UINT8", [1] * 65, uint_contents=[3]), "has 65 dimensions"),
        (typed_request("UINT64", [1], uint64_contents=[2**64 - 1, 3]), "2 elements"),
        (typed_request("UINT32", [1], uint_contents=[]), "0 elements"),
    ],
)
def test_bad_contents_are_named(request_: Any, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        inputs_of(request_, NONE)


@pytest.mark.parametrize(
    ("dtype", "field", "values"),
    [
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("INT8", "int_contents", [-128, 127]),
    ],
)
def test_whole_numbers_are_taken_to_their_limits(dtype: str, field: str, values: list[int]) -> None:
    found = arrays_of(typed_request(dtype, [2], **{field: values}))
    assert [array.tolist() for array in found.values()] == [values]


def test_contents_that_do_not_fit_the_inputs_are_named() -> None:
    request = raw_request(x=np.zeros((2, 2), np.float32))
    request.raw_input_contents.append(b"")
    with pytest.raises(InvalidInput, match="2 raw_input_contents came for 1 inputs"):
        inputs_of(request, NONE)
    del request.raw_input_contents[1]
    request.raw_input_contents[0] = b"123"
    with pytest.raises(InvalidInput, match=r"has 3 bytes, FP32\[2, 2\] has 16"):
        inputs_of(request, NONE)
    request = raw_request(x=np.zeros(1, np.float32))
    request.inputs[0].contents.fp32_contents.append(1)
    with pytest.raises(InvalidInput, match="raw and typed"):
        inputs_of(request, NONE)
    request = raw_request(x=np.zeros(1, np.float32))
    request.inputs.add().CopyFrom(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])
    with pytest.raises(InvalidInput, match="each name once"):
        inputs_of(request, NONE)
    request = raw_request(x=np.zeros(1, np.float32))
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(InvalidInput, match="1 raw_input_contents came for 0 inputs"):
        inputs_of(request, NONE)
    del request.raw_input_contents[:]
    with pytest.raises(NotFound, match="names the region 'r', which is not registered"):
        inputs_of(request, NONE)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3)])
def test_each_text_is_an_item(shape: tuple[int, ...]) -> None:
    array = bytes_tensor(b"one", b"", b"three").reshape(shape)
    items = items_of(inputs_of(raw_request(text=array), NONE), TEXT)
    found = [from_proto(Tensors.FromString(item))["text"] for item in items]
    assert [text.tolist() for text in found] == [[b"one"], [b""], [b"three"]]


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        (raw_request(image=bytes_tensor(b"x")), r"\['image: BYTES'\] came, wanted text: BYTES"),
        (raw_request(text=np.zeros(1, np.float32)), "wanted text"),
        (raw_request(text=bytes_tensor()), "wanted at least one"),
        (raw_request(text=bytes_tensor(*[b"x"] * 513)), "513 elements.*at most 512"),
        (raw_request(text=bytes_tensor(b"x"), more=bytes_tensor(b"y")), "wanted text"),
    ],
)
def test_other_tensors_are_no_items(request_: Any, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        items_of(inputs_of(request_, NONE), TEXT)


def test_elements_that_are_cut_off_or_too_many_are_named() -> None:
    request = raw_request(text=bytes_tensor(b"abc", b"de"))
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]
    with pytest.raises(InvalidInput, match="ends within element 1"):
        items_of(inputs_of(request, NONE), TEXT)
    request = raw_request(text=bytes_tensor(b"abc", b"de"))
    request.inputs[0].shape[:] = [3]
    with pytest.raises(InvalidInput, match="has 2 elements"):
        items_of(inputs_of(request, NONE), TEXT)


def test_answers_of_several_items_are_one_batch() -> None:
    payloads = [
        pack({"y": np.full((1, 2), n, np.float32), "label": bytes_tensor(b"%d" % n)})
        for n in range(3)
    ]
    found = from_proto(Tensors(tensors=joined(payloads)))
    assert found["y"].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert found["label"].tolist() == [b"0", b"1", b"2"]
    with pytest.raises(InvalidInput, match="different shapes"):
        joined([pack({"y": np.zeros((1, n))}) for n in (1, 2)])


def answered(outputs: list[InferRequestedOutput], **arrays: NDArray[Any]) -> Any:
    request = oip.ModelInferRequest(outputs=[output._get_tensor() for output in outputs])
    response = oip.ModelInferResponse()
    fill_outputs(response, request, to_proto(arrays).tensors, NONE)
    return response


def test_outputs_are_those_that_are_asked_for() -> None:
    arrays: dict[str, NDArray[Any]] = {"a": np.zeros(2), "b": np.ones(3, np.float32)}
    assert [output.name for output in answered([], **arrays).outputs] == ["a", "b"]
    one = answered([InferRequestedOutput("b")], **arrays)
    assert [(o.name, o.datatype, list(o.shape)) for o in one.outputs] == [("b", "FP32", [3])]
    assert np.frombuffer(one.raw_output_contents[0], np.float32).tolist() == [1, 1, 1]
    with pytest.raises(InvalidInput, match=r"\['c'\] are asked for, there are \['a', 'b'\]"):
        answered([InferRequestedOutput("c")], **arrays)


def test_classes_are_told_as_triton_does() -> None:
    logits = np.array([[0.5, 2.0, 1.0], [3.0, 0.0, 3.0]], np.float32)
    response = answered([InferRequestedOutput("y", class_count=2)], y=logits)
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [2, 2])
    found = from_proto(
        Tensors(
            tensors=[{
                "name": "y", "dtype": "BYTES", "shape": [2, 2],
                "raw": response.raw_output_contents[0],
            }]
        )
    )  # fmt: skip
    assert found["y"].tolist() == [
        [b"2.000000:1", b"1.000000:2"], [b"3.000000:0", b"3.000000:2"],
    ]  # fmt: skip
    with pytest.raises(InvalidInput, match="no classes"):
        answered([InferRequestedOutput("y", class_count=2)], y=bytes_tensor(b"x"))
