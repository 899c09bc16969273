"""Op `detokenize`: the text of token ids that come bit by bit, from several generations at once.

Nothing is kept between two calls: what a generation needs for its next one goes back with the text.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from mesh.errors import InvalidInput
from mesh.op import Outcome, RepositoryPath
from mesh.tensor import Array, Tensors, TensorSpec, bytes_tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""In the place of bytes that are no UTF-8, or none yet."""
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""Token of one byte, in SentencePiece's vocabularies with byte fallback."""
TRIM_TRIES = 8


@plain_dataclass(frozen=True)
class Tail:
    """What is remembered of a generation's ids."""

    ids: tuple[int, ...] = ()
    """The last ones: those whose text is not given yet, and before them what it leans on."""
    read_offset: int = 0
    """Characters of their text that were given already."""


@plain_dataclass(frozen=True)
class Piece:
    """What new ids bring."""

    text: str
    tail: Tail
    stopped: bool = False
    """A stop string came; the text ends before it."""


class Decoder:
    """The text of ids, as a `tokenizer.json` says, and how much of it stays as it is.

    Args:
        tokenizer: whose decoder depends, for each token, on those before it only: byte-level BPE,
            WordPiece, SentencePiece with or without byte fallback.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._spoken = set(tokenizer.get_vocab().values()).difference(
            key for key, token in added.items() if token.special
        )
        self._bytes = {
            key for token, key in tokenizer.get_vocab().items() if BYTE.fullmatch(token)
        } if _falls_back_to_bytes(tokenizer) else set()  # fmt: skip

    def read(self, ids: Sequence[int]) -> tuple[str, str]:
        """Return the text of all ids, and the part of it that no further id changes.

        Special ids and those of no token have no text.
        """
        text = self._text(ids)
        end = len(ids)
        # SentencePiece looks at bytes that follow each other as a whole.
        while end and (ids[end - 1] in self._bytes or ids[end - 1] not in self._spoken):
            end -= 1
        run = any(key in self._bytes for key in ids[end:])
        # A character whose bytes have not all come is one replacement character, at the end.
        return text, (self._text(ids[:end]) if run else text).removesuffix(REPLACEMENT)

    def context(self, ids: Sequence[int]) -> tuple[tuple[int, ...], int]:
        """Return the last ids, as few as have a text, and the characters of that.

        With them before it, a token is not first.
        """
        for start in range(len(ids) - 1, -1, -1):
            text, settled = self.read(ids[start:])
            if text and text == settled:
                return tuple(ids[start:]), len(text)
        return tuple(ids), len(self._text(ids))

    def _text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)


def detokenize(
    decoder: Decoder, tail: Tail, new_ids: Sequence[int], stop: Sequence[str], *, final: bool
) -> Piece:
    """Return the text that new ids add.

    All pieces of a generation, one after the other, are the text of all its ids, up to the stop
    string that is whole first. A character whose bytes have not all come, and what may become a
    stop string, is held back; with byte fallback, a run of bytes until it is over, as one that is
    no UTF-8 changes the text of them all.

    Args:
        decoder: of the vocabulary.
        tail: as the call before returned it; `Tail()` at first.
        new_ids: in their order.
        stop: texts that end the generation; none is empty. Of several that are whole with the same
            character, the longest does.
        final: no id follows: nothing is held back.

    Raises:
        InvalidInput: the tail is not one that a call before returned.
    """
    ids = (*tail.ids, *new_ids)
    whole, settled = decoder.read(ids)
    text = whole if final else settled
    if not 0 <= tail.read_offset <= len(text):
        raise InvalidInput(
            f"read_offset {tail.read_offset} came for ids whose text has {len(text)} characters; "
            "send back tail_ids and read_offset as the call before returned them"
        )
    fresh = text[tail.read_offset :]
    found = [(at + len(word), at) for word in stop if (at := fresh.find(word)) >= 0]
    if found:
        return Piece(fresh[: min(found)[1]], Tail(), stopped=True)
    if final:
        return Piece(fresh, Tail())
    fresh = fresh[: len(fresh) - _may_be_stop(fresh, stop)]
    given = tail.read_offset + len(fresh)
    if whole == settled and len(whole) == given:  # nothing is held back
        return Piece(fresh, Tail(*decoder.context(ids)))
    return Piece(fresh, _trim(decoder, ids, given, text))


def _may_be_stop(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of a text a stop string may begin with."""
    longest = max(map(len, stop), default=1) - 1
    for count in range(min(longest, len(text)), 0, -1):
        if any(word.startswith(text[-count:]) for word in stop):
            return count
    return 0


def _trim(decoder: Decoder, ids: tuple[int, ...], given: int, text: str) -> Tail:
    """Return a tail without ids whose text is given, as far as a few tries find them."""
    for end in range(len(ids) - 1, max(0, len(ids) - TRIM_TRIES), -1):
        before, settled = decoder.read(ids[:end])
        if before == settled and len(before) <= given and text.startswith(before):
            context, length = decoder.context(ids[:end])
            return Tail((*context, *ids[end:]), given - len(before) + length)
    return Tail(ids, given)


