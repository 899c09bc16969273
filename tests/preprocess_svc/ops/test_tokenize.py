"""`tokenize` gives the tokens of the tokenizer, of any text, in any thread."""

import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mesh.errors import InvalidInput
from mesh.op import Op, Outcome, make_op
from mesh.tensor import TensorSpec, bytes_tensor, check_tensors
from preprocess_svc.ops import OPS

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FOX = "the quick brown fox"


def word_pieces() -> PreTrainedTokenizerFast:
    pieces = [*SPECIAL, *LETTERS, *("##" + letter for letter in LETTERS), *FOX.split(), "."]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    # What a folder says of truncation and padding must not count.
    backend.enable_truncation(5)
    backend.enable_padding(length=7)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def byte_pairs() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("a", "a"), ("aa", "aa"), ("Ġ", "the"), ("o", "w")]
    pieces = [*alphabet, *("".join(pair) for pair in merges)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    word_pieces().save_pretrained(root / "words")
    byte_pairs().save_pretrained(root / "pairs")
    (root / "empty").mkdir()
    (root / "broken").mkdir()
    (root / "broken" / "tokenizer.json").write_text("{")
    code = {"auto_map": {"AutoTokenizer": ["code.Code", "code.Code"]}}
    (root / "code").mkdir()
    (root / "code" / "tokenizer_config.json").write_text(json.dumps(code))
    (root / "code" / "code.py").write_text("raise SystemExit('the code of the folder ran')")
    slow = {"tokenizer_class": "CanineTokenizer"}
    (root / "slow").mkdir()
    (root / "slow" / "tokenizer_config.json").write_text(json.dumps(slow))
    return root


def make(repository: Path, **parameters: object) -> Op:
    values = {"folder": "words", **parameters}
    return make_op(OPS, "tokenize", json.dumps(values).encode(), repository)


def run(op: Op, text: str | bytes) -> Outcome:
    tensors = {"text": bytes_tensor(text.encode() if isinstance(text, str) else text)}
    check_tensors(tensors, op.inputs)
    outcome = op(tensors, {})
    check_tensors(outcome.tensors, op.outputs)
    return outcome


def ids(op: Op, text: str) -> list[int]:
    tokens: list[int] = run(op, text).tensors["input_ids"][0].tolist()
    return tokens


def test_a_text_becomes_ids_with_special_tokens(repository: Path) -> None:
    op = make(repository)
    assert [str(s) for s in op.outputs] == ["input_ids: INT64[1,-1]", "attention_mask: INT64[1,-1]"]
    outcome = run(op, "The quick FOX.")
    assert outcome.tensors["input_ids"].tolist() == [[2, 56, 57, 59, 60, 3]]
    assert outcome.tensors["attention_mask"].tolist() == [[1] * 6]
    assert outcome.context["token_count"].tolist() == [6]
    check_tensors(outcome.context, [TensorSpec("token_count", "INT32", (1,))])


def test_token_type_ids_come_where_they_are_wanted(repository: Path) -> None:
    outcome = run(make(repository, token_type_ids=True, padding=[128]), "fox")
    assert outcome.tensors["token_type_ids"].tolist() == [[0] * 128]


@pytest.mark.parametrize(
    ("words", "length"), [(1, 8), (6, 8), (7, 16), (30, 32), (31, 32)], ids=str
)
def test_a_text_is_padded_to_the_smallest_length_that_holds_it(
    repository: Path, words: int, length: int
) -> None:
    outcome = run(make(repository, max_length=32, padding=[16, 8, 32]), "fox " * words)
    count = min(words + 2, 32)
    padding = length - count
    assert outcome.tensors["input_ids"][0].tolist() == [2, *[59] * (count - 2), 3, *[0] * padding]
    assert outcome.tensors["attention_mask"][0].tolist() == [1] * count + [0] * padding
    assert outcome.context["token_count"].tolist() == [count]


@pytest.mark.parametrize("folder", ["words", "pairs"])
@settings(max_examples=60)
@given(data=st.data())
def test_tokens_are_those_of_the_whole_text(
    repository: Path, folder: str, data: st.DataObject
) -> None:
    words = st.lists(
        st.sampled_from([*FOX.split(), "cat", "aaaaa", "the", "...", "ß漢字", "🦊"]), min_size=1
    )
    separators = st.sampled_from([" ", "  ", "\n", "\t ", ", ", "\u00a0"])
    text = data.draw(separators).join(data.draw(words) * data.draw(st.sampled_from([1, 60, 200])))
    length = data.draw(st.integers(3, 40))
    whole = AutoTokenizer.from_pretrained(repository / folder)
    wanted = whole(text, truncation=True, max_length=length, padding=False)["input_ids"]
    assert ids(make(repository, folder=folder, max_length=length), text) == wanted


@pytest.mark.parametrize(
    "text",
    ["fox " * 250_000, "a" * 1_000_000, "漢" * 333_333, "." * 1_000_000, "a" + " " * 999_998 + "b"],
    ids=["words", "one-word", "no-spaces", "dots", "spaces"],
)
def test_a_megabyte_of_text_takes_less_than_half_a_second(repository: Path, text: str) -> None:
    op = make(repository)
    began = time.process_time()
    tokens = ids(op, text)
    assert time.process_time() - began < 0.5
    assert len(tokens) <= 128


def test_many_threads_get_the_tokens_of_their_own_text(repository: Path) -> None:
    op = make(repository, max_length=64, padding=[8, 64])
    texts = ["fox " * (number % 70 + 1) for number in range(400)]
    alone = [ids(op, text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: ids(op, text), texts)) == alone


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", r"empty text came \(0 bytes\)"),
        (b" \n\t\xc2\xa0", r"empty text came \(5 bytes\)"),
        (b"fox \xff fox", r"byte 4 \(0xff\) is no UTF-8: invalid start byte"),
        (b"fox \xe6\xbc", r"byte 4 \(0xe6\) is no UTF-8: unexpected end of data"),
        (b"a" * 101, "101 bytes came, at most 100 are taken"),
    ],
    ids=["empty", "spaces", "no-utf-8", "cut-utf-8", "max-bytes"],
)
def test_tokenize_refuses_unusable_texts_with_invalid_input(
    repository: Path, text: bytes, reason: str
) -> None:
    with pytest.raises(InvalidInput, match="text: " + reason):
        run(make(repository, max_bytes=100), text)


