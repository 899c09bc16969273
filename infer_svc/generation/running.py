"""What a generation is asked for, how far it is, and how it ended."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from infer_svc.generation.rules import NO_RULES, Rules
from infer_svc.generation.sampling import GREEDY, Sampling
from mesh.errors import MeshError

LENGTH, STOP = "length", "stop"
"""Why a generation ended, as OpenAI's API names it."""


@dataclass(frozen=True)
class Prompt:
    """What is asked for."""

    ids: Sequence[int]
    """At least one id: of a decoder alone the prompt; after an encoder its start token."""
    tokens: int
    """How many may come, those that came before included."""
    source: Sequence[int] = ()
    """For the encoder."""
    emitted: Sequence[int] = ()
    """Tokens that came already, where a generation goes on."""
    rules: Rules = NO_RULES
    sampling: Sampling = GREEDY
    deadline: float = math.inf
    """On the clock of `time.monotonic`."""
    client: str = ""
    """Waiting is fair between clients."""


@dataclass(frozen=True)
class Finish:
    """How a generation ended; times on the clock of `time.monotonic`."""

    reason: str
    """`LENGTH` or `STOP`."""
    asked: float
    admitted: float
    """When it got its slot."""
    first: float
    """When its first token came; the end, where there was none."""
    ended: float


Event = int | Finish | MeshError
"""A token, the end, or an error."""


@dataclass(eq=False)
class Running:
    """A generation, waiting or in a slot."""

    prompt: Prompt
    emit: Callable[[int], None]
    future: asyncio.Future[Finish]
    text: list[int] = field(init=False)
    """All ids so far."""
    asked: float = field(default_factory=time.monotonic)
    admitted: float = 0.0
    first: float = 0.0
    slot: int = -1
    done: int = 0
    """Ids whose keys and values are in the cache, or will be when the steps under way are done."""
    pending: int = 0
    """Steps under way that give it a token."""
    failures: int = 0
    ended: bool = False
    """Nobody awaits it any more, or it has all its tokens."""

    def __post_init__(self) -> None:
        """Begin with what is known of the text."""
        self.text = [*self.prompt.ids, *self.prompt.emitted]
        self.chooses = not (self.prompt.rules.is_plain and self.prompt.sampling.is_greedy)
        """Whether its tokens are chosen here, from logits; else each is the best one."""

    @property
    def is_over(self) -> bool:
        """Tell whether nobody awaits it any more."""
        return self.ended or self.prompt.deadline <= time.monotonic()

    @property
    def is_reading(self) -> bool:
        """Tell whether more than the last id of the text is still to be run."""
        return self.done < len(self.text) - 1

    @property
    def made(self) -> int:
        """Tokens so far."""
        return len(self.text) - len(self.prompt.ids)

    @property
    def wants_token(self) -> bool:
        """Tell whether a step now would give it a token that it has room for."""
        return not self.is_reading and self.made + self.pending < self.prompt.tokens

    def begin_anew(self) -> None:
        """Note that its cache is lost; its text is not."""
        self.done = self.pending = 0
        self.slot = -1

    def finish(self, reason: str) -> Finish:
        """Return how it ended, now."""
        now = time.monotonic()
        return Finish(reason, self.asked, self.admitted or now, self.first or now, now)
