from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Route(_message.Message):
    __slots__ = ("pipeline", "stable", "canary", "weight", "sticky", "shadow", "rule")
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    STABLE_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    STICKY_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    pipeline: str
    stable: str
    canary: str
    weight: float
    sticky: str
    shadow: str
    rule: RouteRule
    def __init__(self, pipeline: _Optional[str] = ..., stable: _Optional[str] = ..., canary: _Optional[str] = ..., weight: _Optional[float] = ..., sticky: _Optional[str] = ..., shadow: _Optional[str] = ..., rule: _Optional[_Union[RouteRule, _Mapping]] = ...) -> None: ...

class RouteRule(_message.Message):
    __slots__ = ("p99_ratio", "error_rate", "min_samples", "window_s", "promote_after_s")
    P99_RATIO_FIELD_NUMBER: _ClassVar[int]
    ERROR_RATE_FIELD_NUMBER: _ClassVar[int]
    MIN_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    WINDOW_S_FIELD_NUMBER: _ClassVar[int]
    PROMOTE_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    p99_ratio: float
    error_rate: float
    min_samples: int
    window_s: float
    promote_after_s: float
    def __init__(self, p99_ratio: _Optional[float] = ..., error_rate: _Optional[float] = ..., min_samples: _Optional[int] = ..., window_s: _Optional[float] = ..., promote_after_s: _Optional[float] = ...) -> None: ...

class SetRouteRequest(_message.Message):
    __slots__ = ("route", "remove", "promote", "rollback", "by")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    PROMOTE_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    route: Route
    remove: bool
    promote: bool
    rollback: bool
    by: str
    def __init__(self, route: _Optional[_Union[Route, _Mapping]] = ..., remove: _Optional[bool] = ..., promote: _Optional[bool] = ..., rollback: _Optional[bool] = ..., by: _Optional[str] = ...) -> None: ...

class GetRoutesRequest(_message.Message):
    __slots__ = ("pipeline",)
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    pipeline: str
    def __init__(self, pipeline: _Optional[str] = ...) -> None: ...

class RoutesResponse(_message.Message):
    __slots__ = ("routes", "changes")
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    routes: _containers.RepeatedCompositeFieldContainer[RouteState]
    changes: _containers.RepeatedCompositeFieldContainer[RouteChange]
    def __init__(self, routes: _Optional[_Iterable[_Union[RouteState, _Mapping]]] = ..., changes: _Optional[_Iterable[_Union[RouteChange, _Mapping]]] = ...) -> None: ...

class RouteState(_message.Message):
    __slots__ = ("route", "arms")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    route: Route
    arms: _containers.RepeatedCompositeFieldContainer[RouteArm]
    def __init__(self, route: _Optional[_Union[Route, _Mapping]] = ..., arms: _Optional[_Iterable[_Union[RouteArm, _Mapping]]] = ...) -> None: ...

class RouteArm(_message.Message):
    __slots__ = ("version", "arm", "requests", "errors", "p50_ms", "p99_ms", "same")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    P50_MS_FIELD_NUMBER: _ClassVar[int]
    P99_MS_FIELD_NUMBER: _ClassVar[int]
    SAME_FIELD_NUMBER: _ClassVar[int]
    version: str
    arm: str
    requests: int
    errors: int
    p50_ms: float
    p99_ms: float
    same: int
    def __init__(self, version: _Optional[str] = ..., arm: _Optional[str] = ..., requests: _Optional[int] = ..., errors: _Optional[int] = ..., p50_ms: _Optional[float] = ..., p99_ms: _Optional[float] = ..., same: _Optional[int] = ...) -> None: ...

class RouteChange(_message.Message):
    __slots__ = ("time", "pipeline", "by", "what")
    TIME_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    time: float
    pipeline: str
    by: str
    what: str
    def __init__(self, time: _Optional[float] = ..., pipeline: _Optional[str] = ..., by: _Optional[str] = ..., what: _Optional[str] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("routes", "settings")
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    settings: str
    def __init__(self, routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ..., settings: _Optional[str] = ...) -> None: ...

class RouteFigures(_message.Message):
    __slots__ = ("arms",)
    ARMS_FIELD_NUMBER: _ClassVar[int]
    arms: _containers.RepeatedCompositeFieldContainer[ArmFigures]
    def __init__(self, arms: _Optional[_Iterable[_Union[ArmFigures, _Mapping]]] = ...) -> None: ...

class ArmFigures(_message.Message):
    __slots__ = ("pipeline", "version", "arm", "requests", "errors", "same", "seconds")
    class SecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    SAME_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    pipeline: str
    version: str
    arm: str
    requests: int
    errors: int
    same: int
    seconds: _containers.ScalarMap[int, int]
    def __init__(self, pipeline: _Optional[str] = ..., version: _Optional[str] = ..., arm: _Optional[str] = ..., requests: _Optional[int] = ..., errors: _Optional[int] = ..., same: _Optional[int] = ..., seconds: _Optional[_Mapping[int, int]] = ...) -> None: ...

class ClaimRequest(_message.Message):
    __slots__ = ("key", "digest", "lease_s")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    key: str
    digest: bytes
    lease_s: float
    def __init__(self, key: _Optional[str] = ..., digest: _Optional[bytes] = ..., lease_s: _Optional[float] = ...) -> None: ...

class ClaimResponse(_message.Message):
    __slots__ = ("run", "reply")
    RUN_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    run: bool
    reply: bytes
    def __init__(self, run: _Optional[bool] = ..., reply: _Optional[bytes] = ...) -> None: ...

class CompleteRequest(_message.Message):
    __slots__ = ("key", "digest", "reply", "failed")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    key: str
    digest: bytes
    reply: bytes
    failed: bool
    def __init__(self, key: _Optional[str] = ..., digest: _Optional[bytes] = ..., reply: _Optional[bytes] = ..., failed: _Optional[bool] = ...) -> None: ...

class CompleteResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