def test_a_text_that_is_too_long_is_cut_or_refused(repository: Path) -> None:
    long = " ".join(["fox"] * 9)
    assert len(ids(make(repository, max_length=6), long)) == 6
    whole = make(repository, max_length=11, truncate=False)
    assert len(ids(whole, long)) == 11
    with pytest.raises(InvalidInput, match="a text of 10 or more tokens came, at most 9"):
        run(whole, f"{long} fox")


def test_a_text_without_any_token_is_refused(repository: Path, tmp_path: Path) -> None:
    tokenizer = byte_pairs()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    tokenizer.save_pretrained(tmp_path / "drops-x")
    with pytest.raises(InvalidInput, match="finds no token"):
        run(make(tmp_path, folder="drops-x"), "xxx")


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"folder": "../elsewhere"}, "folder: .* is outside the model repository"),
        ({"folder": "missing"}, "folder: .* missing is not there"),
        ({"folder": "broken/tokenizer.json"}, "tokenizer.json is no folder"),
        ({"folder": "empty"}, "no tokenizer can be loaded from .*empty: ValueError"),
        ({"folder": "broken"}, "no tokenizer can be loaded from .*broken: JSONDecodeError"),
        ({"folder": "code"}, "no tokenizer can be loaded from .*code: ValueError: The repository"),
        ({"folder": "slow"}, "CanineTokenizer in .*slow is no fast tokenizer"),
        ({"max_length": 2}, "max_length 2 holds special tokens only"),
        ({"padding": [64, 100]}, "no length for 128 tokens .* only up to 100"),
        ({"folder": "pairs", "padding": [128]}, "the tokenizer has no padding token"),
        ({"max_len": 5}, "max_len: Unexpected keyword argument"),
    ],
    ids=[
        *("outside", "missing", "file", "empty", "broken", "code", "slow"),
        *("max-length", "padding", "no-padding-token", "unknown"),
    ],
)
def test_wrong_parameters_are_refused(
    repository: Path, parameters: dict[str, object], reason: str
) -> None:
    with pytest.raises(InvalidInput, match=reason):
        make(repository, **parameters)


def test_a_tokenizer_is_loaded_without_the_network(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", connect)
    assert ids(make(repository), "fox") == [2, 59, 3]


def test_a_process_without_text_ops_imports_no_tokenizer() -> None:
    program = (
        "import sys, preprocess_svc.ops as o; o.Letterbox(); "
        "sys.exit(bool({'transformers', 'tokenizers', 'torch'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


LOAD = """
import sys
from pathlib import Path
from mesh.op import make_op
from mesh.process import hide
from preprocess_svc.ops import OPS
if sys.argv[2] == "hidden":
    hide("torch")
make_op(OPS, "tokenize", b'{"folder": "words"}', Path(sys.argv[1]))
"""


@pytest.mark.parametrize("mode", ["seen", "hidden"])
def test_pytorch_that_is_hidden_is_not_imported_for_a_tokenizer(tmp_path: Path, mode: str) -> None:
    word_pieces().save_pretrained(tmp_path / "words")
    (tmp_path / "site/torch").mkdir(parents=True)
    (tmp_path / "site/torch/__init__.py").write_text("raise SystemExit('torch is imported')")
    (tmp_path / "site/torch-2.11.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: torch\nVersion: 2.11.0\n"
    (tmp_path / "site/torch-2.11.0.dist-info/METADATA").write_text(metadata)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path), mode],
        env={"PYTHONPATH": f"{Path.cwd()}:{tmp_path / 'site'}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == (mode == "seen"), done.stderr
    assert ("torch is imported" in done.stderr) == (mode == "seen")
