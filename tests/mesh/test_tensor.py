"""Tensors are the same on the other side, and bytes that are no tensors are refused by name."""

import time
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mesh.errors import InvalidInput
from mesh.tensor import (
    NUMPY_DTYPES,
    Array,
    TensorSpec,
    bytes_tensor,
    check_tensors,
    dtype_name,
    from_proto,
    pack,
    pack_rows,
    to_proto,
    unpack,
)
from protos.mesh.v1 import tensor_pb2

NUMBERS = sorted(NUMPY_DTYPES.keys() - {"BYTES"})
SHAPES = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)


@st.composite
def number_arrays(draw: st.DrawFn, name: str) -> Array:
    shape = draw(SHAPES)
    size = int(np.prod(shape)) * NUMPY_DTYPES[name].itemsize
    pattern = draw(st.binary(min_size=1, max_size=16))
    return np.frombuffer((pattern * size)[:size], NUMPY_DTYPES[name]).reshape(shape)


@st.composite
def bytes_arrays(draw: st.DrawFn) -> Array:
    shape = draw(SHAPES)
    count = int(np.prod(shape))
    some = draw(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
    return bytes_tensor(*(some * count)[:count]).reshape(shape)


def proto(
    dtype: str, shape: list[int], raw: bytes, *more: tensor_pb2.Tensor, name: str = "x"
) -> tensor_pb2.Tensors:
    first = tensor_pb2.Tensor(name=name, dtype=dtype, shape=shape, raw=raw)
    return tensor_pb2.Tensors(tensors=[first, *more])


@pytest.mark.parametrize("name", NUMBERS)
@settings(max_examples=30)
@given(data=st.data())
def test_numbers_of_any_shape_come_back_bit_by_bit(name: str, data: st.DataObject) -> None:
    array = data.draw(number_arrays(name))
    back = unpack(pack({"x": array}))["x"]
    assert (back.dtype, back.shape, dtype_name(back)) == (array.dtype, array.shape, name)
    assert back.tobytes() == array.tobytes()


@given(bytes_arrays())
def test_bytes_of_any_shape_come_back(array: Array) -> None:
    back = unpack(pack({"x": array}))["x"]
    assert (back.dtype, back.shape) == (np.dtype(object), array.shape)
    assert back.tolist() == array.tolist()


@given(st.dictionaries(st.text(max_size=8), st.sampled_from(NUMBERS)))
def test_names_come_back_in_their_order(dtypes: dict[str, str]) -> None:
    sent = {name: np.zeros(2, NUMPY_DTYPES[dtype]) for name, dtype in dtypes.items()}
    back = from_proto(to_proto(sent))
    assert [(name, dtype_name(array)) for name, array in back.items()] == list(dtypes.items())


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.arange(6, dtype=">i4").reshape(2, 3), id="big_endian"),
        pytest.param(np.arange(12).reshape(3, 4).T, id="transposed"),
        pytest.param(np.arange(12)[::-3], id="strided"),
    ],
)
def test_values_count_not_the_layout_in_memory(array: Array) -> None:
    assert unpack(pack({"x": array}))["x"].tolist() == array.tolist()


def test_bytes_on_the_wire_are_those_of_the_open_inference_protocol() -> None:
    sent = to_proto({"n": np.array([1, 258], np.int16), "b": bytes_tensor(b"ab", b"")})
    assert [(t.name, t.dtype, list(t.shape), t.raw) for t in sent.tensors] == [
        ("n", "INT16", [2], b"\x01\x00\x02\x01"),
        ("b", "BYTES", [2], b"\x02\x00\x00\x00ab\x00\x00\x00\x00"),
    ]


def test_what_comes_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        unpack(pack({"x": np.zeros(3)}))["x"][0] = 1


