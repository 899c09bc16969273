"""Settings that change while a server runs; asked for by Triton's client."""

import base64
import logging
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from mesh.layers import errors
from mesh.oip.regions import FOLDER, CudaRegion, Region
from mesh.oip.service import NAME, SETTINGS
from mesh.oip.settings import Settings, SettingsOwner, apply
from mesh.sampling import Sampling, override_roots
from mesh.telemetry import is_sampled
from mesh.unary import unary_method
from tests.mesh.spans import Spans


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)
    override_roots(None)


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[InferenceServerClient, list[Settings]]]:
    """Serve the calls, and note what was changed."""
    changes: list[Settings] = []

    async def changed(settings: Settings) -> None:
        changes.append(settings)

    owner = SettingsOwner(Settings(), changed, "info", 0.01, **options)
    handlers = owner.handlers()
    assert handlers.keys() == set(SETTINGS)
    methods = {name: unary_method(errors(handler), name) for name, handler in handlers.items()}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, methods),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with InferenceServerClient(address) as client:
        yield client, changes
    await server.stop(None)


async def test_log_levels_are_told_and_set() -> None:
    async with serving() as (client, changes):
        told = (await client.get_log_settings(as_json=True))["settings"]
        assert told["log_info"] == {"bool_param": True}
        assert "log_verbose_level" in told
        for given, level in (
            ({"log_verbose_level": 1}, "DEBUG"), ({"log_verbose_level": 0}, "INFO"),
            ({"log_info": False}, "WARNING"), ({"log_warning": False}, "ERROR"),
            ({"log_error": False}, "CRITICAL"), ({"log_warning": True}, "WARNING"),
        ):  # fmt: skip
            await client.update_log_settings(given)
            assert changes[-1].level == level
            apply(changes[-1], "INFO")
            assert logging.getLogger().level == logging.getLevelNamesMapping()[level]


async def test_tracing_is_told_and_set() -> None:
    async with serving() as (client, changes):
        told = (await client.get_trace_settings(as_json=True))["settings"]
        assert told["trace_rate"]["value"] == ["100"]
        assert told["trace_level"]["value"] == ["TIMESTAMPS"]
        await client.update_trace_settings(settings={"trace_rate": "1"})
        apply(changes[-1], "INFO")
        sampling = Sampling(Spans().tracer, "m")  # type: ignore[arg-type]
        assert all(is_sampled(sampling.decide(b"", "t")) for _ in range(50))
        await client.update_trace_settings(settings={"trace_rate": "4"})
        apply(changes[-1], "INFO")
        share = sum(is_sampled(sampling.decide(b"", "t")) for _ in range(4000)) / 4000
        assert 0.2 < share < 0.3
        await client.update_trace_settings(settings={"trace_level": ["OFF"]})
        apply(changes[-1], "INFO")
        assert not any(is_sampled(sampling.decide(b"", "t")) for _ in range(50))
        await client.update_trace_settings(
            settings={"trace_level": ["TIMESTAMPS"], "trace_rate": None}
        )
        assert changes[-1].trace_rate is None


@pytest.mark.parametrize(
    ("call", "given", "part"),
    [
        ("update_log_settings", {"log_file": "/tmp/x"}, "standard error"),
        ("update_log_settings", {"log_format": "ISO8601"}, "standard error"),
        ("update_log_settings", {"other": True}, "'other' came"),
        ("update_trace_settings", {"settings": {"trace_rate": "x"}}, "whole number"),
        ("update_trace_settings", {"settings": {"trace_level": ["TENSORS"]}}, "TENSORS"),
        ("update_trace_settings", {"settings": {"trace_file": "x"}}, "OTLP"),
        ("update_trace_settings", {"settings": {"other": "x"}}, "'other' came"),
        ("update_trace_settings", {"model_name": "m", "settings": {"trace_rate": "1"}}, "leave"),
    ],
)
async def test_setting_that_cannot_be_changes_nothing(
    call: str, given: dict[str, Any], part: str
) -> None:
    async with serving() as (client, changes):
        with pytest.raises(InferenceServerException, match=part):
            if call == "update_log_settings":
                await client.update_log_settings(given)
            else:
                await client.update_trace_settings(**given)
        assert changes == []


@pytest.fixture
def key() -> Iterator[str]:
    path = FOLDER / f"test-{secrets.token_hex(8)}"
    path.write_bytes(bytes(64))
    yield f"/{path.name}"
    path.unlink()


async def test_memory_is_registered_told_and_forgotten(key: str) -> None:
    async with serving(system_memory=True, cuda_memory=True) as (client, changes):
        await client.register_system_shared_memory("a", key, 32, offset=8)
        await client.register_system_shared_memory("b", key, 64)
        assert changes[-1].regions["a"] == Region(key, 8, 32)
        told = await client.get_system_shared_memory_status()
        assert {name: one.byte_size for name, one in told.regions.items()} == {"a": 32, "b": 64}
        with pytest.raises(InferenceServerException, match="'a' is registered already"):
            await client.register_system_shared_memory("a", key, 32)
        handle = bytes(range(64))
        request = dict(name="a", raw_handle=handle, device_id=0, byte_size=9)
        with pytest.raises(InferenceServerException, match="'a' is registered already"):
            await client.register_cuda_shared_memory(**_encoded(request))
        await client.register_cuda_shared_memory(**_encoded({**request, "name": "c"}))
        assert changes[-1].cuda["c"] == CudaRegion(handle.hex(), 0, 9)
        assert (await client.get_cuda_shared_memory_status("c")).regions["c"].byte_size == 9
        with pytest.raises(InferenceServerException, match="'z' is not registered"):
            await client.get_system_shared_memory_status("z")
        await client.unregister_system_shared_memory("a")
        assert changes[-1].regions.keys() == {"b"}
        await client.unregister_system_shared_memory()
        await client.unregister_cuda_shared_memory()
        assert (changes[-1].regions, changes[-1].cuda) == ({}, {})


def _encoded(request: dict[str, Any]) -> dict[str, Any]:
    """Return arguments as the client wants them: it decodes the handle from base64."""
    return {**request, "raw_handle": base64.b64encode(request["raw_handle"])}


async def test_memory_is_off_unless_it_is_asked_for(key: str) -> None:
    async with serving() as (client, changes):
        with pytest.raises(InferenceServerException, match="CLIENT_MEMORY=true"):
            await client.register_system_shared_memory("a", key, 32)
        with pytest.raises(InferenceServerException, match="ask infer_svc itself"):
            await client.register_cuda_shared_memory(
                **_encoded({"name": "c", "raw_handle": bytes(64), "device_id": 0, "byte_size": 1})
            )
        assert changes == []
        assert not (await client.get_system_shared_memory_status()).regions


def test_settings_are_json_and_back() -> None:
    settings = Settings("DEBUG", 5, False, {"a": Region("/k", 1, 2)}, {"c": CudaRegion("00", 1, 2)})
    assert Settings.from_json(settings.to_json()) == settings
    assert Settings.from_json("") == Settings()
