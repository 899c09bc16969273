"""One request to a stage or a pipeline, its reply, and who handles it."""

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from opentelemetry.util.types import AttributeValue

from mesh.errors import DeadlineExceeded, MeshError
from mesh.status import from_status
from protos.mesh.v1 import stage_pb2
from protos.mesh.v1.tensor_pb2 import Slot


@dataclass(slots=True)
class Timings:
    """Where a stage spent an item's time, in seconds."""

    queue: float = 0.0
    """Waited for a free lane or thread."""
    batch: float = 0.0
    """Joined to a batch, padded, and taken out of it."""
    run: float = 0.0
    """In the op or the engine."""
    batch_rows: int = 0
    """Rows of the batch that the item was in; 0 where there are no batches."""
    batch_trace: bytes = b""
    """Binary trace context of the batch's own span; it stays in the process."""
    traced: bool = False
    """Whether spans tell of them already; it stays in the process."""


@dataclass(slots=True)
class Reply:
    """What came of a request. Exactly one of `payload` and `status` tells something."""

    payload: bytes = b""
    """A serialized `Tensors` message."""
    context: bytes = b""
    """A serialized `Tensors` message that the postprocess stage of the same item wants."""
    status: stage_pb2.Status | None = None
    """Why the request failed; None: it did not."""
    timings: Timings | None = None
    """Filled by stages that measure."""
    more: bool = False
    """Other replies to the same request follow."""
    version: str = ""
    """Of the model that made it; empty: no model did."""
    attributes: Mapping[str, AttributeValue] | None = None
    """Of the request's span; they stay in the process."""

    def error(self) -> MeshError | None:
        """Return the error that the status stands for."""
        return from_status(self.status) if self.status is not None else None

    def check(self) -> None:
        """Call before the payload is used.

        Raises:
            MeshError: what the status stands for.
        """
        if (error := self.error()) is not None:
            raise error


@dataclass(slots=True)
class Hop:
    """One attempt of an unsampled request at a stage; times on the clock of `time.monotonic`."""

    method: str
    """Full name, as `mesh.v1.Infer/Run`."""
    target: str
    address: str
    """Of the replica."""
    attempt: int
    """0 for the first one."""
    sent: float
    ended: float = 0.0
    """When the reply came, or the attempt was given up."""
    answered: bool = False
    """Whether the replica has replied."""
    timings: Timings | None = None
    """As the replica told them."""
    status: stage_pb2.Status | None = None
    """Why the attempt failed; None: it did not."""


@dataclass(slots=True)
class Request:
    """One item of work."""

    target: str
    """Name of an op, a model or a pipeline."""
    payload: bytes
    """A serialized `Tensors` message; what only passes it on never parses it."""
    parameters: bytes = b""
    """A JSON object with sorted keys, or empty."""
    context: bytes = b""
    """As in `Reply`."""
    deadline: float = math.inf
    """When the caller stops waiting, on the clock of `time.monotonic`, seconds."""
    trace: bytes = b""
    """W3C trace context in binary: trace id (16 bytes), parent span id (8), flags (1); or empty."""
    client: str = ""
    """Whose request it is: queues are fair between clients."""
    slot: Slot | None = None
    """Shared memory where outputs may be written."""
    emit: Callable[[Reply], None] | None = None
    """Sends a reply before the last one; set by whoever can take several."""
    received: float = field(default_factory=time.monotonic)
    """When it came to this process, on the same clock."""
    hops: list[Hop] | None = None
    """Attempts at stages, noted for a trace that may be written afterwards; None: not noted."""
    caller: str = ""
    """Whose request it is, behind a client that asks for many; empty: not told."""
    metadata: Sequence[tuple[str, str | bytes]] = ()
    """What came with the call, as gRPC's metadata or HTTP's headers; it is not sent on."""
    resume: Callable[[], bytes] | None = None
    """Returns the context of a further attempt: what was answered already is not asked for again.
    None: the context stays as it is."""

    def check_deadline(self) -> None:
        """Call before any work.

        Raises:
            DeadlineExceeded: the time is over; the text says by how much.
        """
        late = time.monotonic() - self.deadline
        if late >= 0:
            waited = time.monotonic() - self.received
            raise DeadlineExceeded(
                f"the deadline passed {late * 1e3:.0f} ms ago, after {waited * 1e3:.0f} ms in the "
                f"queue of {self.target!r}; send less at once or allow more time"
            )


def name_of(target: str) -> str:
    """Return a target without the version that it may name: `name` of `name/version`."""
    return target.partition("/")[0]


def version_of(target: str) -> str:
    """Return what a target names beside its name: `/version`, or nothing."""
    return target[len(name_of(target)) :]


Handler = Callable[[Request], Awaitable[Reply]]
"""Does the work of one request; raises a `MeshError` if it cannot."""

Layer = Callable[[Handler], Handler]
"""Wraps a handler with one concern: tracing, logging, errors."""
