"""Routes of Triton's extensions about settings and shared memory."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from tritonclient.grpc import service_pb2 as oip

from gateway.rest.answers import as_json, call
from gateway.rest.bodies import from_base64, read
from mesh.errors import InvalidInput
from mesh.oip.service import OipService

Answer = Callable[..., Awaitable[Response]]


def settings_routes(service: OipService, most_bytes: int) -> APIRouter:
    """Return the routes.

    Args:
        service: of the protocol.
        most_bytes: of a body.
    """
    routes = _Routes(service, most_bytes)
    router = APIRouter(tags=["Settings and shared memory"])

    def add(method: str, path: str, answer: Answer) -> None:
        router.add_api_route(path, answer, methods=[method], response_model=None)

    for path in ("/v2/trace/setting", "/v2/models/{model}/trace/setting"):
        add("GET", path, routes.trace)
        add("POST", path, routes.trace)
    add("GET", "/v2/logging", routes.log)
    add("POST", "/v2/logging", routes.log)
    for kind in ("system", "cuda"):
        base = f"/v2/{kind}sharedmemory"
        for path in (base, f"{base}/region/{{region}}"):
            add("GET", f"{path}/status", getattr(routes, f"{kind}_status"))
            add("POST", f"{path}/unregister", getattr(routes, f"{kind}_unregister"))
        add("POST", f"{base}/region/{{region}}/register", getattr(routes, f"{kind}_register"))
    return router


class _Routes:
    def __init__(self, service: OipService, most_bytes: int) -> None:
        self._handlers = service.handlers
        self._most = most_bytes

    async def trace(self, http: Request, model: str = "") -> Response:
        """Which requests are traced: tell, or set `trace_level` and `trace_rate`."""
        message = oip.TraceSettingRequest(model_name=model)
        for name, value in (await self._body(http)).items():
            values = value if isinstance(value, list) else [] if value is None else [value]
            message.settings[name].value.extend(map(str, values))
        answer = await call(self._handlers, http, message, oip)
        told = {name: list(value.value) for name, value in answer.settings.items()}
        # A level is a list, everything else one text.
        return as_json({
            name: values if name == "trace_level" else "".join(values)
            for name, values in told.items()
        })  # fmt: skip

    async def log(self, http: Request) -> Response:
        """What is logged: tell, or set `log_info`, `log_warning`, `log_verbose_level`, …."""
        message = oip.LogSettingsRequest()
        for name, value in (await self._body(http)).items():
            kind = {bool: "bool_param", int: "uint32_param", str: "string_param"}.get(type(value))
            if kind is None or (kind == "uint32_param" and not 0 <= value < 2**32):
                raise InvalidInput(f"log setting {name!r} is {value!r:.80}")
            setattr(message.settings[name], kind, value)
        answer = await call(self._handlers, http, message, oip)
        return as_json({
            name: getattr(value, value.WhichOneof("parameter_choice"))
            for name, value in answer.settings.items()
        })  # fmt: skip

    async def system_status(self, http: Request, region: str = "") -> Response:
        """System memory that is registered."""
        message = oip.SystemSharedMemoryStatusRequest(name=region)
        answer = await call(self._handlers, http, message, oip)
        return as_json([
            {"name": one.name, "key": one.key, "offset": one.offset, "byte_size": one.byte_size}
            for _, one in sorted(answer.regions.items())
        ])  # fmt: skip

    async def system_register(self, http: Request, region: str) -> Response:
        """Register memory: `key`, `offset`, `byte_size`."""
        given = await self._body(http)
        message = oip.SystemSharedMemoryRegisterRequest(
            name=region, key=_field(given, "key", str), offset=_field(given, "offset", int, 0),
            byte_size=_field(given, "byte_size", int),
        )  # fmt: skip
        await call(self._handlers, http, message, oip)
        return Response()

    async def system_unregister(self, http: Request, region: str = "") -> Response:
        """Forget a region, or all."""
        message = oip.SystemSharedMemoryUnregisterRequest(name=region)
        await call(self._handlers, http, message, oip)
        return Response()

    async def cuda_status(self, http: Request, region: str = "") -> Response:
        """Memory of GPUs that is registered."""
        message = oip.CudaSharedMemoryStatusRequest(name=region)
        answer = await call(self._handlers, http, message, oip)
        return as_json([
            {"name": one.name, "device_id": one.device_id, "byte_size": one.byte_size}
            for _, one in sorted(answer.regions.items())
        ])  # fmt: skip

    async def cuda_register(self, http: Request, region: str) -> Response:
        """Register memory of a GPU: `raw_handle.b64`, `device_id`, `byte_size`."""
        given = await self._body(http)
        handle = _field(given, "raw_handle", dict)
        raw = from_base64("raw_handle.b64", _field(handle, "b64", str))
        message = oip.CudaSharedMemoryRegisterRequest(
            name=region, raw_handle=raw, device_id=_field(given, "device_id", int, 0),
            byte_size=_field(given, "byte_size", int),
        )  # fmt: skip
        await call(self._handlers, http, message, oip)
        return Response()

    async def cuda_unregister(self, http: Request, region: str = "") -> Response:
        """Forget a region, or all."""
        message = oip.CudaSharedMemoryUnregisterRequest(name=region)
        await call(self._handlers, http, message, oip)
        return Response()

    async def _body(self, http: Request) -> dict[str, Any]:
        """Return a body's JSON object; without a body, an empty one."""
        body = await read(http, self._most)
        try:
            given = json.loads(body or b"{}")
        except ValueError as err:
            raise InvalidInput(f"the body is no JSON: {err}") from err
        if not isinstance(given, dict):
            raise InvalidInput(f"the body is {given!r:.80}, wanted a JSON object")
        return given


def _field(given: dict[str, Any], name: str, kind: type[Any], default: Any = None) -> Any:
    value = given.get(name, default)
    if type(value) is not kind or (kind is int and not 0 <= value < 2**63):
        raise InvalidInput(f"{name} is {value!r:.80}, wanted {kind.__name__}")
    return value
