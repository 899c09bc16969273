"""BART's graphs do what transformers does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from infer_svc.backends.tensorrt import tensorrt_api
from infer_svc.generation.bart import Bart
from infer_svc.generation.stepper import OrtStepper
from mesh.errors import SettingsError
from tests.infer_svc.generation.networks import (
    BART,
    BART_LENGTH,
    SOURCE,
    agreement,
    assert_logits,
    bart_stepper,
    greedy,
    profile,
    run,
)

ROWS = len(BART.given)
BEGIN = BART.config["decoder_start_token_id"]


def stepper(dtype: type[Any] = np.float32) -> OrtStepper:
    """Return a stepper with a source in each slot."""
    made = bart_stepper(ROWS, dtype)
    for slot, given in enumerate(BART.given):
        made.begin(slot, given)
    return made


def test_sources_of_several_lengths_are_encoded_as_each_alone() -> None:
    encoder = Bart(BART.config, BART.weights, np.float32).encoder(SOURCE)
    ids = np.full((ROWS, SOURCE), BART.config["pad_token_id"], np.int64)
    mask = np.zeros((ROWS, SOURCE), np.int64)
    for row, given in enumerate(BART.given):
        ids[row, : len(given)], mask[row, : len(given)] = given, 1
    together = run(encoder, {"input_ids": ids, "attention_mask": mask, **empty(ROWS)})
    for row, given in enumerate(BART.given):
        one = np.array([given])
        alone = run(encoder, {"input_ids": one, "attention_mask": np.ones_like(one), **empty(1)})
        for name, array in alone.items():
            found = together[name][row, :, : len(given)]
            np.testing.assert_allclose(found, array[0, :, : len(given)], rtol=0, atol=1e-4)
            assert (array[0, :, len(given) :] == 7).all()  # what was there stays


def empty(rows: int) -> dict[str, NDArray[Any]]:
    """Return what the encoder writes into."""
    heads = BART.config["decoder_attention_heads"]
    shape = rows, heads, SOURCE, BART.config["d_model"] // heads
    layers = range(BART.config["decoder_layers"])
    return {f"x{part}_{layer}": np.full(shape, 7, np.float32) for part in "kv" for layer in layers}


def test_tokens_are_those_of_transformers_whatever_the_lengths_of_the_sources() -> None:
    ban = BART.config["eos_token_id"]  # as with min_new_tokens
    assert greedy(stepper(), [[BEGIN]] * ROWS, len(BART.made[0]), ban) == BART.made


@pytest.mark.parametrize("chunk", [1, 5, 24])
def test_logits_are_those_of_transformers_in_chunks_of_any_size(chunk: int) -> None:
    assert_logits(stepper(), BART, chunk)


def test_fp16_names_the_same_tokens_nearly_always() -> None:
    assert agreement(stepper(np.float16), BART) >= 0.97


def test_weights_with_the_prefix_that_some_files_have_are_the_same() -> None:
    weights = {name.removeprefix("model."): array for name, array in BART.weights.items()}
    made = [Bart(BART.config, some, np.float32).encoder(SOURCE) for some in (BART.weights, weights)]
    assert made[0].SerializeToString() == made[1].SerializeToString()


def test_tensorrt_builds_both(tmp_path: Path) -> None:
    bart, path = Bart(BART.config, BART.weights, np.float16), tmp_path / "model.onnx"
    for model in (bart.encoder(SOURCE), bart.step(BART_LENGTH, SOURCE)):
        path.write_bytes(model.SerializeToString())
        wanted = profile(model, rows=(1, 8, 8), tokens=(1, 1, 16), length=(1, SOURCE, SOURCE))
        assert len(tensorrt_api().build(path, [wanted])) > 10_000


@pytest.mark.parametrize(
    ("change", "lengths", "match"),
    [
        ({"activation_function": "swish"}, (8, 8), "activation 'swish' came"),
        ({}, (65, 8), "lengths 65 and 8 came, wanted 1 to 64"),
        ({}, (8, 0), "lengths 8 and 0 came"),
        ({"decoder_layers": 3}, (8, 8), r"weight 'decoder.layers.2.*' is missing"),
    ],
)
def test_what_it_does_not_know_is_refused(
    change: dict[str, Any], lengths: tuple[int, int], match: str
) -> None:
    with pytest.raises(SettingsError, match=match):
        Bart(BART.config | change, BART.weights, np.float32).step(*lengths)
