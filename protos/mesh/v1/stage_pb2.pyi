from protos.mesh.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Envelope(_message.Message):
    __slots__ = ("items", "fragment", "hello", "grant", "cancel", "drain", "lending")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    LENDING_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    fragment: Fragment
    hello: Hello
    grant: Grant
    cancel: _containers.RepeatedScalarFieldContainer[int]
    drain: bool
    lending: Lending
    def __init__(self, items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., fragment: _Optional[_Union[Fragment, _Mapping]] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., cancel: _Optional[_Iterable[int]] = ..., drain: _Optional[bool] = ..., lending: _Optional[_Union[Lending, _Mapping]] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("id", "time_left_us", "trace", "target", "parameters", "payload", "context", "status", "timings", "more", "slot", "caller", "version")
    ID_FIELD_NUMBER: _ClassVar[int]
    TIME_LEFT_US_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    id: int
    time_left_us: int
    trace: bytes
    target: str
    parameters: bytes
    payload: bytes
    context: bytes
    status: Status
    timings: Timings
    more: bool
    slot: _tensor_pb2.Slot
    caller: int
    version: str
    def __init__(self, id: _Optional[int] = ..., time_left_us: _Optional[int] = ..., trace: _Optional[bytes] = ..., target: _Optional[str] = ..., parameters: _Optional[bytes] = ..., payload: _Optional[bytes] = ..., context: _Optional[bytes] = ..., status: _Optional[_Union[Status, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., more: _Optional[bool] = ..., slot: _Optional[_Union[_tensor_pb2.Slot, _Mapping]] = ..., caller: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("code", "message", "kind", "retry_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RETRY_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    kind: str
    retry_ms: int
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., kind: _Optional[str] = ..., retry_ms: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_us", "batch_us", "run_us", "batch_rows")
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    BATCH_US_FIELD_NUMBER: _ClassVar[int]
    RUN_US_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    queue_us: int
    batch_us: int
    run_us: int
    batch_rows: int
    def __init__(self, queue_us: _Optional[int] = ..., batch_us: _Optional[int] = ..., run_us: _Optional[int] = ..., batch_rows: _Optional[int] = ...) -> None: ...

class Fragment(_message.Message):
    __slots__ = ("id", "data", "last", "total_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: int
    data: bytes
    last: bool
    total_bytes: int
    def __init__(self, id: _Optional[int] = ..., data: _Optional[bytes] = ..., last: _Optional[bool] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("session", "control", "wire_version")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    control: bool
    wire_version: int
    def __init__(self, session: _Optional[str] = ..., control: _Optional[bool] = ..., wire_version: _Optional[int] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("items", "bytes", "queue_depth", "edition")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    EDITION_FIELD_NUMBER: _ClassVar[int]
    items: int
    bytes: int
    queue_depth: int
    edition: int
    def __init__(self, items: _Optional[int] = ..., bytes: _Optional[int] = ..., queue_depth: _Optional[int] = ..., edition: _Optional[int] = ...) -> None: ...

class Lending(_message.Message):
    __slots__ = ("arena", "slots")
    ARENA_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    arena: str
    slots: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, arena: _Optional[str] = ..., slots: _Optional[_Iterable[int]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("targets",)
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    def __init__(self, targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("name", "parameters")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    parameters: bytes
    def __init__(self, name: _Optional[str] = ..., parameters: _Optional[bytes] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("wire_version", "service", "version", "targets", "worker_ports")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    WORKER_PORTS_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    service: str
    version: str
    targets: _containers.RepeatedCompositeFieldContainer[TargetSpec]
    worker_ports: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, wire_version: _Optional[int] = ..., service: _Optional[str] = ..., version: _Optional[str] = ..., targets: _Optional[_Iterable[_Union[TargetSpec, _Mapping]]] = ..., worker_ports: _Optional[_Iterable[int]] = ...) -> None: ...

class TargetSpec(_message.Message):
    __slots__ = ("name", "inputs", "outputs", "output_bytes", "status", "version", "decoupled", "versions", "labels", "max_batch_size", "platform")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DECOUPLED_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    name: str
    inputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    output_bytes: int
    status: Status
    version: str
    decoupled: bool
    versions: _containers.RepeatedScalarFieldContainer[str]
    labels: _containers.RepeatedCompositeFieldContainer[Labels]
    max_batch_size: int
    platform: str
    def __init__(self, name: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ..., output_bytes: _Optional[int] = ..., status: _Optional[_Union[Status, _Mapping]] = ..., version: _Optional[str] = ..., decoupled: _Optional[bool] = ..., versions: _Optional[_Iterable[str]] = ..., labels: _Optional[_Iterable[_Union[Labels, _Mapping]]] = ..., max_batch_size: _Optional[int] = ..., platform: _Optional[str] = ...) -> None: ...

class Labels(_message.Message):
    __slots__ = ("output", "names")
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    output: str
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, output: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ...) -> None: ...

class MetricsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MetricsResponse(_message.Message):
    __slots__ = ("families",)
    FAMILIES_FIELD_NUMBER: _ClassVar[int]
    families: _containers.RepeatedCompositeFieldContainer[MetricFamily]
    def __init__(self, families: _Optional[_Iterable[_Union[MetricFamily, _Mapping]]] = ...) -> None: ...

class MetricFamily(_message.Message):
    __slots__ = ("name", "documentation", "type", "unit", "samples")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTATION_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    name: str
    documentation: str
    type: str
    unit: str
    samples: _containers.RepeatedCompositeFieldContainer[MetricSample]
    def __init__(self, name: _Optional[str] = ..., documentation: _Optional[str] = ..., type: _Optional[str] = ..., unit: _Optional[str] = ..., samples: _Optional[_Iterable[_Union[MetricSample, _Mapping]]] = ...) -> None: ...

class MetricSample(_message.Message):
    __slots__ = ("name", "labels", "value")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    labels: _containers.ScalarMap[str, str]
    value: float
    def __init__(self, name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., value: _Optional[float] = ...) -> None: ...
