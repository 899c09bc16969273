"""Triton's clients against a mesh, unchanged."""

import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, serialize_byte_tensor, shared_memory

from mesh.tensor import bytes_tensor
from tests.e2e.conftest import Mesh, start_mesh, stop_mesh
from tests.e2e.test_answers import DIGIT, PAGE


@pytest.fixture
def client(mesh: Mesh) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(mesh.gateway)


def given(name: str, *elements: bytes) -> triton.InferInput:
    made = triton.InferInput(name, [len(elements)], "BYTES")
    made.set_data_from_numpy(bytes_tensor(*elements))
    return made


def test_server_and_models_tell_of_themselves(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.get_server_metadata().name == "trtmesh"
    index = {model.name: model.state for model in client.get_model_repository_index().models}
    assert index.items() >= {"digits-detect": "READY", "dates": "READY"}.items()
    assert index["language.model"] == "READY"
    told = client.get_model_metadata("language")
    assert [(t.name, t.datatype) for t in told.inputs] == [("text", "BYTES")]
    assert client.get_model_config("dates").config.model_transaction_policy.decoupled


def test_pictures_and_texts_in_answers_out(client: triton.InferenceServerClient) -> None:
    picture = DIGIT.read_bytes()
    result = client.infer("digits-classify", [given("image", picture, picture)])
    assert result.as_numpy("labels")[:, 0].tolist() == [b"7", b"7"]
    labels = [triton.InferRequestedOutput("labels")]
    result = client.infer("digits-detect", [given("image", PAGE.read_bytes())], outputs=labels)
    assert {label for label in result.as_numpy("labels")[0].tolist() if label} >= {b"0", b"9"}
    result = client.infer("dates", [given("text", b"27. November 2026")])
    assert result.as_numpy("text").tolist() == [b"2026-11-27"]


def test_model_alone_takes_tensors(client: triton.InferenceServerClient) -> None:
    ids = np.full((2, 16), 5, np.int64)
    inputs = []
    for name in ("input_ids", "attention_mask"):
        made = triton.InferInput(name, [2, 16], "INT64")
        made.set_data_from_numpy(ids)
        inputs.append(made)
    outputs = [triton.InferRequestedOutput("logits", class_count=3)]
    before = client.get_inference_statistics("language.model").model_stats[0]
    result = client.infer("language.model", inputs, outputs=outputs, timeout=5_000_000)
    assert result.as_numpy("logits").shape == (2, 3)
    after = client.get_inference_statistics("language.model").model_stats[0]
    assert after.inference_count - before.inference_count == 2
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1


def test_error_has_tritons_form_and_the_next_request_is_answered(
    client: triton.InferenceServerClient,
) -> None:
    with pytest.raises(InferenceServerException, match="no image"):
        client.infer("digits-classify", [given("image", b"no image")])
    assert client.infer("digits-classify", [given("image", DIGIT.read_bytes())]) is not None


def test_settings_hold_in_every_process(tmp_path: Path) -> None:
    mesh = start_mesh(
        tmp_path / "log", "--workers", "gateway=2", GATEWAY_CLIENT_MEMORY="true",
        OTEL_TRACES_SAMPLER="always_off",
    )  # fmt: skip
    handle = shared_memory.create_shared_memory_region("page", "/test-page", 64)
    try:
        text = bytes_tensor(b"Guten Morgen")
        shared_memory.set_shared_memory_region(handle, [serialize_byte_tensor(text)])
        size = len(serialize_byte_tensor(text).item())
        own = [("grpc.use_local_subchannel_pool", 1)]  # a connection has one data worker
        client = triton.InferenceServerClient(mesh.gateway, channel_args=own)
        client.register_system_shared_memory("page", "/test-page", 64)
        client.update_log_settings({"log_verbose_level": 1})
        client.update_trace_settings(settings={"trace_rate": "1"})
        for _ in range(8):
            other = triton.InferenceServerClient(mesh.gateway, channel_args=own)
            assert other.get_system_shared_memory_status().regions["page"].byte_size == 64
            given = triton.InferInput("text", [1], "BYTES")
            given.set_shared_memory("page", size)
            result = other.infer("language", [given])
            assert result.as_numpy("labels")[0, 0] == b"German"
            other.close()
        client.unregister_system_shared_memory("page")
        with pytest.raises(InferenceServerException, match="not registered"):
            client.infer("language", [given])
        client.close()
        end = time.monotonic() + 10
        while not mesh.cli("trace").stdout.startswith("trace "):
            assert time.monotonic() < end
            time.sleep(0.3)
    finally:
        shared_memory.destroy_shared_memory_region(handle)
        assert stop_mesh(mesh) == 0
    assert '"level": "debug"' in mesh.log.read_text()
