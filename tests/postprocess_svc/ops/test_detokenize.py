"""Text that comes in pieces is the text of the whole, for every kind of vocabulary."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mesh.errors import InvalidInput
from mesh.op import Op, make_op
from mesh.tensor import Tensors, bytes_tensor
from postprocess_svc.ops import OPS
from postprocess_svc.ops.detokenize import REPLACEMENT, Decoder, Tail, detokenize

TEXTS = [
    "Hello, world! It's a fine day; isn't it? 3.14 is (about) pi.",
    "Straße, Äpfel, naïve café — déjà vu… «voilà»",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "いろはにほへと ちりぬるを 東京タワー",
    "敏捷的棕色狐狸跳过懒狗。",
    "키스의 고유조건은 입술끼리 만나야 하고",
    "نص حكيم له سر قاطع وذو شأن عظيم",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा",
    "👩‍👩‍👧 🏳️‍🌈 👍🏽 🇩🇪 e\u0301 \u200d\ufe0f",
    "tabs\tand\nlines  and   spaces ",
]
SPECIAL = ["<s>", "</s>", "<pad>", "<unk>"]
FEW_WORDS = 420
"""Entries of each vocabulary: so few that most characters beyond ASCII are several tokens."""


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=FEW_WORDS, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    trainer = trainers.WordPieceTrainer(
        vocab_size=FEW_WORDS, special_tokens=SPECIAL, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def sentence_piece() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=FEW_WORDS, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def byte_fallback() -> Tokenizer:
    """As Llama's: what the vocabulary has not comes as tokens of one byte."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdeilnorst,.é日"]
    pieces += ["▁a", "an", "er", "▁t"]
    merges = [("▁", "a"), ("a", "n"), ("e", "r"), ("▁", "t")]
    made = Tokenizer(
        models.BPE(
            {piece: key for key, piece in enumerate(pieces)}, merges, unk_token="<unk>",
            fuse_unk=True, byte_fallback=True,
        )
    )  # fmt: skip
    made.add_special_tokens(SPECIAL)
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level, "word_piece": word_piece, "sentence_piece": sentence_piece,
    "byte_fallback": byte_fallback,
}  # fmt: skip
MADE = {name: make() for name, make in KINDS.items()}
each_kind = pytest.mark.parametrize("kind", KINDS)

texts = st.lists(
    st.one_of(
        st.sampled_from(TEXTS),
        st.text(max_size=8),
        st.text(st.characters(min_codepoint=0x1F300, max_codepoint=0x1FAFF), max_size=4),
        st.sampled_from([" ", "  ", "\n", " ,", "n't", "▁", "\N{REPLACEMENT CHARACTER}"]),
    ),
    max_size=5,
).map("".join)


def in_pieces(
    kind: str, ids: Sequence[int], cuts: Sequence[int], stop: Sequence[str] = ()
) -> tuple[list[str], bool]:
    """Detokenize ids in steps of so many; return the pieces, and whether a stop string came."""
    decoder, tail, pieces, at = Decoder(MADE[kind]), Tail(), list[str](), 0
    for cut in cuts:
        piece = detokenize(decoder, tail, ids[at : at + cut], stop, final=False)
        pieces.append(piece.text)
        if piece.stopped:
            return pieces, True
        tail, at = piece.tail, at + cut
    piece = detokenize(decoder, tail, ids[at:], stop, final=True)
    return [*pieces, piece.text], piece.stopped


@each_kind
@settings(max_examples=300, deadline=None)
@given(text=texts, cuts=st.lists(st.integers(0, 3), max_size=60))
def test_pieces_of_a_text_are_its_text(kind: str, text: str, cuts: list[int]) -> None:
    ids = MADE[kind].encode(text).ids
    whole = MADE[kind].decode(ids, skip_special_tokens=True)
    pieces, _ = in_pieces(kind, ids, cuts)
    assert "".join(pieces) == whole


@each_kind
@settings(max_examples=300, deadline=None)
@given(data=st.data(), cuts=st.lists(st.integers(0, 3), max_size=60))
def test_pieces_of_any_ids_are_their_text(kind: str, data: st.DataObject, cuts: list[int]) -> None:
    """Special tokens, halves of characters, bytes that are no UTF-8."""
    size = MADE[kind].get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size + 3), max_size=60))
    pieces, _ = in_pieces(kind, ids, cuts)
    assert "".join(pieces) == MADE[kind].decode(ids, skip_special_tokens=True)


@each_kind
@settings(max_examples=200, deadline=None)
@given(text=texts, cuts=st.lists(st.integers(0, 3), max_size=60), data=st.data())
def test_text_ends_before_the_stop_string_that_is_whole_first(
    kind: str, text: str, cuts: list[int], data: st.DataObject
) -> None:
    ids = MADE[kind].encode(text).ids
    whole = MADE[kind].decode(ids, skip_special_tokens=True)
    stop = data.draw(st.lists(st.text("aeinst ,.日\n", min_size=1, max_size=3), max_size=3))
    if whole:
        start = data.draw(st.integers(0, len(whole) - 1))
        stop.append(whole[start : start + data.draw(st.integers(1, 4))])
    pieces, stopped = in_pieces(kind, ids, cuts, stop)
    ends = [(at + len(word), at) for word in stop if (at := whole.find(word)) >= 0]
    assert stopped == bool(ends)
    assert "".join(pieces) == whole[: min(ends)[1] if ends else None]


