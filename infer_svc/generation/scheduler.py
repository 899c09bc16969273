"""Generations in flight: they join and leave between steps, each at its own pace.

A thread owns the network. Between two steps it drops what nobody awaits, lets waiting generations
into free slots, and reads so much of new prompts that it holds up nobody for long.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from infer_svc.generation.rules import NO_RULES, Rules
from infer_svc.generation.sampling import GREEDY, Sampling, choose
from infer_svc.generation.stepper import Stepper
from mesh.errors import DeadlineExceeded, InvalidInput, MeshError, Overloaded, StageUnavailable
from mesh.fair_queue import FairQueue

log = logging.getLogger(__name__)

PIECE = 64
"""Ids of prompts that are read between two steps."""
TRIES = 3
"""Steps that may fail with a generation in them before it fails: its ids are known, and what a GPU
refused once may go well the next time."""
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


@dataclass(eq=False)
class _Running:
    """A generation, waiting or in a slot."""

    prompt: Prompt
    emit: Callable[[int], None]
    future: asyncio.Future[Finish]
    text: list[int]
    """All ids so far."""
    asked: float = field(default_factory=time.monotonic)
    admitted: float = 0.0
    first: float = 0.0
    done: int = 0
    """Ids whose keys and values are in the cache."""
    failures: int = 0
    cancelled: bool = False

    @property
    def is_over(self) -> bool:
        """Tell whether nobody awaits it any more."""
        return self.cancelled or self.prompt.deadline <= time.monotonic()

    @property
    def is_reading(self) -> bool:
        """Tell whether more than the last id of the text is still to be run."""
        return self.done < len(self.text) - 1

    @property
    def made(self) -> int:
        """Tokens so far."""
        return len(self.text) - len(self.prompt.ids)

    def finish(self, reason: str) -> Finish:
        """Return how it ended, now."""
        now = time.monotonic()
        return Finish(reason, self.asked, self.admitted, self.first or now, now)


Event = int | Finish | MeshError
"""A token, the end, or an error."""


class Scheduler:
    """Runs generations on a stepper.

    Args:
        stepper: used by the scheduler's thread only.
        loop: of whoever asks; None: the running one.
        max_waiting: generations that wait for a slot; more are refused.
    """

    def __init__(
        self,
        stepper: Stepper,
        loop: asyncio.AbstractEventLoop | None = None,
        max_waiting: int = 1000,
    ) -> None:
        self._stepper = stepper
        self._max_waiting = max_waiting
        self._slots: list[_Running | None] = []
        """The slots in use are the first ones, but for those that were just freed."""
        self._waiting: FairQueue[_Running] = FairQueue()
        self._change = threading.Condition()
        self._closing = False
        self._loop = loop or asyncio.get_running_loop()
        self._told: list[tuple[_Running, Event]] = []
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> int:
        """Slots in use."""
        return sum(slot is not None for slot in list(self._slots))

    @property
    def waiting(self) -> int:
        """Generations that wait for a slot."""
        return len(self._waiting)

    async def run(self, prompt: Prompt, emit: Callable[[int], None]) -> Finish:
        """Generate; to cancel it frees its slot before the next step but one.

        Args:
            prompt: what is asked for.
            emit: called in the event loop with each token.

        Raises:
            InvalidInput: no id, no token wanted, or more than a slot holds.
            Overloaded: too many wait.
            DeadlineExceeded: its time is over.
            EngineError: a step failed.
            StageUnavailable: the scheduler is closed.
        """
        self._check(prompt)
        future: asyncio.Future[Finish] = self._loop.create_future()
        running = _Running(prompt, emit, future, [*prompt.ids, *prompt.emitted])
        with self._change:
            if self._closing:
                raise StageUnavailable("this replica is going away")
            if len(self._waiting) >= self._max_waiting:
                raise Overloaded(f"{self._max_waiting} generations wait already; try again later")
            self._waiting.push(prompt.client, running)
            self._change.notify()
        left = prompt.deadline - time.monotonic()
        try:
            async with asyncio.timeout(None if math.isinf(left) else max(0.0, left)):
                return await future
        except TimeoutError:
            raise DeadlineExceeded(f"the time was over after {running.made} tokens") from None
        finally:
            running.cancelled = True
            with self._change:
                self._waiting.remove(prompt.client, running)

    def _check(self, prompt: Prompt) -> None:
        room, source = self._stepper.length, self._stepper.source_length
        count, left = len(prompt.ids), prompt.tokens - len(prompt.emitted)
        if not count or left < 1 or count + prompt.tokens > room:
            raise InvalidInput(
                f"{count} ids and {left} more came, wanted one of each or more, and at most {room} "
                "together; ask for fewer tokens or send a shorter text"
            )
        if bool(prompt.source) != bool(source) or len(prompt.source) > source:
            wanted = f"1 to {source}" if source else "none, as there is no encoder"
            raise InvalidInput(f"a source of {len(prompt.source)} ids came, wanted {wanted}")

    def close(self) -> None:
        """End the thread; what is under way or waits fails."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait():
                self._drop()
                self._admit()
                self._compact()
                self._read()
                self._write()
                self._hand_over()
        except Exception:  # the thread's boundary: nobody may wait for ever
            log.exception("generation failed")
        with self._change:
            self._closing = True
            left = [running for running in self._slots if running is not None]
            left += [self._waiting.pop() for _ in range(len(self._waiting))]
        self._slots = []
        for running in left:
            self._tell(running, StageUnavailable("this replica is going away"))
        self._hand_over()

    def _tell(self, running: _Running, event: Event) -> None:
        self._told.append((running, event))

    def _hand_over(self) -> None:
        """Wake the event loop once for all that a step brought."""
        if self._told:
            told, self._told = self._told, []
            self._loop.call_soon_threadsafe(_deliver, told)

    def _wait(self) -> bool:
        """Sleep while there is nothing to do; return False at the end."""
        with self._change:
            while not (self._closing or self._waiting or any(self._slots)):
                self._change.wait()
            return not self._closing

    def _drop(self) -> None:
        """Free the slots of what nobody awaits any more."""
        for slot, running in enumerate(self._slots):
            if running is not None and running.is_over:
                self._slots[slot] = None

    def _admit(self) -> None:
        while (slot := self._free()) is not None:
            with self._change:
                if not self._waiting:
                    return
                running = self._waiting.pop()
            if running.is_over:
                continue
            running.admitted = running.admitted or time.monotonic()
            try:
                self._stepper.begin(slot, running.prompt.source)
            except MeshError as err:
                self._retry(running, err)
                continue
            if slot == len(self._slots):
                self._slots.append(None)
            self._slots[slot] = running

    def _free(self) -> int | None:
        """Return the lowest free slot."""
        for slot, running in enumerate(self._slots):
            if running is None:
                return slot
        return len(self._slots) if len(self._slots) < self._stepper.slots else None

    def _compact(self) -> None:
        """Move generations down where that makes a step less wide; other holes cost nothing."""
        while self._slots and self._slots[-1] is None:
            self._slots.pop()
        if _width(self.busy) < _width(len(self._slots)):
            hole = self._slots.index(None)
            self._stepper.move(len(self._slots) - 1, hole)
            self._slots[hole] = self._slots.pop()
            self._compact()

    def _read(self) -> None:
        """Run the next ids of texts that are not read yet, the shortest rest first."""
        left = PIECE
        while left:
            reading = [
                (len(running.text) - running.done, slot)
                for slot, running in enumerate(self._slots)
                if running is not None and running.is_reading
            ]
            if not reading:
                return
            slot = min(reading)[1]
            running = self._slots[slot]
            assert running is not None
            piece = running.text[running.done : -1][:left]
            if self._stepped(slot, [piece], [running.done]) is None:
                return
            running.done += len(piece)
            left -= len(piece)

    def _write(self) -> None:
        """Run a step of all that have read their text, and give each its next token."""
        rows = self._slots
        if not any(running is not None and not running.is_reading for running in rows):
            return
        ids = [[running.text[running.done]] if running is not None else [0] for running in rows]
        start = [running.done if running is not None else 0 for running in rows]
        logits = self._stepped(0, ids, start)
        if logits is None:
            return
        best = logits.argmax(1)
        for slot, running in enumerate(rows):
            if running is None:
                continue
            if not running.is_reading:
                self._take(slot, running, logits[slot], int(best[slot]))
            running.done += 1  # one that reads has read an id more, along with the others

    def _take(self, slot: int, running: _Running, logits: NDArray[np.floating], best: int) -> None:
        """Choose the next token of a generation, and end it where that was the last."""
        prompt = running.prompt
        try:
            token = prompt.rules.forced(running.made, prompt.tokens)
            if token is None:
                banned = prompt.rules.banned(running.text, running.made)
                token = choose(logits, best, prompt.sampling, running.text, banned)
        except MeshError as err:
            self._tell(running, err)
            self._slots[slot] = None
            return
        running.first = running.first or time.monotonic()
        if token in prompt.rules.stop:
            self._end(slot, running, STOP)
            return
        running.text.append(token)
        self._tell(running, token)
        if running.made == prompt.tokens:
            self._end(slot, running, LENGTH)

    def _end(self, slot: int, running: _Running, reason: str) -> None:
        self._tell(running, running.finish(reason))
        self._slots[slot] = None

    def _retry(self, running: _Running, error: MeshError) -> None:
        """Let a generation whose cache is lost begin anew with the text that it has."""
        running.failures += 1
        running.done = 0
        if running.failures == TRIES:
            self._tell(running, error)
            return
        with self._change:
            self._waiting.push(running.prompt.client, running)

    def _stepped(
        self, first: int, ids: list[list[int]], start: list[int]
    ) -> NDArray[np.floating] | None:
        """Run a step; should it fail, the generations in it begin anew, and None is returned."""
        try:
            return self._stepper.step(first, ids, start)
        except MeshError as err:
            log.exception("step failed", extra={"rows": len(ids)})
            for slot in range(first, first + len(ids)):
                if (running := self._slots[slot]) is not None:
                    self._slots[slot] = None
                    self._retry(running, err)
            return None


def _deliver(told: list[tuple[_Running, Event]]) -> None:
    for running, event in told:
        if running.future.done():
            continue  # nobody awaits it any more
        if isinstance(event, int):
            running.emit(event)
        elif isinstance(event, Finish):
            running.future.set_result(event)
        else:
            running.future.set_exception(event)


def _width(rows: int) -> int:
    """Return how many rows are run for so many: the next power of two."""
    return 1 << (rows - 1).bit_length() if rows else 0
