"""What the Open Inference Protocol sets while a server runs: log levels, tracing, shared memory.

Several processes may serve one address; so this is plain data, which one of them owns and the
others are given.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tritonclient.grpc import service_pb2 as oip

from mesh.errors import InvalidInput, NotFound, Refused
from mesh.item import Handler, Request
from mesh.messages import message_handler
from mesh.oip.regions import CudaRegion, Region, check_cuda, check_system
from mesh.sampling import override_roots

LEVELS = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
"""Of `LogSettings`, with what each lets through."""
OFF, ON = "OFF", "TIMESTAMPS"
MOST_VERBOSE = 2**31 - 1


@dataclass(frozen=True)
class Settings:
    """All of it."""

    level: str = ""
    """Name of a level of `logging`; empty: as the process was started."""
    trace_rate: int | None = None
    """One of so many requests without a trace context is traced; None: as it was started."""
    tracing: bool = True
    """Whether any of them is."""
    regions: Mapping[str, Region] = field(default_factory=dict)
    """System memory, by name."""
    cuda: Mapping[str, CudaRegion] = field(default_factory=dict)
    """Memory of a GPU, by name; in one namespace with `regions`."""

    def to_json(self) -> str:
        """Return the settings as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Return the settings of a JSON text, as `to_json` wrote it; of an empty one defaults."""
        values = json.loads(text or "{}")
        for name, kind in (("regions", Region), ("cuda", CudaRegion)):
            values[name] = {key: kind(**one) for key, one in values.get(name, {}).items()}
        return cls(**values)


def apply(settings: Settings, started_level: str) -> None:
    """Let this process log and trace as it is set.

    Args:
        settings: that hold now.
        started_level: of the process where none is set.
    """
    level = settings.level or started_level.upper()
    if logging.getLogger().level != logging.getLevelNamesMapping()[level]:
        logging.getLogger().setLevel(level)
    if not settings.tracing:
        override_roots(0.0)
    else:
        rate = settings.trace_rate
        override_roots(None if rate is None else (1 / rate if rate else 0.0))


class SettingsOwner:
    """Answers the calls that ask for settings, and change them.

    Args:
        settings: to begin with.
        changed: called after a change; its caller is answered when it returns.
        started_level: of the process, for `LogSettings`.
        started_rate: share of requests that are traced, 0 to 1, for `TraceSetting`.
        system_memory: whether clients may name shared memory.
        cuda_memory: whether they may name memory of a GPU.
    """

    def __init__(
        self,
        settings: Settings,
        changed: Callable[[Settings], Awaitable[None]],
        started_level: str = "INFO",
        started_rate: float = 0.0,
        *,
        system_memory: bool = False,
        cuda_memory: bool = False,
    ) -> None:
        self.settings = settings
        self._changed = changed
        self._level, self._rate = started_level.upper(), started_rate
        self._system, self._cuda = system_memory, cuda_memory

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers of the protocol's methods, by name."""
        methods: dict[str, tuple[Any, Callable[[Any, Request], Awaitable[Any]]]] = {
            "LogSettings": (oip.LogSettingsRequest, self._log),
            "TraceSetting": (oip.TraceSettingRequest, self._trace),
            "SystemSharedMemoryStatus": (oip.SystemSharedMemoryStatusRequest, self._status),
            "SystemSharedMemoryRegister": (oip.SystemSharedMemoryRegisterRequest, self._register),
            "SystemSharedMemoryUnregister": (
                oip.SystemSharedMemoryUnregisterRequest, self._unregister,
            ),
            "CudaSharedMemoryStatus": (oip.CudaSharedMemoryStatusRequest, self._cuda_status),
            "CudaSharedMemoryRegister": (oip.CudaSharedMemoryRegisterRequest, self._cuda_register),
            "CudaSharedMemoryUnregister": (
                oip.CudaSharedMemoryUnregisterRequest, self._cuda_unregister,
            ),
        }  # fmt: skip
        return {name: message_handler(kind, answer) for name, (kind, answer) in methods.items()}

    async def _change(self, **fields: Any) -> None:
        self.settings = replace(self.settings, **fields)
        await self._changed(self.settings)

    async def _log(self, message: Any, _: Request) -> Any:
        given = {name: _value(value) for name, value in message.settings.items()}
        if given:
            await self._change(level=_level({**self._log_settings(), **_checked_log(given)}))
        response = oip.LogSettingsResponse()
        for name, value in self._log_settings().items():
            kind = {bool: "bool_param", int: "uint32_param"}.get(type(value), "string_param")
            setattr(response.settings[name], kind, value)
        return response

    def _log_settings(self) -> dict[str, Any]:
        level = logging.getLevelNamesMapping()[self.settings.level or self._level]
        return {
            "log_file": "", **{name: level <= number for name, number in LEVELS.items()},
            "log_verbose_level": int(level < logging.INFO), "log_format": "default",
        }  # fmt: skip

    async def _trace(self, message: Any, _: Request) -> Any:
        given = {name: list(value.value) for name, value in message.settings.items()}
        if given and message.model_name:
            raise InvalidInput(
                f"trace settings came for model {message.model_name!r}, wanted for all of the "
                "server: leave model_name out"
            )
        if given:
            await self._change(**_checked_trace(given, self.settings))
        response = oip.TraceSettingResponse()
        for name, value in self._trace_settings().items():
            response.settings[name].value.append(value)
        return response

    def _trace_settings(self) -> dict[str, str]:
        rate = self.settings.trace_rate
        if rate is None:
            rate = round(1 / self._rate) if self._rate else 0
        return {
            "trace_level": ON if self.settings.tracing else OFF, "trace_rate": str(rate),
            "trace_count": "-1", "log_frequency": "0", "trace_file": "",
            "trace_mode": "opentelemetry",
        }  # fmt: skip

    async def _status(self, message: Any, _: Request) -> Any:
        response = oip.SystemSharedMemoryStatusResponse()
        for name, region in _named(self.settings.regions, message.name).items():
            one = response.regions[name]
            one.name, one.key = name, region.key
            one.offset, one.byte_size = region.offset, region.byte_size
        return response

    async def _register(self, message: Any, _: Request) -> Any:
        if not self._system:
            raise Refused(
                "shared memory of clients is off, as anybody who reaches this port could name any "
                "of this machine; GATEWAY_CLIENT_MEMORY=true (INFER_… at infer_svc) turns it on"
            )
        self._demand_new(message.name)
        region = Region(message.key, message.offset, message.byte_size)
        check_system(region)
        await self._change(regions={**self.settings.regions, message.name: region})
        return oip.SystemSharedMemoryRegisterResponse()

    async def _unregister(self, message: Any, _: Request) -> Any:
        await self._change(regions=_without(self.settings.regions, message.name))
        return oip.SystemSharedMemoryUnregisterResponse()

    async def _cuda_status(self, message: Any, _: Request) -> Any:
        response = oip.CudaSharedMemoryStatusResponse()
        for name, region in _named(self.settings.cuda, message.name).items():
            one = response.regions[name]
            one.name, one.device_id, one.byte_size = name, region.device, region.byte_size
        return response

    async def _cuda_register(self, message: Any, _: Request) -> Any:
        if not self._cuda:
            raise Refused(
                "memory of a GPU cannot be named here: this process has no GPU, or "
                "INFER_CLIENT_MEMORY is not true; ask infer_svc itself, at its own port"
            )
        self._demand_new(message.name)
        region = CudaRegion(message.raw_handle.hex(), message.device_id, message.byte_size)
        check_cuda(region)
        await self._change(cuda={**self.settings.cuda, message.name: region})
        return oip.CudaSharedMemoryRegisterResponse()

    async def _cuda_unregister(self, message: Any, _: Request) -> Any:
        await self._change(cuda=_without(self.settings.cuda, message.name))
        return oip.CudaSharedMemoryUnregisterResponse()

    def _demand_new(self, name: str) -> None:
        if not name:
            raise InvalidInput("a region without a name came, wanted one")
        if name in self.settings.regions or name in self.settings.cuda:
            raise InvalidInput(f"region {name!r} is registered already; unregister it first")


