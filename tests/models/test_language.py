"""The committed language model keeps its promises."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "models" / "language"
PLAIN = {
    "Guten Morgen": "German",
    "Where is the railway station, please?": "English",
    "Bonjour à tous, comment allez-vous ?": "French",
    "Stasera mangiamo insieme in giardino.": "Italian",
    "Сегодня хорошая погода": "Russian",
    "今日はとても良い天気ですね": "Japanese",
    "Dziękuję bardzo za pomoc": "Polish",
    "Bu akşam nereye gidiyoruz?": "Turkish",
}


@pytest.fixture(scope="module")
def evaluate(script: Callable[[str, str], ModuleType]) -> ModuleType:
    return script("language", "evaluate")


@pytest.fixture(scope="module")
def session(evaluate: ModuleType) -> Any:
    return evaluate.session()


@pytest.fixture(scope="module")
def tokens(evaluate: ModuleType) -> Any:
    return evaluate.tokenizer()


@pytest.fixture(scope="module")
def split(evaluate: ModuleType) -> Any:
    return evaluate.data.split()


def test_held_out_accuracy_on_sentences_is_90_percent(
    evaluate: ModuleType, session: Any, tokens: Any, split: Any
) -> None:
    samples = evaluate.data.sentences(split[1])
    assert len(samples) > 1900
    assert evaluate.accuracy(session, tokens, samples) >= 0.90


def test_held_out_accuracy_with_single_words_is_82_percent(
    evaluate: ModuleType, session: Any, tokens: Any, split: Any
) -> None:
    assert len(split[1]) > 2700
    assert evaluate.accuracy(session, tokens, split[1]) >= 0.82


def test_no_text_is_on_both_sides_of_the_split(split: Any) -> None:
    train, held_out = ({text.casefold() for text, _ in side} for side in split)
    assert not train & held_out


def test_labels_file_has_the_order_of_the_training(evaluate: ModuleType) -> None:
    lines = (FOLDER / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert lines == evaluate.data.LABELS


@pytest.mark.parametrize("text", PLAIN)
def test_plain_sentence_is_recognized(
    text: str, evaluate: ModuleType, session: Any, tokens: Any
) -> None:
    answer = evaluate.logits(session, tokens, [text]).argmax()
    assert evaluate.data.LABELS[answer] == PLAIN[text]


def test_one_sentence_scores_the_same_alone_and_padded_in_a_batch(
    evaluate: ModuleType, session: Any, tokens: Any
) -> None:
    texts = [*PLAIN, " ".join(PLAIN) * 3]
    alone = np.concatenate([evaluate.logits(session, tokens, [text]) for text in texts])
    together = evaluate.logits(session, tokens, texts)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


def test_padding_to_a_fixed_length_changes_nothing(
    evaluate: ModuleType, session: Any, tokens: Any
) -> None:
    fed = tokens("Guten Morgen", padding="max_length", max_length=128, return_tensors="np")
    feeds = {name: fed[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    padded = session.run(["logits"], feeds)[0]
    alone = evaluate.logits(session, tokens, ["Guten Morgen"])
    np.testing.assert_allclose(padded, alone, rtol=0, atol=1e-5)


def test_longest_input_is_128_tokens(evaluate: ModuleType, session: Any, tokens: Any) -> None:
    fed = tokens("слово " * 500, truncation=True)
    assert len(fed["input_ids"]) == tokens.model_max_length == 128
    assert evaluate.logits(session, tokens, ["слово " * 500]).shape == (1, 46)


def test_tokenizer_is_fast_and_knows_every_script(tokens: Any) -> None:
    assert tokens.is_fast
    assert tokens.model_input_names == ["input_ids", "attention_mask"]
    ids = tokens("漢字 ქართული தமிழ் 😀")["input_ids"]
    assert tokens.unk_token_id not in ids
    assert (ids[0], ids[-1]) == (tokens.cls_token_id, tokens.sep_token_id)


def test_no_everyday_phrase_of_the_training_is_scored(evaluate: ModuleType, split: Any) -> None:
    phrases = {text.casefold() for text, _ in evaluate.data.everyday()}
    assert {label for _, label in evaluate.data.everyday()} == set(range(46))
    assert not phrases & {text.casefold() for text, _ in split[1]}