@pytest.mark.parametrize(
    ("message", "match"),
    [
        pytest.param(proto("FP33", [1], b"\0" * 4), "dtype 'FP33', wanted one of", id="dtype"),
        pytest.param(proto("", [1], b"\0" * 4), "dtype ''", id="no_dtype"),
        pytest.param(proto("FP32", [2], b"\0" * 7), "7 bytes came, wanted 8", id="too_few"),
        pytest.param(proto("FP32", [2], b"\0" * 9), "9 bytes came, wanted 8", id="too_many"),
        pytest.param(proto("FP32", [], b""), "0 bytes came, wanted 4", id="scalar_empty"),
        pytest.param(proto("FP32", [0], b"\0"), "1 bytes came, wanted 0", id="not_empty"),
        pytest.param(proto("FP32", [-1], b""), r"'x' has 1 dimensions \[-1\]", id="negative"),
        pytest.param(proto("FP32", [-1, -1], b"\0" * 4), "below 0", id="two_negative"),
        pytest.param(proto("FP32", [2**62, 2**62], b""), "wanted", id="larger_than_memory"),
        pytest.param(proto("FP32", [0, 2**62, 2**62], b""), "'x'", id="empty_but_too_large"),
        pytest.param(proto("BYTES", [0, 2**62, 2**62], b""), "'x'", id="bytes_too_large"),
        pytest.param(proto("UINT8", [1] * 65, b"\0"), "at most 64", id="more_axes_than_numpy_has"),
        pytest.param(proto("BYTES", [1], b"\2\0\0\0a"), "do not hold 1 elements", id="cut_bytes"),
        pytest.param(proto("BYTES", [1], b"\2\0\0"), "do not hold 1 elements", id="cut_length"),
        pytest.param(proto("BYTES", [1], b""), "do not hold 1 elements", id="no_element"),
        pytest.param(proto("BYTES", [0], b"\0" * 4), "do not hold 0 elements", id="one_more"),
        pytest.param(proto("BYTES", [1], b"\xff" * 8), "do not hold 1 elements", id="length_4_gb"),
        pytest.param(proto("BYTES", [2**40], b"\0" * 8), "do not hold", id="count_too_large"),
        pytest.param(
            proto("BOOL", [1], b"\0", tensor_pb2.Tensor(name="x")), "'x' came twice", id="twice"
        ),
    ],
)
def test_message_that_is_no_tensor_is_refused(message: tensor_pb2.Tensors, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        from_proto(message)


def test_a_million_axes_are_refused_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(InvalidInput, match="1000000 dimensions") as caught:
        from_proto(proto("FP32", [2**62] * 1_000_000, b""))
    assert time.monotonic() - started < 5
    assert len(str(caught.value)) < 10_000


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(InvalidInput, match="5 bytes came that are no serialized"):
        unpack(b"\xff" * 5)


@given(st.binary(max_size=60))
def test_garbage_is_refused_or_read_but_never_an_unexpected_error(garbage: bytes) -> None:
    with suppress(InvalidInput):
        unpack(garbage)


@given(
    st.sampled_from([*NUMPY_DTYPES, "X"]),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=4),
    st.binary(max_size=20),
)
def test_any_dtype_shape_and_bytes_are_refused_or_fit(
    dtype: str, shape: list[int], raw: bytes
) -> None:
    try:
        array = from_proto(proto(dtype, shape, raw))["x"]
    except InvalidInput:
        return
    assert list(array.shape) == shape
    assert array.dtype == NUMPY_DTYPES[dtype]


@pytest.mark.parametrize("dtype", ["<U3", "S3", "<c8", "<M8[s]", "<f4,<f4"])
def test_dtype_that_the_protocol_does_not_have_is_refused_by_name(dtype: str) -> None:
    with pytest.raises(InvalidInput, match=r"dtype .* came, wanted one of"):
        dtype_name(np.zeros(1, dtype))


