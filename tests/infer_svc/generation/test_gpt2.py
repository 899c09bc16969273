"""GPT-2's step graph does what transformers does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer_svc.backends.tensorrt import tensorrt_api
from infer_svc.generation.gpt2 import gpt2_step
from mesh.errors import SettingsError
from tests.infer_svc.generation.networks import (
    GPT2,
    GPT2_LENGTH,
    agreement,
    assert_logits,
    gpt2_stepper,
    greedy,
    profile,
)

ROWS = len(GPT2.given)


def test_tokens_are_those_of_transformers_whatever_the_lengths_of_the_prompts() -> None:
    assert greedy(gpt2_stepper(ROWS), GPT2.given, len(GPT2.made[0])) == GPT2.made


@pytest.mark.parametrize("chunk", [1, 5, 24])
def test_logits_are_those_of_transformers_in_chunks_of_any_size(chunk: int) -> None:
    assert_logits(gpt2_stepper(ROWS), GPT2, chunk)


def test_rows_of_any_age_share_a_step() -> None:
    network, ids = gpt2_stepper(ROWS), GPT2.forced_ids.tolist()
    network.step(0, [ids[0][:7], [0], ids[2][:2], [0]], [0] * ROWS)
    step = network.step(0, [ids[0][7:8], ids[1][:3], ids[2][2:3], ids[3][:1]], [7, 0, 2, 0])
    wanted = [GPT2.forced_logits[row, at] for row, at in enumerate([7, 2, 2, 0])]
    np.testing.assert_allclose(step.all_logits, wanted, rtol=0, atol=2e-4)


def test_text_that_goes_on_elsewhere_goes_on_alike() -> None:
    begun = [given + made[:10] for given, made in zip(GPT2.given, GPT2.made, strict=True)]
    assert greedy(gpt2_stepper(ROWS), begun, 14) == [made[10:] for made in GPT2.made]


def test_start_beyond_the_cache_writes_at_its_end_and_disturbs_no_other_row() -> None:
    network, ids = gpt2_stepper(ROWS), GPT2.forced_ids.tolist()
    network.step(0, [row[:4] for row in ids], [0] * ROWS)
    step = network.step(0, [row[4:5] for row in ids], [4, 10**6, 4, GPT2_LENGTH])
    logits = step.all_logits
    for row in (0, 2):
        np.testing.assert_allclose(logits[row], GPT2.forced_logits[row, 4], rtol=0, atol=2e-4)
    assert np.isfinite(logits).all()


def test_fp16_names_the_same_tokens_nearly_always() -> None:
    assert agreement(gpt2_stepper(ROWS, np.float16), GPT2) >= 0.97


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_tensorrt_builds_it_with_a_cache_in_place(tmp_path: Path, dtype: type[Any]) -> None:
    model = gpt2_step(GPT2.config, GPT2.weights, GPT2_LENGTH, dtype)
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
        gpt2_step(GPT2.config | change, GPT2.weights, length, np.float32)