def _named(regions: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the region of a name, or all where none is given.

    Raises:
        NotFound: there is no such region.
    """
    if not name:
        return regions
    if name not in regions:
        raise NotFound(f"region {name!r} is not registered; there are {sorted(regions)}")
    return {name: regions[name]}


def _without(regions: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return regions without the one of a name; without a name, none."""
    return {key: one for key, one in regions.items() if name and key != name}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("parameter_choice")
    return getattr(value, kind) if kind else None


def _checked_log(given: Mapping[str, Any]) -> dict[str, Any]:
    wanted = {
        **dict.fromkeys(LEVELS, bool), "log_verbose_level": int, "log_file": str, "log_format": str,
    }  # fmt: skip
    for name, value in given.items():
        kind = wanted.get(name)
        if kind is None:
            raise InvalidInput(f"log setting {name!r} came, there are {sorted(wanted)}")
        if type(value) is not kind:
            raise InvalidInput(f"log setting {name!r} is {value!r}, wanted {kind.__name__}")
        fixed = {"log_file": "", "log_format": "default"}
        if name in fixed and value != fixed[name]:
            raise InvalidInput(
                f"log setting {name!r} is {value!r}; logs are lines of JSON at standard error, and "
                "who starts the process says where they go"
            )
    return dict(given)


def _level(given: Mapping[str, Any]) -> str:
    """Return the level that lets through all that is wanted."""
    if given["log_verbose_level"] > 0:
        return "DEBUG"
    numbers = [number for name, number in LEVELS.items() if given[name]]
    return logging.getLevelName(min(numbers, default=logging.CRITICAL))


def _checked_trace(given: Mapping[str, list[str]], settings: Settings) -> dict[str, Any]:
    """Return what trace settings change; an empty list means: as the server was started."""
    fields: dict[str, Any] = {}
    for name, values in given.items():
        if name == "trace_level":
            unknown = set(values) - {OFF, ON}
            if unknown:
                raise InvalidInput(f"trace_level {sorted(unknown)} came, wanted {OFF} or {ON}")
            fields["tracing"] = OFF not in values
        elif name == "trace_rate":
            fields["trace_rate"] = _whole(name, values) if values else None
        elif name in ("trace_count", "log_frequency", "trace_file", "trace_mode"):
            if values and values[0] not in ("-1", "0", "", "opentelemetry"):
                raise InvalidInput(
                    f"{name} {values} came; traces go to the OTLP endpoint of the OTEL_* variables "
                    "or the gateway's own store, all of them"
                )
        else:
            raise InvalidInput(
                f"trace setting {name!r} came, wanted trace_level or trace_rate; now they are "
                f"{settings.trace_rate} and {settings.tracing}"
            )
    return fields


def _whole(name: str, values: list[str]) -> int:
    if len(values) != 1 or not values[0].isascii() or not values[0].isdigit():
        raise InvalidInput(f"{name} {values} came, wanted one whole number from 0")
    return min(int(values[0]), MOST_VERBOSE)
