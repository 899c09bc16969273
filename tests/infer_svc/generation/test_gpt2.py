"""GPT-2's step graph does what transformers does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer_svc.backends.tensorrt import tensorrt_api
from infer_svc.generation.gpt2 import gpt2_step
from infer_svc.generation.stepper import OrtStepper
from mesh.errors import SettingsError
from tests.infer_svc.generation.networks import Network, agreement, assert_logits, greedy, profile

NETWORK = Network("gpt2")
LENGTH = 48
ROWS = len(NETWORK.given)


def stepper(dtype: type[Any] = np.float32) -> OrtStepper:
    model = gpt2_step(NETWORK.config, NETWORK.weights, LENGTH, dtype)
    return OrtStepper(model.SerializeToString(), ROWS)


def test_tokens_are_those_of_transformers_whatever_the_lengths_of_the_prompts() -> None:
    assert greedy(stepper(), NETWORK.given, len(NETWORK.made[0])) == NETWORK.made


@pytest.mark.parametrize("chunk", [1, 5, 24])
def test_logits_are_those_of_transformers_in_chunks_of_any_size(chunk: int) -> None:
    assert_logits(stepper(), NETWORK, chunk)


def test_rows_of_any_age_share_a_step() -> None:
    network, ids = stepper(), NETWORK.forced_ids.tolist()
    network.step(0, [ids[0][:7], [0], ids[2][:2], [0]], [0] * ROWS)
    logits = network.step(0, [ids[0][7:8], ids[1][:3], ids[2][2:3], ids[3][:1]], [7, 0, 2, 0])
    wanted = [NETWORK.forced_logits[row, at] for row, at in enumerate([7, 2, 2, 0])]
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=2e-4)


def test_text_that_goes_on_elsewhere_goes_on_alike() -> None:
    begun = [given + made[:10] for given, made in zip(NETWORK.given, NETWORK.made, strict=True)]
    assert greedy(stepper(), begun, 14) == [made[10:] for made in NETWORK.made]


def test_start_beyond_the_cache_writes_at_its_end_and_disturbs_no_other_row() -> None:
    network, ids = stepper(), NETWORK.forced_ids.tolist()
    network.step(0, [row[:4] for row in ids], [0] * ROWS)
    logits = network.step(0, [row[4:5] for row in ids], [4, 10**6, 4, LENGTH])
    for row in (0, 2):
        np.testing.assert_allclose(logits[row], NETWORK.forced_logits[row, 4], rtol=0, atol=2e-4)
    assert np.isfinite(logits).all()


def test_fp16_names_the_same_tokens_nearly_always() -> None:
    assert agreement(stepper(np.float16), NETWORK) >= 0.97


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_tensorrt_builds_it_with_a_cache_in_place(tmp_path: Path, dtype: type[Any]) -> None:
    model = gpt2_step(NETWORK.config, NETWORK.weights, LENGTH, dtype)
    path = tmp_path / "step.onnx"
    path.write_bytes(model.SerializeToString())
    wanted = profile(model, rows=(1, 8, 8), tokens=(1, 1, 16))
    assert len(tensorrt_api().build(path, [wanted])) > 10_000


@pytest.mark.parametrize(
    ("change", "length", "match"),
    [
        ({"activation_function": "swish"}, 8, "activation 'swish' came"),
        ({"scale_attn_weights": False}, 8, "scaled in another way"),
        ({"scale_attn_by_inverse_layer_idx": True}, 8, "scaled in another way"),
        ({}, 65, "a cache of 65 came, wanted 1 to 64"),
        ({}, 0, "a cache of 0 came"),
        ({"n_layer": 3}, 8, "weight 'h.2.ln_1.weight' is missing"),
    ],
)
def test_what_it_does_not_know_is_refused(change: dict[str, Any], length: int, match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        gpt2_step(NETWORK.config | change, NETWORK.weights, length, np.float32)
