"""A small blocking client of the gateway, whose every call begins a sampled trace."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.trace import SpanKind

from mesh import telemetry
from mesh.errors import MeshError
from mesh.settings import TelemetrySettings, load
from mesh.status import from_rpc_error, to_status

M = TypeVar("M", bound=Message)

SERVICE = "mesh.v1.Mesh"
MAX_BYTES = 64 * 1024**2
RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": SERVICE}],
            "retryPolicy": {
                "maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "1s",
                "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}  # fmt: skip
"""gRPC's own policy: calls that were under way in a gateway's worker that died are made again."""


class MeshClient:
    """Calls `mesh.v1.Mesh`, or another service of the same server.

    Args:
        gateway: `host:port`.
        timeout_s: deadline of each call.
        traced: whether calls are traced; spans go to the OTLP endpoint of the `OTEL_*` variables,
            else to the gateway itself.
        service: full name.
    """

    def __init__(
        self,
        gateway: str,
        timeout_s: float = 30.0,
        *,
        traced: bool = False,
        service: str = SERVICE,
    ) -> None:
        self.trace_id = ""
        self._service = service
        self._timeout_s = timeout_s
        options = [
            ("grpc.max_send_message_length", MAX_BYTES),
            ("grpc.max_receive_message_length", MAX_BYTES),
            ("grpc.service_config", json.dumps(RETRIES)),
        ]
        self._channel = grpc.insecure_channel(gateway, options)
        self._tracing: telemetry.Tracing | None = None
        if traced:
            settings = load(TelemetrySettings)
            exporter = OTLPSpanExporter(endpoint=f"http://{gateway}", timeout=2)
            self._tracing = telemetry.configure("client", settings, exporter)
            if not settings.exports:
                # A gateway that is away takes no spans either, and one error is enough.
                logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)

    def __enter__(self) -> "MeshClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._tracing is not None:
            self._tracing.shutdown()
        self._channel.close()

    def call(self, method: str, request: Message, response: type[M]) -> M:
        """Call a method of the service.

        Args:
            method: as `Detect`.
            request: its request message.
            response: class of its response message.

        Raises:
            MeshError: as the gateway answered.
        """
        call: grpc.UnaryUnaryMultiCallable[Message, M] = self._channel.unary_unary(
            f"/{self._service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        with self._span(method) as metadata, _as_ours():
            return call(request, timeout=self._timeout_s, metadata=metadata)

    def stream(self, method: str, request: Message, response: type[M]) -> Iterator[M]:
        """Call a method that answers with a stream, and yield its messages as they come.

        Args:
            method: as `Generate`.
            request: its request message.
            response: class of its response messages.

        Raises:
            MeshError: as the gateway answered.
        """
        call: grpc.UnaryStreamMultiCallable[Message, M] = self._channel.unary_stream(
            f"/{self._service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        with self._span(method) as metadata, _as_ours():
            yield from call(request, timeout=self._timeout_s, metadata=metadata)

    @contextmanager
    def _span(self, method: str) -> Iterator[tuple[tuple[str, str], ...]]:
        """Make the CLIENT span of a call, and give what the call takes along."""
        if self._tracing is None:
            yield ()
            return
        name = f"{self._service}/{method}"
        span = telemetry.start_span(
            self._tracing.sampled, name, b"", SpanKind.CLIENT,
            attributes=telemetry.rpc_attributes(name, method),
        )  # fmt: skip
        trace = telemetry.trace_of(span)
        self.trace_id = trace[:16].hex()
        code, message = 0, ""
        try:
            yield (("traceparent", telemetry.to_traceparent(trace)),)
        except MeshError as err:
            status = to_status(err)
            code, message = status.code, status.message
            raise
        finally:
            telemetry.end_rpc_span(span, code, message)


@contextmanager
def _as_ours() -> Iterator[None]:
    """Raise gRPC's errors as ours."""
    try:
        yield
    except grpc.RpcError as err:
        raise from_rpc_error(err) from None
