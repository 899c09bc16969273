"""What a model's config says, and what a request may change of it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from infer_svc.generation.rules import Rules
from infer_svc.generation.running import Prompt
from infer_svc.generation.sampling import GREEDY, Sampling
from infer_svc.generation.settings import (
    FILE,
    GenerationConfig,
    Parameters,
    read_generation_config,
    read_parameters,
)
from mesh.errors import InvalidInput, SettingsError

CNN = {
    "_from_model_config": True, "bos_token_id": 0, "decoder_start_token_id": 2,
    "early_stopping": True, "eos_token_id": 2, "forced_bos_token_id": 0, "forced_eos_token_id": 2,
    "length_penalty": 2.0, "max_length": 142, "min_length": 56, "no_repeat_ngram_size": 3,
    "num_beams": 4, "pad_token_id": 1,
}  # fmt: skip
"""As published with facebook/bart-large-cnn."""


def prompt(config: dict[str, Any], encoded: bool = False, **asked: Any) -> Prompt:
    return GenerationConfig.model_validate(config).prompt(
        [5, 6, 7], [8], Parameters(**asked), 40, encoded=encoded, deadline=math.inf, client="c"
    )


def test_reference_model_for_summaries_is_understood() -> None:
    made = prompt(CNN, encoded=True)
    assert (made.ids, made.source, made.emitted) == ([2], [5, 6, 7], [8])
    # 142 with the start token; of the 40 that this cache holds, one is the start token.
    assert made.tokens == 39
    assert made.rules == Rules(frozenset([2]), 55, 3, 0, 2)
    assert made.sampling == GREEDY


def test_decoder_alone_goes_on_after_its_prompt() -> None:
    made = prompt({"eos_token_id": [1, 2], "max_length": 20})
    assert (made.ids, made.source, made.tokens) == ([5, 6, 7], (), 17)
    assert made.rules.stop == {1, 2}
    assert prompt({"max_new_tokens": 9}).tokens == 9
    assert prompt({}).tokens == 37


@pytest.mark.parametrize(
    ("config", "asked", "sampling"),
    [
        ({}, {}, GREEDY),
        ({"temperature": 0.5, "top_k": 5}, {}, GREEDY),
        ({"do_sample": True}, {}, Sampling(1.0, 50)),
        ({"do_sample": True, "top_k": 0}, {}, Sampling(1.0)),
        ({"do_sample": True, "temperature": 0}, {}, Sampling(0.0, 50)),
        ({"do_sample": True, "temperature": 0.5, "top_k": 5, "top_p": 0.9}, {"seed": 3},
         Sampling(0.5, 5, 0.9, 3)),
        ({"do_sample": True, "top_k": 5}, {"top_k": 0, "temperature": 0}, Sampling(0.0)),
        ({"repetition_penalty": 1.5}, {"temperature": 2}, Sampling(2, repetition_penalty=1.5)),
    ],
)  # fmt: skip
def test_request_changes_what_it_names(
    config: dict[str, Any], asked: dict[str, Any], sampling: Sampling
) -> None:
    assert prompt(config, **asked).sampling == sampling


def test_more_tokens_than_there_is_room_for_are_left_to_be_refused() -> None:
    assert prompt({}, max_tokens=1000).tokens == 1000


def test_file_is_read_and_what_is_not_known_in_it_is_not(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(CNN))
    assert read_generation_config(tmp_path).forced_bos_token_id == 0


@pytest.mark.parametrize(
    ("text", "match"),
    [(None, "No such file"), ("[", "Invalid JSON"), ('{"eos_token_id": "x"}', "eos_token_id"),
     ('{"top_k": -1}', "top_k"), ('{"eos_token_id": [-2]}', "eos_token_id"),
     ('{"repetition_penalty": 0}', "repetition_penalty"), ('{"temperature": NaN}', "temperature")],
)  # fmt: skip
def test_file_that_is_missing_or_broken_is_named(
    tmp_path: Path, text: str | None, match: str
) -> None:
    if text is not None:
        (tmp_path / FILE).write_text(text)
    with pytest.raises(SettingsError, match=match) as caught:
        read_generation_config(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_parameters_are_read() -> None:
    assert read_parameters(b"") == Parameters()
    assert read_parameters(b'{"max_tokens": 3, "top_p": 0.5}') == Parameters(
        max_tokens=3, top_p=0.5
    )


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[]", "parameters: Input should be"),
        (b"[" * 100_000, "no JSON"),
        (b'{"repetition_penalty": 1e-9}', "repetition_penalty"),
        (b'{"max_tokens": 0}', "max_tokens: .* greater than or equal to 1 .*came 0"),
        (b'{"temperature": -1}', "temperature"),
        (b'{"top_p": 0}', "top_p"),
        (b'{"seed": 18446744073709551616}', "seed"),
        (b'{"beams": 4}', "beams: Extra inputs.*there are max_tokens, temperature"),
        (b'{"temperature": NaN}', "temperature"),
    ],
)
def test_parameters_that_cannot_be_used_are_named(text: bytes, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        read_parameters(text)


@pytest.mark.parametrize("name", ["decoder_start_token_id", "eos_token_id", "forced_eos_token_id"])
def test_ids_that_are_no_tokens_are_named(name: str) -> None:
    GenerationConfig.model_validate({name: 49}).check(50)
    with pytest.raises(SettingsError, match=rf"{name} \[50\] came, the vocabulary has 50"):
        GenerationConfig.model_validate({name: 50}).check(50)
