"""Tensors between numpy and the wire: names, dtypes, shapes, bytes."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from mesh.errors import InvalidInput
from protos.mesh.v1 import tensor_pb2

Array = NDArray[np.generic]
Tensors = dict[str, Array]
"""Tensors by name; BYTES tensors are object arrays of `bytes`."""

Place = Callable[[memoryview], tensor_pb2.SlotRange | None]
"""Copies elements into shared memory and returns where; None: they do not fit."""
Read = Callable[[tensor_pb2.SlotRange], memoryview]
"""Returns elements in shared memory; raises `InvalidInput`."""

NUMPY_DTYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype("?"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"), "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
    "BF16": np.dtype(ml_dtypes.bfloat16), "BYTES": np.dtype(object),
}  # fmt: skip
"""Names of the Open Inference Protocol."""

FLOATS = frozenset(NUMPY_DTYPES[name] for name in ("FP16", "BF16", "FP32", "FP64"))
"""Numpy's `kind` does not tell: bfloat16 is of none that it knows."""
_NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
_LENGTH = np.dtype("<u4")
_TENSOR_TAG = b"\x0a"
_RAW_TAG = b"\x22"
"""Of `Tensors.tensors` and `Tensor.raw`: field number * 8 + 2, as protobuf encodes it."""
MAX_DIMS = 64
"""As many as numpy has; the product of a million of them would take hours."""


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor must look like."""

    name: str
    """Name of the tensor."""
    dtype: str
    """One of `NUMPY_DTYPES`."""
    shape: tuple[int, ...]
    """Batch dimension first; -1 is any size."""

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}{_dims(self.shape)}"

    def fits(self, other: "TensorSpec") -> bool:
        """Tell whether a tensor of this spec can be given where `other` is wanted."""
        return (
            self.dtype == other.dtype
            and len(self.shape) == len(other.shape)
            and all(a == b or -1 in (a, b) for a, b in zip(self.shape, other.shape, strict=True))
        )

    def check(self, array: Array) -> None:
        """Compare a tensor with this spec.

        Raises:
            InvalidInput: dtype or shape differs; the text names both.
        """
        dtype = dtype_name(array)
        if not TensorSpec(self.name, dtype, array.shape).fits(self):
            raise InvalidInput(
                f"tensor {self.name!r} is {dtype}{_dims(array.shape)}, "
                f"wanted {self.dtype}{_dims(self.shape)}"
            )

    def row_bytes(self) -> int:
        """Return the bytes of one batch row; 0 where a size is not fixed."""
        if self.dtype == "BYTES" or -1 in self.shape[1:]:
            return 0
        return math.prod(self.shape[1:]) * NUMPY_DTYPES[self.dtype].itemsize

    def to_proto(self) -> tensor_pb2.TensorSpec:
        """Return the wire form."""
        return tensor_pb2.TensorSpec(name=self.name, dtype=self.dtype, shape=self.shape)

    @classmethod
    def from_proto(cls, spec: tensor_pb2.TensorSpec) -> "TensorSpec":
        """Return the spec of a wire form."""
        return cls(spec.name, spec.dtype, tuple(spec.shape))


def check_tensors(tensors: Mapping[str, Array], specs: Iterable[TensorSpec]) -> None:
    """Compare named tensors with the specs: none missing, none unknown, each of its spec.

    Raises:
        InvalidInput: names what came and what was wanted.
    """
    wanted = {spec.name: spec for spec in specs}
    if tensors.keys() != wanted.keys():
        raise InvalidInput(
            f"tensors {sorted(tensors)} came, wanted {[str(spec) for spec in wanted.values()]}"
        )
    for name, spec in wanted.items():
        spec.check(tensors[name])


def dtype_name(array: Array) -> str:
    """Return the Open Inference Protocol name of an array's dtype.

    Raises:
        InvalidInput: the protocol has no such dtype.
    """
    try:
        return _NAMES[array.dtype.newbyteorder("<")]
    except KeyError:
        raise InvalidInput(
            f"dtype {array.dtype} came, wanted one of {sorted(NUMPY_DTYPES)}"
        ) from None


def bytes_tensor(*elements: bytes) -> Array:
    """Return a BYTES tensor of shape [len(elements)]."""
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


def to_proto(tensors: Mapping[str, Array]) -> tensor_pb2.Tensors:
    """Return the wire form of named tensors."""
    return tensor_pb2.Tensors.FromString(pack(tensors))


def pack(tensors: Mapping[str, Array], place: Place | None = None) -> bytes:
    """Serialize named tensors: what protobuf would write, with the elements copied once.

    Args:
        tensors: by name.
        place: puts elements elsewhere and returns where; None from it: they come along.
    """
    parts: list[bytes | memoryview] = []
    for name, array in tensors.items():
        raw = _to_raw(array)
        at = place(raw) if place is not None and isinstance(raw, memoryview) else None
        if at is None:
            parts += (_head(name, array, len(raw)), raw)
            continue
        tensor = tensor_pb2.Tensor(name=name, dtype=dtype_name(array), shape=array.shape, slot=at)
        message = tensor.SerializeToString()
        parts.append(_TENSOR_TAG + _varint(len(message)) + message)
    return b"".join(parts)


def _head(name: str, array: Array, size: int) -> bytes:
    """Return what protobuf writes of a tensor before so many bytes of elements."""
    tensor = tensor_pb2.Tensor(name=name, dtype=dtype_name(array), shape=array.shape)
    head = tensor.SerializeToString() + _RAW_TAG + _varint(size)
    return _TENSOR_TAG + _varint(len(head) + size) + head


def pack_rows(tensors: Mapping[str, Array], counts: Sequence[int]) -> list[bytes]:
    """Serialize tensors in pieces along their first axis, each as `pack` would.

    What is the same for pieces of a size is made once: a batch's are mostly of one row.

    Args:
        tensors: by name, all with `sum(counts)` rows.
        counts: rows of each piece.
    """
    raws = {name: _to_raw(array) for name, array in tensors.items()}
    if not all(isinstance(raw, memoryview) for raw in raws.values()):
        ends = itertools.accumulate(counts)
        return [
            pack({name: array[end - count : end] for name, array in tensors.items()})
            for count, end in zip(counts, ends, strict=True)
        ]
    row_bytes = {name: array.nbytes // max(len(array), 1) for name, array in tensors.items()}
    heads = {
        count: [
            _head(name, array[:count], count * row_bytes[name]) for name, array in tensors.items()
        ]
        for count in set(counts)
    }
    pieces = []
    at = 0
    for count in counts:
        parts: list[bytes | memoryview] = []
        for head, (name, raw) in zip(heads[count], raws.items(), strict=True):
            size = row_bytes[name]
            parts += (head, raw[at * size : (at + count) * size])
        pieces.append(b"".join(parts))
        at += count
    return pieces


def unpack(payload: bytes, read: Read | None = None) -> Tensors:
    """Return the tensors of a serialized message, as read-only views where numpy allows it.

    Args:
        payload: the message.
        read: returns the bytes of elements that are in shared memory; None: there is none.

    Raises:
        InvalidInput: not such a message, an unknown dtype, bytes that do not fill the shape, or
            elements in memory that cannot be read.
    """
    return from_proto(_parse(payload), read)


def from_proto(message: tensor_pb2.Tensors, read: Read | None = None) -> Tensors:
    """Return the tensors of a message; arguments and errors as those of `unpack`."""
    tensors: Tensors = {}
    for tensor in message.tensors:
        if tensor.name in tensors:
            raise InvalidInput(f"tensor {tensor.name!r} came twice")
        tensors[tensor.name] = _from_raw(tensor, _elements(tensor, read))
    return tensors


def inline(payload: bytes, read: Read) -> bytes:
    """Return a serialized message with the elements that are in shared memory put into it."""
    message = _parse(payload)
    for tensor in message.tensors:
        if tensor.HasField("slot"):
            tensor.raw = bytes(read(tensor.slot))
    return message.SerializeToString()


def _parse(payload: bytes) -> tensor_pb2.Tensors:
    try:
        return tensor_pb2.Tensors.FromString(payload)
    except DecodeError as err:
        raise InvalidInput(
            f"{len(payload)} bytes came that are no serialized mesh.v1.Tensors"
        ) from err


def _elements(tensor: tensor_pb2.Tensor, read: Read | None) -> bytes | memoryview:
    if not tensor.HasField("slot"):
        return tensor.raw
    if read is None:
        raise InvalidInput(
            f"tensor {tensor.name!r} is in shared memory, which is for the infer stage only; "
            "send its bytes"
        )
    return read(tensor.slot)


def _varint(value: int) -> bytes:
    """Return a number as protobuf encodes it: 7 bits a byte, the lowest first."""
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def _to_raw(array: Array) -> bytes | memoryview:
    if array.dtype != object:
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        return little.reshape(-1).view(np.uint8).data
    parts: list[bytes] = []
    elements: list[bytes] = array.ravel().tolist()
    for element in elements:
        parts += (len(element).to_bytes(4, "little"), element)
    return b"".join(parts)


def _from_raw(tensor: tensor_pb2.Tensor, raw: bytes | memoryview) -> Array:
    dtype = NUMPY_DTYPES.get(tensor.dtype)
    if dtype is None:
        raise InvalidInput(
            f"tensor {tensor.name!r} has dtype {tensor.dtype!r}, "
            f"wanted one of {sorted(NUMPY_DTYPES)}"
        )
    shape = tuple(tensor.shape)
    if len(shape) > MAX_DIMS or any(dim < 0 for dim in shape):
        raise InvalidInput(
            f"tensor {tensor.name!r} has {len(shape)} dimensions {_dims(shape[:MAX_DIMS])}, "
            f"wanted at most {MAX_DIMS} and none below 0"
        )
    count = math.prod(shape)
    if tensor.dtype == "BYTES":
        return _shaped(tensor.name, _bytes_elements(tensor.name, bytes(raw), count), shape)
    if len(raw) != count * dtype.itemsize:
        raise InvalidInput(
            f"tensor {tensor.name!r} is {tensor.dtype}{_dims(shape)}: {len(raw)} bytes came, "
            f"wanted {count * dtype.itemsize}"
        )
    return _shaped(tensor.name, np.frombuffer(raw, dtype), shape)


def _shaped(name: str, flat: Array, shape: tuple[int, ...]) -> Array:
    try:
        return flat.reshape(shape)
    except ValueError as err:  # empty, and the other sizes are too large for numpy
        raise InvalidInput(f"tensor {name!r} has the shape {_dims(shape)}: {err}") from err


def _bytes_elements(name: str, raw: bytes, count: int) -> Array:
    elements: list[bytes] = []
    at = 0
    while at + _LENGTH.itemsize <= len(raw) and len(elements) < count:
        size = int.from_bytes(raw[at : at + 4], "little")
        at += 4
        elements.append(raw[at : at + size])
        at += size
    if len(elements) != count or at != len(raw):
        raise InvalidInput(
            f"BYTES tensor {name!r}: {len(raw)} bytes do not hold {count} elements, each its "
            "length in 4 bytes (little-endian) and then its bytes"
        )
    return bytes_tensor(*elements)


def _dims(shape: Iterable[int]) -> str:
    return "[" + ",".join(str(dim) for dim in shape) + "]"
