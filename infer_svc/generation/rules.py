"""What a model's generation config asks for beside sampling: tokens that must come, or must not.

Names and meanings are those of Hugging Face's `generation_config.json`, counted in new tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """Which tokens end a generation, and which come or do not come at some places of it."""

    stop: frozenset[int] = frozenset()
    """Ids that end it; they are not given. `eos_token_id`."""
    min_tokens: int = 0
    """How many come before one of `stop` may. `min_new_tokens`, or `min_length`."""
    no_repeat_ngram_size: int = 0
    """No so many ids in a row come twice in a text, prompt included; 0: they may."""
    forced_first: int | None = None
    """The first token. `forced_bos_token_id`."""
    forced_last: int | None = None
    """The last token that there is room for. `forced_eos_token_id`."""

    @property
    def is_plain(self) -> bool:
        """Tell whether any token may come anywhere."""
        return not (self.min_tokens or self.no_repeat_ngram_size) and (
            self.forced_first is None and self.forced_last is None
        )

    def forced(self, made: int, most: int) -> int | None:
        """Return the token that has to come now; None: any may.

        Args:
            made: tokens so far.
            most: that may come altogether.
        """
        if made == 0 and self.forced_first is not None:
            return self.forced_first
        return self.forced_last if made == most - 1 else None

    def banned(self, text: Sequence[int], made: int) -> frozenset[int]:
        """Return the tokens that must not come now.

        Args:
            text: ids so far, prompt included.
            made: those of them that are new.
        """
        banned = self.stop if made < self.min_tokens else frozenset()
        return banned | self._repeating(text) if self.no_repeat_ngram_size else banned

    def _repeating(self, text: Sequence[int]) -> frozenset[int]:
        """Return the tokens that would end an n-gram that the text has already."""
        size = self.no_repeat_ngram_size
        begin = len(text) - size + 1
        if begin < 0:
            return frozenset()
        last = list(text[begin:])
        return frozenset(
            text[at + size - 1] for at in range(begin) if list(text[at : at + size - 1]) == last
        )


NO_RULES = Rules()