def _falls_back_to_bytes(tokenizer: "Tokenizer") -> bool:
    """Tell whether the decoder joins tokens of single bytes."""
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    return any(
        part.get("type") == "ByteFallback" for part in (decoder, *decoder.get("decoders", []))
    )


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Detokenize:
    """Turn the new ids of B generations into text; all of one step go in one item.

    Ids and stop strings of all generations come one after the other, with how many each has.
    Special tokens have no text.

    Outputs: `text` BYTES[B], UTF-8; `stopped` BOOL[B], a stop string came, before which the text
    ends; `tail_ids` INT64[N], `tail_counts` INT32[B] and `read_offset` INT32[B], to be sent back
    with the next ids.
    """

    folder: RepositoryPath
    """Folder with `tokenizer.json`, which is read at once."""

    def __post_init__(self) -> None:
        """Read the vocabulary, so that a file that cannot be used stops the start."""
        _ = self._decoder

    @cached_property
    def _decoder(self) -> Decoder:
        # Not at the top: replicas without this op save its memory.
        from tokenizers import Tokenizer  # noqa: PLC0415

        path = self.folder / "tokenizer.json"
        try:
            return Decoder(Tokenizer.from_file(str(path)))
        except Exception as err:  # tokenizers raises nothing more special
            raise ValueError(f"no tokenizer can be read from {path}: {err}") from err

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Tails, new ids and stop strings of B generations."""
        return (
            TensorSpec("tail_ids", "INT64", (-1,)),
            TensorSpec("tail_counts", "INT32", (-1,)),
            TensorSpec("read_offset", "INT32", (-1,)),
            TensorSpec("new_ids", "INT64", (-1,)),
            TensorSpec("new_counts", "INT32", (-1,)),
            TensorSpec("stop", "BYTES", (-1,)),
            TensorSpec("stop_counts", "INT32", (-1,)),
            TensorSpec("final", "BOOL", (-1,)),
        )

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Texts, and the tails for the next step."""
        return (
            TensorSpec("text", "BYTES", (-1,)),
            TensorSpec("stopped", "BOOL", (-1,)),
            TensorSpec("tail_ids", "INT64", (-1,)),
            TensorSpec("tail_counts", "INT32", (-1,)),
            TensorSpec("read_offset", "INT32", (-1,)),
        )

    def __call__(self, tensors: Tensors, context: Tensors) -> Outcome:
        """Detokenize one step.

        Args:
            tensors: as `inputs`; counts add up to what they count, and all others have B elements.
            context: not used.

        Raises:
            InvalidInput: they do not, an id is negative, a stop string is empty or no UTF-8, or a
                read_offset does not belong to its tail.
        """
        count = len(tensors["final"])
        tails = _cut(tensors, "tail_ids", "tail_counts", count)
        news = _cut(tensors, "new_ids", "new_counts", count)
        stops = _cut(tensors, "stop", "stop_counts", count)
        if len(tensors["read_offset"]) != count:
            raise InvalidInput(
                f"read_offset: {len(tensors['read_offset'])} came for {count} generations"
            )
        pieces = [
            detokenize(
                self._decoder,
                Tail(_ids(tails[row], "tail_ids"), int(tensors["read_offset"][row])),
                _ids(news[row], "new_ids"),
                _stop(stops[row]),
                final=bool(tensors["final"][row]),
            )
            for row in range(count)
        ]
        ids = [key for piece in pieces for key in piece.tail.ids]
        return Outcome(
            {
                "text": bytes_tensor(*(piece.text.encode() for piece in pieces)),
                "stopped": np.array([piece.stopped for piece in pieces], bool),
                "tail_ids": np.array(ids, np.int64),
                "tail_counts": np.array([len(piece.tail.ids) for piece in pieces], np.int32),
                "read_offset": np.array([piece.tail.read_offset for piece in pieces], np.int32),
            }
        )


def _cut(tensors: Tensors, name: str, counts_name: str, count: int) -> list[Array]:
    """Return each generation's part of a tensor that has those of all."""
    whole, counts = tensors[name], tensors[counts_name]
    if (
        len(counts) != count
        or counts.min(initial=0) < 0
        or counts.sum(dtype=np.int64) != len(whole)
    ):
        raise InvalidInput(
            f"{counts_name} {counts.tolist()[:20]} came for {count} generations and {len(whole)} "
            f"elements of {name}, wanted one number each that add up to them"
        )
    return np.split(whole, np.cumsum(counts[:-1])) if count else []


def _ids(array: Array, name: str) -> tuple[int, ...]:
    ids = tuple(array.tolist())
    if any(not 0 <= key < 2**32 for key in ids):
        raise InvalidInput(f"{name}: {min(ids)} to {max(ids)} came, wanted ids of a vocabulary")
    return ids


def _stop(array: Array) -> list[str]:
    try:
        words = [word.decode() for word in array]
    except UnicodeDecodeError as err:
        raise InvalidInput(f"stop: a stop string is no UTF-8: {err}") from err
    if "" in words:
        raise InvalidInput("stop: an empty stop string came, wanted a character or more")
    return words
