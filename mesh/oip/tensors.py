"""Tensors of the Open Inference Protocol to ours and back, without looking at their elements.

The layout of raw contents is the same: row-major, little-endian, and for BYTES a length of 4 bytes
before each element.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as oip

from mesh.errors import InvalidInput
from mesh.messages import MOST_ITEMS
from mesh.oip.regions import OFFSET, REGION, SIZE, Regions
from mesh.tensor import FLOATS, MAX_DIMS, NUMPY_DTYPES, TensorSpec
from protos.mesh.v1.tensor_pb2 import Tensor, Tensors

TYPED = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents",
    "INT32": "int_contents", "INT64": "int64_contents", "UINT8": "uint_contents",
    "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
"""Fields of typed contents; other types come raw only."""
CLASSIFICATION = "classification"
NO_LABELS: Mapping[str, Sequence[str]] = {}


def inputs_of(request: Any, regions: Regions) -> list[Tensor]:
    """Return the inputs of a `ModelInferRequest`.

    Args:
        request: with the inputs in it, or in shared memory.
        regions: that are registered.

    Raises:
        InvalidInput: contents are missing, come twice, or do not fit dtype and shape.
    """
    raw = iter(request.raw_input_contents)
    sent = [given for given in request.inputs if REGION not in given.parameters]
    count = len(request.raw_input_contents)
    if count and count != len(sent):
        raise InvalidInput(
            f"{count} raw_input_contents came for {len(sent)} inputs, wanted one for each that is "
            "not in shared memory, in their order"
        )
    names = [given.name for given in request.inputs]
    if len(set(names)) < len(names):
        raise InvalidInput(f"inputs {names} came, wanted each name once")
    found = []
    for given in request.inputs:
        if REGION in given.parameters:
            found.append(_input(given, regions.read(given.parameters, f"input {given.name!r}")))
        else:
            found.append(_input(given, next(raw) if count else None))
    return found


def items_of(tensors: Sequence[Tensor], spec: TensorSpec) -> list[bytes]:
    """Return one payload for each element of a tensor of texts or files.

    Args:
        tensors: that came.
        spec: of the op before the model, which takes one element.

    Raises:
        InvalidInput: another tensor came, or no element.
    """
    if len(tensors) != 1 or tensors[0].name != spec.name or tensors[0].dtype != spec.dtype:
        came = [f"{tensor.name}: {tensor.dtype}" for tensor in tensors]
        raise InvalidInput(f"inputs {came} came, wanted {spec.name}: {spec.dtype}[N]")
    raw, wanted = tensors[0].raw, math.prod(tensors[0].shape)
    if not 1 <= wanted <= MOST_ITEMS:
        raise InvalidInput(
            f"input {spec.name!r} has {wanted} elements, wanted at least one and at most "
            f"{MOST_ITEMS} in a request"
        )
    elements: list[bytes] = []
    at = 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if end > len(raw):
            raise InvalidInput(f"input {spec.name!r} ends within element {len(elements)}")
        elements.append(raw[at:end])
        at = end
    if len(elements) != wanted:
        raise InvalidInput(
            f"input {spec.name!r} has {len(elements)} elements, its shape "
            f"{list(tensors[0].shape)} says {wanted}"
        )
    return [
        Tensors(
            tensors=[Tensor(name=spec.name, dtype=spec.dtype, shape=[1], raw=element)]
        ).SerializeToString()
        for element in elements
    ]  # fmt: skip


def joined(payloads: Sequence[bytes]) -> list[Tensor]:
    """Return the outputs of several items as one batch.

    Raises:
        InvalidInput: the items' outputs have different shapes.
    """
    answers = [Tensors.FromString(payload).tensors for payload in payloads]
    if len(answers) == 1:
        return list(answers[0])
    found = []
    for column in zip(*answers, strict=True):
        first = column[0]
        shapes = {tuple(tensor.shape[1:]) for tensor in column}
        if len(shapes) > 1:
            raise InvalidInput(
                f"output {first.name!r} has different shapes for the items of this request; ask "
                "for one at a time"
            )
        rows = sum(tensor.shape[0] for tensor in column)
        found.append(
            Tensor(
                name=first.name, dtype=first.dtype, shape=[rows, *first.shape[1:]],
                raw=b"".join(tensor.raw for tensor in column),
            )
        )  # fmt: skip
    return found


def fill_outputs(
    response: Any,
    request: Any,
    tensors: Iterable[Tensor],
    regions: Regions,
    labels: Mapping[str, Sequence[str]] = NO_LABELS,
    *,
    batched: bool = True,
) -> None:
    """Add outputs to a `ModelInferResponse`: those that the request names, or all.

    Raises:
        InvalidInput: it names one that is not there, or wants it in another way than there is.
    """
    made = {tensor.name: tensor for tensor in tensors}
    check_outputs(request, made)
    wanted = {output.name: output.parameters for output in request.outputs} or dict.fromkeys(made)
    for name, parameters in wanted.items():
        tensor = made[name]
        if parameters and CLASSIFICATION in parameters:
            count = parameters[CLASSIFICATION].int64_param
            if count < 1:
                raise InvalidInput(f"output {name!r}: {count} classes came, wanted at least one")
            tensor = _classes(tensor, count, labels.get(name, ()), batched)
        told = response.outputs.add(name=name, datatype=tensor.dtype, shape=tensor.shape)
        if parameters and REGION in parameters:
            regions.write(parameters, tensor.raw, f"output {name!r}")
            told.parameters[REGION].string_param = parameters[REGION].string_param
            told.parameters[SIZE].int64_param = len(tensor.raw)
            if parameters[OFFSET].int64_param:
                told.parameters[OFFSET].int64_param = parameters[OFFSET].int64_param
            response.raw_output_contents.append(b"")
        else:
            response.raw_output_contents.append(tensor.raw)


def check_outputs(request: Any, names: Iterable[str]) -> None:
    """Compare the outputs that a request names with those that there are.

    Raises:
        InvalidInput: it names another one.
    """
    known = sorted(names)
    if unknown := [output.name for output in request.outputs if output.name not in known]:
        raise InvalidInput(f"outputs {unknown} are asked for, there are {known}")


def metadata(spec: TensorSpec) -> Any:
    """Return what `ModelMetadata` tells of a tensor."""
    return oip.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=spec.dtype, shape=spec.shape
    )


def _input(given: Any, raw: bytes | None) -> Tensor:
    name, dtype = given.name, given.datatype
    if dtype not in NUMPY_DTYPES:
        raise InvalidInput(
            f"input {name!r} has the datatype {dtype!r}, wanted one of {sorted(NUMPY_DTYPES)}"
        )
    if len(given.shape) > MAX_DIMS or any(size < 0 for size in given.shape):
        raise InvalidInput(
            f"input {name!r} has {len(given.shape)} dimensions, the first {list(given.shape[:8])}; "
            f"wanted at most {MAX_DIMS}, sizes from 0"
        )
    typed = given.HasField("contents") and given.contents.ByteSize() > 0
    if raw is not None and typed:
        raise InvalidInput(f"input {name!r} has raw and typed contents, wanted one of them")
    data = raw if raw is not None else _typed(given)
    count = math.prod(given.shape)
    if dtype != "BYTES" and len(data) != (size := count * NUMPY_DTYPES[dtype].itemsize):
        raise InvalidInput(
            f"input {name!r} has {len(data)} bytes, {dtype}{list(given.shape)} has {size}"
        )
    return Tensor(name=name, dtype=dtype, shape=given.shape, raw=data)


def _typed(given: Any) -> bytes:
    """Return typed contents as raw ones."""
    dtype = given.datatype
    field = TYPED.get(dtype)
    if field is None:
        raise InvalidInput(f"input {given.name!r}: {dtype} comes in raw_input_contents only")
    others = [one.name for one, _ in given.contents.ListFields() if one.name != field]
    if others:
        raise InvalidInput(f"input {given.name!r}: {others} came for {dtype}, wanted {field}")
    values = getattr(given.contents, field)
    if len(values) != math.prod(given.shape):
        raise InvalidInput(
            f"input {given.name!r} has {len(values)} elements, its shape is {list(given.shape)}"
        )
    if dtype == "BYTES":
        return raw_bytes(values)
    return raw_numbers(given.name, dtype, values)


def raw_bytes(elements: Iterable[bytes]) -> bytes:
    """Return the raw contents of a BYTES tensor."""
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def raw_numbers(name: str, dtype: str, values: Sequence[Any]) -> bytes:
    """Return the raw contents of an input of numbers.

    Raises:
        InvalidInput: one is beyond the type.
    """
    wanted = NUMPY_DTYPES[dtype]
    if wanted.kind in "iu" and values:
        limits = np.iinfo(str(wanted))
        if not limits.min <= min(values) <= max(values) <= limits.max:
            raise InvalidInput(f"input {name!r} has values that are no {dtype}")
    try:
        return np.array(values, wanted).tobytes()
    except OverflowError as err:
        raise InvalidInput(f"input {name!r} has values that are no {dtype}") from err


def _classes(tensor: Tensor, count: int, labels: Sequence[str], batched: bool) -> Tensor:
    """Return the best classes of each row as Triton's classification extension has them."""
    dtype = NUMPY_DTYPES[tensor.dtype]
    if (dtype not in FLOATS and dtype.kind not in "iu") or not tensor.shape:
        raise InvalidInput(
            f"output {tensor.name!r} is {tensor.dtype}{list(tensor.shape)}, of which no classes "
            "can be told; leave classification out"
        )
    rows = np.frombuffer(tensor.raw, dtype).reshape(tensor.shape[0] if batched else 1, -1)
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    form = "f" if dtype in FLOATS else "d"
    texts = [
        f"{row[index]:{form}}:{index}{_label(labels, index)}".encode()
        for row, best in zip(rows, order, strict=True)
        for index in best
    ]
    raw = raw_bytes(texts)
    shape = [len(rows), order.shape[1]] if batched else [order.shape[1]]
    return Tensor(name=tensor.name, dtype="BYTES", shape=shape, raw=raw)


def _label(labels: Sequence[str], index: int) -> str:
    return f":{labels[index]}" if index < len(labels) else ""
