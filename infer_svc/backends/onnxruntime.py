"""ONNX Runtime on the CPU: the embedded default."""

import ctypes
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from infer_svc.backends.batch import RunTimes, join
from infer_svc.faults import NO_FAULTS, Faults
from mesh.errors import EngineError, SettingsError
from mesh.tensor import NUMPY_DTYPES, Array, Tensors, TensorSpec

# They derive from Exception only, and have no base of their own.
ERRORS = (
    ort_errors.DeviceReset, ort_errors.EngineError, ort_errors.EPFail, ort_errors.Fail,
    ort_errors.InvalidArgument, ort_errors.InvalidGraph, ort_errors.InvalidProtobuf,
    ort_errors.ModelLoadCanceled, ort_errors.ModelRequiresCompilation, ort_errors.NoModel,
    ort_errors.NoSuchFile, ort_errors.NotFound, ort_errors.NotImplemented,
    ort_errors.RuntimeException, RuntimeError, ValueError,
)  # fmt: skip

_DTYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16",
    "bfloat16": "BF16", "float": "FP32", "double": "FP64", "string": "BYTES",
}  # fmt: skip

BFLOAT16 = NUMPY_DTYPES["BF16"]
ONNX_BFLOAT16 = 16
"""Its number in `onnx.TensorProto.DataType`."""


class OnnxRuntimeEngine:
    """A session, which several threads may run at a time."""

    def __init__(self, path: Path, threads: int, faults: Faults, literal: bool) -> None:
        self._path = path
        self._literal = literal
        self._threads = threads
        self._faults = faults
        self._session = session(path, threads, literal=literal)
        self.inputs = tuple(spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(spec(node) for node in self._session.get_outputs())

    def open(self) -> "OnnxRuntimeContext":
        """Return a context for one lane."""
        self._faults.at("context")
        specs = (*self.inputs, *self.outputs)
        run = _run_bfloat16 if any(spec.dtype == "BF16" for spec in specs) else _run
        names = [spec.name for spec in self.outputs]
        return OnnxRuntimeContext(partial(run, self._session, names), names, self._faults)

    def settle(self) -> None:
        """Do nothing: there is nothing to keep."""

    def reload(self) -> None:
        """Load the file anew."""
        try:
            self._session = session(self._path, self._threads, literal=self._literal)
        except SettingsError as err:
            raise EngineError(str(err)) from err

    def close(self) -> None:
        """Do nothing: the session goes with its last user."""


class OnnxRuntimeContext:
    """The session as one lane sees it."""

    def __init__(
        self, run: Callable[[Tensors], list[Array]], names: list[str], faults: Faults
    ) -> None:
        self.times = RunTimes()
        self._run = run
        self._names = names
        self._faults = faults

    def run(self, parts: Sequence[Tensors]) -> Tensors:
        """Run one batch; contract as in `infer_svc.backends.Context`."""
        for seam in ("h2d", "enqueue", "stall", "memory", "device", "illegal", "spin"):
            self._faults.at(seam)
        try:
            inputs = {name: _each(bytes.decode, array) for name, array in join(parts).items()}
            started = time.perf_counter()
            outputs = self._run(inputs)
        except ERRORS as err:
            raise EngineError(f"ONNX Runtime failed the batch: {err}") from err
        self._faults.at("sync")
        elements = sum(array.size for array in inputs.values())
        self.times = RunTimes(0.0, time.perf_counter() - started, 0.0, elements, elements)
        return {
            name: _each(str.encode, array) for name, array in zip(self._names, outputs, strict=True)
        }

    def rebuild(self) -> None:
        """Do nothing but what a fault asks for: a session keeps no state between runs."""
        self._faults.at("context")

    def close(self) -> None:
        """Do nothing: the session goes with its last user."""


def load_onnxruntime(
    path: Path, threads: int, faults: Faults = NO_FAULTS, *, literal: bool = False
) -> OnnxRuntimeEngine:
    """Load an ONNX file.

    Args:
        path: the model.
        threads: that one run may use.
        faults: on purpose.
        literal: run the graph node by node as it is written, nothing fused or folded.

    Raises:
        SettingsError: the file is no model that ONNX Runtime can run.
    """
    return OnnxRuntimeEngine(path, threads, faults, literal)


def session(model: Path | bytes, threads: int, *, literal: bool = False) -> ort.InferenceSession:
    """Return a session on the CPU.

    Args:
        model: an ONNX file, or what is in one.
        threads: that one run may use.
        literal: as for `load_onnxruntime`.

    Raises:
        SettingsError: it is no model that ONNX Runtime can run.
    """
    ort.disable_telemetry_events()  # else some builds send usage to their maker
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning thread takes the core from the services beside it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if literal:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            sess_options=options,
            providers=["CPUExecutionProvider"],
        )
    except ERRORS as err:
        name = "a model" if isinstance(model, bytes) else model
        raise SettingsError(f"ONNX Runtime cannot load {name}: {err}") from err


def _run(session: ort.InferenceSession, names: list[str], inputs: Tensors) -> list[Array]:
    outputs: list[Array] = session.run(names, inputs)
    return outputs


def _run_bfloat16(session: ort.InferenceSession, names: list[str], inputs: Tensors) -> list[Array]:
    """Run with values of ONNX Runtime's own: its arrays have no bfloat16."""
    values = {name: _to_value(array) for name, array in inputs.items()}
    return [_from_value(value) for value in session.run_with_ort_values(names, values)]


def _to_value(array: Array) -> ort.OrtValue:
    whole = np.ascontiguousarray(array)
    if whole.dtype != BFLOAT16:
        return ort.OrtValue.ortvalue_from_numpy(whole)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(whole.view(np.uint16), ONNX_BFLOAT16)


def _from_value(value: ort.OrtValue) -> Array:
    if value.element_type() != ONNX_BFLOAT16:
        array: Array = value.numpy()
        return array
    found = np.empty(value.shape(), BFLOAT16)
    ctypes.memmove(found.ctypes.data, value.data_ptr(), found.nbytes)
    return found


def _each(convert: Callable[[Any], object], array: Array) -> Array:
    """Convert the elements of a BYTES tensor: ONNX Runtime's strings are `str`, in UTF-8."""
    if array.dtype != object:
        return array
    converted = np.empty(array.shape, object)
    converted.ravel()[:] = [convert(element) for element in array.ravel().tolist()]
    return converted


def spec(node: ort.NodeArg) -> TensorSpec:
    """Return what a session says of an input or output.

    Raises:
        SettingsError: the wire cannot carry its type.
    """
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    dtype = _DTYPES.get(kind)
    if dtype is None or dtype not in NUMPY_DTYPES:
        raise SettingsError(f"tensor {node.name!r} is {node.type}, which the wire cannot carry")
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in node.shape or ())
    return TensorSpec(node.name, dtype, shape)
