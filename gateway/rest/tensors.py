"""Requests and answers of `/infer`: JSON, with the tensors in it or in binary behind it."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError
from tritonclient.grpc import service_pb2 as oip

from gateway.rest.schema import Inference, Input, Parameters
from mesh.errors import InvalidInput
from mesh.oip.regions import REGION
from mesh.oip.tensors import raw_bytes, raw_numbers
from mesh.tensor import NUMPY_DTYPES, TensorSpec
from mesh.validation import faults

SIZE, BINARY, ALL_BINARY = "binary_data_size", "binary_data", "binary_data_output"
RAW_ONLY = ("FP16", "BF16")
LENGTH_BYTES = 4
"""Before each BYTES element."""


@dataclass(frozen=True)
class Wishes:
    """Which outputs are wanted in binary."""

    by_name: Mapping[str, bool]
    others: bool

    def is_binary(self, name: str) -> bool:
        """Tell whether an output is wanted so."""
        return self.by_name.get(name, self.others)


def request_of(body: bytes, header: str | None) -> tuple[Any, Wishes]:
    """Return the `ModelInferRequest` of a body; its model is not named.

    Args:
        body: JSON, and tensors behind it.
        header: `Inference-Header-Content-Length`, bytes of the JSON; None: all of it.

    Raises:
        InvalidInput: it is no such request; the text says what is wrong.
    """
    length = _header_length(header, len(body))
    given = _parsed(body[:length])
    request = oip.ModelInferRequest(id=given.id)
    _set_parameters(request.parameters, given.parameters)
    rest = memoryview(body)[length:]
    for one in given.inputs:
        tensor = request.inputs.add(name=one.name, datatype=one.datatype, shape=one.shape)
        own = dict(one.parameters)
        size = own.pop(SIZE, None)
        _set_parameters(tensor.parameters, own)
        if size is not None:
            raw, rest = _cut(one, size, rest)
            request.raw_input_contents.append(raw)
        elif one.data is not None:
            request.raw_input_contents.append(_raw(one))
        elif not own:
            raise InvalidInput(f"input {one.name!r} has neither data nor {SIZE}")
    if rest:
        raise InvalidInput(f"{len(rest)} bytes came after the last input; give their {SIZE}")
    wanted = {}
    for output in given.outputs:
        own = dict(output.parameters)
        if BINARY in own:
            wanted[output.name] = bool(own.pop(BINARY))
        _set_parameters(request.outputs.add(name=output.name).parameters, own)
    request.parameters.pop(ALL_BINARY, None)
    return request, Wishes(wanted, bool(given.parameters.get(ALL_BINARY, False)))


def raw_request(spec: TensorSpec, batched: bool, body: bytes) -> Any:
    """Return the request that a body is which has nothing but the only input of a model.

    A BYTES input is one element; of numbers there may be one size that the model leaves open beside
    that of the batch, which is one.

    Args:
        spec: of the input.
        batched: whether its first dimension is that of a batch.
        body: the elements.

    Raises:
        InvalidInput: the bytes do not fill such a tensor.
    """
    request = oip.ModelInferRequest()
    sizes = list(spec.shape)
    if batched and sizes and sizes[0] == -1:
        sizes[0] = 1
    raw = body
    if spec.dtype == "BYTES":
        raw, sizes = raw_bytes([body]), [1] * len(sizes)
    elif sizes.count(-1) == 1:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = len(body) // (known * NUMPY_DTYPES[spec.dtype].itemsize or 1)
    if spec.dtype != "BYTES" and (
        -1 in sizes or math.prod(sizes) * NUMPY_DTYPES[spec.dtype].itemsize != len(body)
    ):
        raise InvalidInput(
            f"{len(body)} bytes came for the input {spec}, wanted one row of it, with no more than "
            "one size left open"
        )
    request.inputs.add(name=spec.name, datatype=spec.dtype, shape=sizes)
    request.raw_input_contents.append(raw)
    return request


def answer_of(response: Any, wishes: Wishes) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of its JSON; None: it is all of it.

    Raises:
        InvalidInput: an output is wanted as JSON and cannot be.
    """
    outputs, behind = [], []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        told: dict[str, Any] = {
            "name": output.name, "datatype": output.datatype, "shape": list(output.shape),
        }  # fmt: skip
        if REGION in output.parameters:
            told["parameters"] = _told_parameters(output.parameters)
        elif wishes.is_binary(output.name):
            told["parameters"] = {SIZE: len(raw)}
            behind.append(raw)
        else:
            told["data"] = _values(output, raw)
        outputs.append(told)
    head: dict[str, Any] = {
        "model_name": response.model_name, "model_version": response.model_version,
    }  # fmt: skip
    if response.id:
        head["id"] = response.id
    if response.parameters:
        head["parameters"] = _told_parameters(response.parameters)
    head["outputs"] = outputs
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join([text, *behind]), len(text) if behind else None


