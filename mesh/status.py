"""The one table between our errors and gRPC status codes."""

import math
from typing import NoReturn

import grpc

from mesh import errors
from mesh.grpc_types import Context
from protos.mesh.v1 import stage_pb2

KIND_KEY = "mesh-error"
"""Trailing metadata key of a failed unary call: the class name of the error."""
RETRY_KEY = "grpc-retry-pushback-ms"
"""Trailing metadata key of gRPC's retries (gRFC A6): when a client may come back."""
MAX_TEXT_BYTES = 2048
"""Of an error's text, which may quote what a caller sent: gRPC takes 8 kB of headers, where a byte
can become three, and an envelope above its bound would end the stream of everyone."""

_CODES: dict[type[errors.MeshError], grpc.StatusCode] = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Refused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ReplicaFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.QueueTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.StageUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.EngineError: grpc.StatusCode.INTERNAL,
    errors.SettingsError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}
_KINDS = {kind.__name__: kind for kind in _CODES}
_FROM_CODE = {code: kind for kind, code in reversed(_CODES.items())} | {
    grpc.StatusCode.INTERNAL: errors.InternalError
}
_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

SERVER_FAULTS = frozenset({
    grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS,
})  # fmt: skip
"""Codes that make a SERVER span an error (OpenTelemetry semantic conventions for RPC, v1.44)."""


NO_RETRY = ("grpc-retry-pushback-ms", "-1")
"""Tells a gRPC client whose policy it is to repeat what is UNAVAILABLE that this was done already,
as far as it may be. What it repeats then is only what it got no answer to."""


def code_of(error: BaseException) -> grpc.StatusCode:
    """Return the gRPC code of an error; what is not ours is INTERNAL."""
    for kind in type(error).__mro__:
        if kind in _CODES:
            return _CODES[kind]
    return grpc.StatusCode.INTERNAL


def public(error: BaseException) -> errors.MeshError:
    """Return the error a caller may see: itself when ours, else one that tells nothing."""
    if isinstance(error, errors.MeshError):
        return error
    return errors.InternalError("internal error; the server's log has the traceback")


def to_status(error: BaseException) -> stage_pb2.Status:
    """Return the wire form of an error."""
    shown = public(error)
    return stage_pb2.Status(
        code=code_of(shown).value[0], message=_text(shown), kind=type(shown).__name__,
        retry_ms=_retry_ms(shown),
    )  # fmt: skip


def code_from_number(number: int) -> grpc.StatusCode:
    """Return the gRPC code with that number; UNKNOWN for one that gRPC does not have."""
    return _BY_NUMBER.get(number, grpc.StatusCode.UNKNOWN)


def from_status(status: stage_pb2.Status) -> errors.MeshError:
    """Return the error that `to_status` was given."""
    error = _error(code_from_number(status.code), status.message, status.kind)
    if isinstance(error, errors.Overloaded):
        error.retry_s = status.retry_ms * 1e-3
    return error


def from_rpc_error(error: grpc.RpcError) -> errors.MeshError:
    """Return our error for a failed gRPC call, ours on the other side or any server's."""
    if not isinstance(error, grpc.aio.AioRpcError | grpc.Call):
        return errors.InternalError(str(error))
    kinds = [str(value) for key, value in error.trailing_metadata() or () if key == KIND_KEY]
    return _error(error.code(), error.details() or "", kinds[0] if kinds else "")


async def abort(context: Context, error: BaseException) -> NoReturn:
    """End a call with an error, so that `from_rpc_error` of the caller returns the same type."""
    shown = public(error)
    code = code_of(shown)
    trailers = [(KIND_KEY, type(shown).__name__)]
    if code is grpc.StatusCode.UNAVAILABLE:
        trailers.append(NO_RETRY)
    elif retry_ms := _retry_ms(shown):
        trailers.append((RETRY_KEY, str(retry_ms)))
    await context.abort(code, _text(shown), tuple(trailers))
    raise shown  # abort raises already; this tells the type checker


def _retry_ms(error: errors.MeshError) -> int:
    return math.ceil(1e3 * error.retry_s) if isinstance(error, errors.Overloaded) else 0


def _text(error: errors.MeshError) -> str:
    raw = str(error).encode(errors="replace")
    if len(raw) <= MAX_TEXT_BYTES:
        return raw.decode()
    return raw[:MAX_TEXT_BYTES].decode(errors="ignore") + "…"


def _error(code: grpc.StatusCode, message: str, kind: str) -> errors.MeshError:
    found = _KINDS.get(kind) or _FROM_CODE.get(code, errors.InternalError)
    return found(message)
