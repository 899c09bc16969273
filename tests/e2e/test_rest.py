"""The mesh over HTTP, by Triton's client and by curl."""

import json
import subprocess
import time
from typing import Any

import tritonclient.http as triton

from mesh.tensor import bytes_tensor
from tests.e2e.conftest import Mesh
from tests.e2e.test_answers import DIGIT, PAGE


def curl(mesh: Mesh, path: str, *words: str) -> Any:
    """Return the JSON that curl prints."""
    command = ["curl", "-sS", "--fail-with-body", "-m", "20", f"http://{mesh.http}{path}", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_curl_sends_files_and_texts(mesh: Mesh) -> None:
    found = curl(mesh, "/v1/detect", "-F", f"file=@{PAGE}")["results"][0]["detections"]
    assert {one["label"] for one in found} >= {"0", "9"}
    ranking = curl(mesh, "/v1/classify", "--data-binary", f"@{DIGIT}")["results"][0]["categories"]
    assert ranking[0]["label"] == "7"
    texts = curl(mesh, "/v1/classify_text", "-d", '{"texts": ["Guten Morgen"]}')
    assert texts["results"][0]["categories"][0]["label"] == "German"
    body = '{"text_input": "27 novembre 2026"}'
    assert curl(mesh, "/v2/models/dates/generate", "-d", body)["text_output"] == "2026-11-27"
    body = '{"model": "numbers", "prompt": "48213 ="}'
    (choice,) = curl(mesh, "/v1/completions", "-d", body)["choices"]
    assert choice["text"].strip().startswith("forty-eight thousand")


def test_tritons_client_is_answered(mesh: Mesh) -> None:
    client = triton.InferenceServerClient(mesh.http)
    assert client.is_server_live() and client.is_server_ready()
    assert client.get_model_config("language.model")["max_batch_size"] > 1
    image = triton.InferInput("image", [2], "BYTES")
    image.set_data_from_numpy(bytes_tensor(*[DIGIT.read_bytes()] * 2))
    result = client.infer("digits-classify", [image])
    assert result.as_numpy("labels")[:, 0].tolist() == [b"7", b"7"]
    index = {one["name"]: one["state"] for one in client.get_model_repository_index()}
    assert index["digits-detect"] == index["language.model"] == "READY"
    client.close()


def test_request_has_a_trace(mesh: Mesh) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    words = ("-H", f"traceparent: 00-{trace}-b7ad6b7169203331-01", "--data-binary", f"@{DIGIT}")
    curl(mesh, "/v1/classify", *words)
    end, parts = time.monotonic() + 15, ("mesh.v1.Mesh/Classify", "Preprocess/Run", "Infer/Run")
    while not all(part in (shown := mesh.cli("trace", trace).stdout) for part in parts):
        assert time.monotonic() < end, shown
        time.sleep(0.5)  # spans leave their processes after a moment