@pytest.mark.parametrize(
    ("given_", "wanted", "fits"),
    [
        pytest.param(("FP32", (-1, 3)), ("FP32", (-1, 3)), True, id="same"),
        pytest.param(("FP32", (1, 3)), ("FP32", (-1, 3)), True, id="any_size_is_wanted"),
        pytest.param(("FP32", (-1, 3)), ("FP32", (8, 3)), True, id="any_size_may_come"),
        pytest.param(("FP32", (1, 3)), ("FP32", (1, 4)), False, id="size"),
        pytest.param(("FP32", (3,)), ("FP32", (1, 3)), False, id="axes"),
        pytest.param(("FP16", (3,)), ("FP32", (3,)), False, id="dtype"),
    ],
)
def test_fits(
    given_: tuple[str, tuple[int, ...]], wanted: tuple[str, tuple[int, ...]], fits: bool
) -> None:
    assert TensorSpec("a", *given_).fits(TensorSpec("b", *wanted)) is fits


@pytest.mark.parametrize(
    ("array", "match"),
    [
        pytest.param(np.zeros((1, 3), np.float16), "FP16[1,3], wanted FP32[-1,3]", id="dtype"),
        pytest.param(np.zeros((1, 4), np.float32), "FP32[1,4], wanted FP32[-1,3]", id="shape"),
        pytest.param(np.array(1, np.float32), "FP32[], wanted FP32[-1,3]", id="scalar"),
    ],
)
def test_check_names_what_came_and_what_was_wanted(array: Array, match: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        TensorSpec("pixels", "FP32", (-1, 3)).check(array)
    assert f"tensor 'pixels' is {match}" in str(caught.value)


def test_check_takes_what_fits() -> None:
    TensorSpec("pixels", "FP32", (-1, 3)).check(np.zeros((7, 3), ">f4"))


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"], [], ["a", "c"]], ids=str)
def test_check_tensors_refuses_missing_and_unknown_names(names: list[str]) -> None:
    specs = [TensorSpec("a", "FP32", (1,)), TensorSpec("b", "FP32", (1,))]
    check_tensors({name: np.zeros(1, np.float32) for name in "ab"}, specs)
    with pytest.raises(InvalidInput, match=r"wanted \['a: FP32\[1\]', 'b: FP32\[1\]'\]"):
        check_tensors({name: np.zeros(1, np.float32) for name in names}, specs)


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        pytest.param("FP32", (-1, 3, 4), 48, id="batch_counts_once"),
        pytest.param("UINT8", (1,), 1, id="one"),
        pytest.param("FP32", (-1, 3, -1), 0, id="not_fixed"),
        pytest.param("BYTES", (-1, 3), 0, id="bytes"),
        pytest.param("FP32", (), 4, id="scalar"),
    ],
)
def test_row_bytes(dtype: str, shape: tuple[int, ...], size: int) -> None:
    assert TensorSpec("x", dtype, shape).row_bytes() == size


def test_spec_comes_back_from_the_wire() -> None:
    spec = TensorSpec("pixels", "FP32", (-1, 3, 224, 224))
    assert TensorSpec.from_proto(spec.to_proto()) == spec
    assert str(spec) == "pixels: FP32[-1,3,224,224]"


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=6),
    st.sampled_from(["<f2", "<i8", "?", "O"]),
    st.integers(0, 3),
)
def test_rows_packed_in_pieces_are_what_each_piece_packs_to(
    counts: list[int], dtype: str, width: int
) -> None:
    rows = sum(counts)
    first = np.arange(rows * width).reshape(rows, width)
    array = first.astype(dtype) if dtype != "O" else np.full((rows, width), b"ab", object)
    tensors = {"a": array, "b": np.arange(rows, dtype=np.int32)}
    ends = np.cumsum(counts)
    wanted = [
        pack({name: value[end - count : end] for name, value in tensors.items()})
        for count, end in zip(counts, ends, strict=True)
    ]
    assert pack_rows(tensors, counts) == wanted