@each_kind
def test_step_by_step_no_piece_has_half_a_character_and_text_is_given_soon(kind: str) -> None:
    decoder, tail = Decoder(MADE[kind]), Tail()
    late = 0
    for text in TEXTS:
        ids = MADE[kind].encode(text).ids
        for key in ids:
            piece = detokenize(decoder, tail, [key], [], final=False)
            assert REPLACEMENT not in piece.text
            tail = piece.tail
            late = max(late, len(tail.ids))
    # A whole text may be one run of bytes.
    longest = max(len(text.encode()) for text in TEXTS)
    assert late <= (longest + 1 if kind == "byte_fallback" else 12)


def op(root: Path) -> Op:
    (root / "vocabulary").mkdir()
    MADE["byte_level"].save(str(root / "vocabulary/tokenizer.json"))
    return make_op(OPS, "detokenize", b'{"folder": "vocabulary"}', root)


def tensors(rows: Sequence[tuple[Tail, Sequence[int], Sequence[str], bool]]) -> Tensors:
    """Return the op's input for generations, each with its tail, new ids, stops and final."""

    def flat(parts: Sequence[Sequence[Any]], dtype: type) -> np.ndarray[Any, Any]:
        return np.array([element for part in parts for element in part], dtype)

    tails, news, stops = [r[0].ids for r in rows], [r[1] for r in rows], [r[2] for r in rows]
    return {
        "tail_ids": flat(tails, np.int64), "tail_counts": np.array([*map(len, tails)], np.int32),
        "read_offset": np.array([row[0].read_offset for row in rows], np.int32),
        "new_ids": flat(news, np.int64), "new_counts": np.array([*map(len, news)], np.int32),
        "stop": bytes_tensor(*(word.encode() for part in stops for word in part)),
        "stop_counts": np.array([*map(len, stops)], np.int32),
        "final": np.array([row[3] for row in rows], bool),
    }  # fmt: skip


def test_one_item_has_a_step_of_all_generations(tmp_path: Path) -> None:
    detokenizer = op(tmp_path)
    ids = [MADE["byte_level"].encode(text).ids for text in TEXTS]
    stops = [["булок"] if "булок" in text else [] for text in TEXTS]
    tails, got, ended = [Tail()] * len(TEXTS), [b""] * len(TEXTS), [False] * len(TEXTS)
    for step in range(max(map(len, ids)) + 1):
        rows = [index for index in range(len(TEXTS)) if not ended[index]]
        asked = [(tails[i], ids[i][step : step + 1], stops[i], step >= len(ids[i])) for i in rows]
        made = detokenizer(tensors(asked), {}).tensors
        parts = np.split(made["tail_ids"], np.cumsum(made["tail_counts"])[:-1])
        for at, row in enumerate(rows):
            got[row] += made["text"][at]
            tails[row] = Tail(tuple(parts[at].tolist()), int(made["read_offset"][at]))
            ended[row] = asked[at][3] or bool(made["stopped"][at])
    wanted = [text.partition("булок")[0] for text in TEXTS]
    assert [text.decode() for text in got] == wanted


def test_no_generation_is_no_text(tmp_path: Path) -> None:
    made = op(tmp_path)(tensors([]), {}).tensors
    assert {name: len(array) for name, array in made.items()} == dict.fromkeys(made, 0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"new_counts": np.array([3], np.int32)}, "new_counts .3. came for 1 generations and 2"),
        ({"tail_counts": np.array([0, 0], np.int32)}, "tail_counts"),
        ({"new_counts": np.array([-2], np.int32)}, "new_counts"),
        ({"new_ids": np.array([5, -1])}, "wanted ids of a vocabulary"),
        ({"read_offset": np.array([7], np.int32)}, "read_offset 7 came for ids whose text"),
        ({"read_offset": np.array([-1], np.int32)}, "read_offset -1 came"),
        ({"read_offset": np.array([], np.int32)}, "read_offset: 0 came for 1 generations"),
        ({"stop": bytes_tensor(b""), "stop_counts": np.array([1], np.int32)}, "empty stop string"),
        ({"stop": bytes_tensor(b"\xff"), "stop_counts": np.array([1], np.int32)}, "no UTF-8"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, change: Tensors, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        op(tmp_path)(tensors([(Tail(), [5, 6], [], False)]) | change, {})


def test_folder_without_a_tokenizer_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no tokenizer can be read from .*tokenizer.json"):
        make_op(OPS, "detokenize", b'{"folder": "."}', tmp_path)
