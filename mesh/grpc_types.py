"""Names for gRPC's types, generic for the type checker and plain at run time."""

from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    Method = grpc.RpcMethodHandler[Any, Any]
    Methods = dict[str, grpc.RpcMethodHandler[Any, Any]]
    Context = grpc.aio.ServicerContext[Any, Any]
    Stream = grpc.aio.StreamStreamCall[Any, Any]
    Call = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
else:
    Method = grpc.RpcMethodHandler
    Methods = dict
    Context = grpc.aio.ServicerContext
    Stream = grpc.aio.StreamStreamCall
    Call = grpc.aio.UnaryUnaryMultiCallable