def _told_parameters(parameters: Any) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in parameters.items()
    }


def _header_length(header: str | None, size: int) -> int:
    if header is None:
        return size
    if not (header.isascii() and header.isdigit() and int(header) <= size):
        raise InvalidInput(
            f"Inference-Header-Content-Length is {header!r}, wanted the bytes of the JSON, at most "
            f"the {size} of the body"
        )
    return int(header)


def _parsed(text: bytes) -> Inference:
    try:
        return Inference.model_validate_json(text)
    except ValidationError as err:
        raise InvalidInput(f"the request is no inference: {faults(err, 'JSON')}") from err


def _set_parameters(target: Any, parameters: Parameters) -> None:
    for name, value in parameters.items():
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise InvalidInput(f"parameter {name!r} is {value}, wanted 64 bits")
            target[name].int64_param = value
        elif isinstance(value, float):
            target[name].double_param = value
        else:
            target[name].string_param = value


def _cut(given: Input, size: Any, rest: memoryview) -> tuple[bytes, memoryview]:
    whole = isinstance(size, int) and not isinstance(size, bool)
    if not whole or not 0 <= size <= len(rest) or given.data is not None:
        raise InvalidInput(
            f"input {given.name!r} has {SIZE} {size!r}, wanted no more than the {len(rest)} bytes "
            "that are left, and no data beside it"
        )
    return bytes(rest[:size]), rest[size:]


def _raw(given: Input) -> bytes:
    """Return an input's data in binary."""
    name, datatype = given.name, given.datatype
    if datatype not in NUMPY_DTYPES or datatype in RAW_ONLY:
        kinds = sorted(NUMPY_DTYPES.keys() - set(RAW_ONLY))
        raise InvalidInput(
            f"input {name!r} has the datatype {datatype!r}; as JSON come {kinds}, and "
            f"{' and '.join(RAW_ONLY)} in binary with {SIZE}"
        )
    values = list(_flat(given.data))
    if len(values) != math.prod(given.shape):
        raise InvalidInput(f"input {name!r} has {len(values)} values, its shape is {given.shape}")
    wanted = NUMPY_DTYPES[datatype]
    if datatype == "BYTES":
        return raw_bytes(_text(name, value) for value in values)
    kinds_: tuple[type, ...] = {"b": (bool,), "f": (int, float)}.get(wanted.kind, (int,))
    for value in values:
        if not isinstance(value, kinds_) or (isinstance(value, bool) and wanted.kind != "b"):
            raise InvalidInput(f"input {name!r} has the value {value!r:.80}, wanted {datatype}")
    return raw_numbers(name, datatype, values)


def _flat(data: Any) -> Iterable[Any]:
    """Yield the values of nested lists."""
    stack = [iter(data)]
    while stack:
        for value in stack[-1]:
            if isinstance(value, list):
                stack.append(iter(value))
                break
            yield value
        else:
            stack.pop()


def _text(name: str, value: Any) -> bytes:
    try:
        return bytes(value.encode())
    except (AttributeError, UnicodeEncodeError):
        raise InvalidInput(
            f"input {name!r} has the value {value!r:.80}, wanted texts; bytes come in binary, with "
            f"{SIZE}"
        ) from None


def _values(output: Any, raw: bytes) -> list[Any]:
    """Return an output's values for JSON."""
    name, datatype = output.name, output.datatype
    hint = f"ask for it with {BINARY}: true"
    if datatype in RAW_ONLY:
        raise InvalidInput(f"output {name!r} is {datatype}, which JSON has not; {hint}")
    if datatype == "BYTES":
        try:
            return [element.decode() for element in _elements(raw)]
        except UnicodeDecodeError:
            raise InvalidInput(f"output {name!r} has bytes that are no text; {hint}") from None
    array = np.frombuffer(raw, NUMPY_DTYPES[datatype])
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInput(f"output {name!r} has numbers that are not finite; {hint}")
    values: list[Any] = array.tolist()
    return values


def _elements(raw: bytes) -> Iterable[bytes]:
    at = 0
    while at < len(raw):
        begin = at + LENGTH_BYTES
        at = begin + int.from_bytes(raw[at:begin], "little")
        yield raw[begin:at]
