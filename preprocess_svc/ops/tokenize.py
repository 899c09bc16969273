"""Op `tokenize`: text to token ids, by a Hugging Face tokenizer folder."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass

from mesh.errors import InvalidInput
from mesh.op import Outcome, RepositoryPath
from mesh.tensor import Tensors, TensorSpec

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_SPARE_TOKENS = 128
_CHARACTERS_PER_TOKEN = 6  # most texts have fewer; a second try is made with 50


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Tokenize:
    """Turn a text into token ids, with the special tokens that the tokenizer adds.

    Of a long text only a head is tokenized, one that gives 128 tokens more than are kept. What is
    kept is the same as for the whole text, unless a single word of more than 128 tokens reaches
    over the end of the head: it may then be split in another way.

    Context: `token_count` INT32[1], after truncation and before padding.
    """

    folder: RepositoryPath
    """Tokenizer folder, which is loaded at once and never from the network."""
    max_length: PositiveInt = 128
    """Tokens kept, special tokens included; the end of a longer text is dropped, or see below."""
    truncate: bool = True
    """False: a longer text is refused."""
    padding: tuple[PositiveInt, ...] = ()
    """Lengths to fill up to, of which the smallest that holds a text is taken. Empty: none."""
    token_type_ids: bool = False
    """Give `token_type_ids` too."""
    max_bytes: PositiveInt = 1_250_000
    """Limit of a text."""

    def __post_init__(self) -> None:
        """Load the tokenizer, and refuse lengths that do not fit it or each other."""
        if self._room < 1:
            raise ValueError(f"max_length {self.max_length} holds special tokens only")
        if self.padding and max(self.padding) < self.max_length:
            raise ValueError(
                f"padding has no length for {self.max_length} tokens (max_length), "
                f"only up to {max(self.padding)}"
            )
        if self.padding and self._tokenizer.pad_token is None:
            raise ValueError("padding is wanted, but the tokenizer has no padding token")

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """One text in UTF-8."""
        return (TensorSpec("text", "BYTES", (1,)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Ids and masks of one length."""
        types = ("token_type_ids",) if self.token_type_ids else ()
        names = ("input_ids", "attention_mask", *types)
        return tuple(TensorSpec(name, "INT64", (1, -1)) for name in names)

    def __call__(self, tensors: Tensors, context: Tensors) -> Outcome:
        """Tokenize one text. Other threads run meanwhile.

        Args:
            tensors: {"text": BYTES[1]}, UTF-8.
            context: not used.

        Returns:
            {"input_ids": INT64[1, L], "attention_mask": INT64[1, L]}, and "token_type_ids" where
            wanted; the mask is 1 for a token and 0 for padding.

        Raises:
            InvalidInput: no UTF-8, empty, over a limit, or without any token.
        """
        encoding = self._encode(self._read(tensors["text"].item()))
        count = len(encoding)
        if count == 0:
            raise InvalidInput("text: a text came in which the tokenizer finds no token")
        self._pad(encoding)
        values = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
        }
        made: Tensors = {s.name: np.array([values[s.name]], np.int64) for s in self.outputs}
        return Outcome(made, {"token_count": np.array([count], np.int32)})

    def _read(self, data: bytes) -> str:
        if len(data) > self.max_bytes:
            raise InvalidInput(f"text: {len(data)} bytes came, at most {self.max_bytes} are taken")
        try:
            text = data.decode()
        except UnicodeDecodeError as err:
            raise InvalidInput(
                f"text: byte {err.start} (0x{data[err.start]:02x}) is no UTF-8: {err.reason}"
            ) from err
        if not text or text.isspace():
            raise InvalidInput(f"text: empty text came ({len(data)} bytes), wanted a word or more")
        return text

    def _encode(self, text: str) -> "Encoding":
        wanted = self._room + _SPARE_TOKENS
        for head in (wanted * _CHARACTERS_PER_TOKEN, wanted * 50, len(text)):
            # Unlike `encode`, a batch releases the GIL.
            (encoding,) = self._backend.encode_batch_fast([text[:head]], add_special_tokens=False)
            if head >= len(text) or len(encoding) >= wanted:
                break
        if not self.truncate and len(encoding) > self._room:
            most = f"at most {self._room} can be taken"
            raise InvalidInput(f"text: a text of {len(encoding)} or more tokens came, {most}")
        encoding.truncate(self._room)
        return self._backend.post_process(encoding)

    def _pad(self, encoding: "Encoding") -> None:
        if self.padding:
            encoding.pad(
                min(length for length in self.padding if length >= len(encoding)),
                direction=self._tokenizer.padding_side,
                pad_id=self._tokenizer.pad_token_id,
                pad_type_id=self._tokenizer.pad_token_type_id,
            )

    @property
    def _room(self) -> int:
        return self.max_length - self._backend.num_special_tokens_to_add(is_pair=False)

    @property
    def _backend(self) -> "Tokenizer":
        backend: Tokenizer = self._tokenizer.backend_tokenizer
        return backend

    @cached_property
    def _tokenizer(self) -> Any:  # transformers.TokenizersBackend, which has no types
        # Not at the top: a process without text ops saves its 50 MB.
        from transformers import AutoTokenizer  # noqa: PLC0415

        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is no folder")
        try:
            # Left out, trust_remote_code asks on the terminal whether to run the folder's code.
            tokenizer = AutoTokenizer.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as err:  # tokenizers raises nothing more special
            why = f"{type(err).__name__}: {err}".splitlines()[0]
            raise ValueError(f"no tokenizer can be loaded from {self.folder}: {why}") from err
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} in {self.folder} is no fast tokenizer")
        # Truncation and padding are done per text: as state they would race between threads.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        return tokenizer
