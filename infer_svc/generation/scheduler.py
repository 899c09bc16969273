"""Generations in flight: they join and leave between steps, each at its own pace.

A thread owns the network. Between two steps it drops what nobody awaits, lets waiting generations
into free slots, and reads so much of new prompts that it holds up nobody for long. Where each token
is the best one, the network has it for its next step by itself, and steps are queued before those
ahead of them are looked at.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from infer_svc.backends.errors import DeviceLost
from infer_svc.generation.running import LENGTH, STOP, Event, Finish, Prompt, Running
from infer_svc.generation.sampling import check_logit, choose
from infer_svc.generation.stepper import Outcome, Stepper
from mesh.errors import DeadlineExceeded, InvalidInput, MeshError, Overloaded, StageUnavailable
from mesh.fair_queue import FairQueue
from mesh.status import public

log = logging.getLogger(__name__)

PIECE = 64
"""Ids of prompts that are read between two steps."""
MOST_WAITING = 768
"""Generations that may wait; of the 1,024 items that a replica takes, others have the rest."""
TRIES = 3
"""Steps that may fail with a generation in them before it fails: its ids are known, and what a GPU
refused once may go well the next time."""


class Scheduler:
    """Runs generations on a stepper.

    Args:
        stepper: used by the scheduler's thread only.
        loop: of whoever asks; None: the running one.
        max_waiting: generations that wait for a slot, more are refused.
        lost: called in the thread when only a new process helps; what is under way is answered no
            more, so that it goes on elsewhere.
    """

    def __init__(
        self,
        stepper: Stepper,
        loop: asyncio.AbstractEventLoop | None = None,
        max_waiting: int = MOST_WAITING,
        lost: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._stepper = stepper
        self._max_waiting = max_waiting
        self._lost = lost
        self._slots: list[Running | None] = []
        """The slots in use are the first ones, but for those that were just freed."""
        self._waiting: FairQueue[Running] = FairQueue()
        self._under_way: deque[list[Running | None]] = deque()
        """Of each step that is not taken yet, who gets the token of each row."""
        self._change = threading.Condition()
        self._closing = False
        self._began = 0.0
        self._loop = loop or asyncio.get_running_loop()
        self._told: list[tuple[Running, Event]] = []
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

    def is_stuck(self, hang_s: float) -> bool:
        """Tell whether the network has not come back from a call for so many seconds."""
        began = self._began
        return began > 0 and time.monotonic() - began > hang_s

    async def run(self, prompt: Prompt, emit: Callable[[int], None]) -> Finish:
        """Generate; to cancel it frees its slot before the next step but one.

        Args:
            prompt: what is asked for.
            emit: called in the event loop with each token.

        Raises:
            InvalidInput: no id, no token wanted, or more than a slot holds.
            Overloaded: too many wait.
            DeadlineExceeded: its time is over.
            EngineError: a step failed, again and again.
            StageUnavailable: the scheduler is closed.
        """
        self._check(prompt)
        running = Running(prompt, emit, self._loop.create_future())
        if running.made == prompt.tokens:  # the replica before went away without the end
            return running.finish(LENGTH)
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
                return await running.future
        except TimeoutError:
            raise DeadlineExceeded(f"the time was over after {running.made} tokens") from None
        finally:
            running.ended = True
            with self._change:
                self._waiting.remove(prompt.client, running)

    def _check(self, prompt: Prompt) -> None:
        room, source = self._stepper.length, self._stepper.source_length
        count, left = len(prompt.ids), prompt.tokens - len(prompt.emitted)
        if not count or prompt.tokens < 1 or left < 0 or count + prompt.tokens > room:
            raise InvalidInput(
                f"{count} ids and {left} more came, wanted one of each or more, and at most {room} "
                "together; ask for fewer tokens or send a shorter text"
            )
        if bool(prompt.source) != bool(source) or len(prompt.source) > source:
            wanted = f"1 to {source}" if source else "none, as there is no encoder"
            raise InvalidInput(f"a source of {len(prompt.source)} ids came, wanted {wanted}")
        for ids in (prompt.ids, prompt.source, prompt.emitted):
            if ids and not 0 <= min(ids) <= max(ids) < self._stepper.vocabulary:
                raise InvalidInput(
                    f"ids {min(ids)} to {max(ids)} came, wanted 0 to {self._stepper.vocabulary - 1}"
                )

    def close(self) -> None:
        """End the thread; what is under way or waits fails."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait():
                self._began = time.monotonic()
                self._turn()
                self._began = 0.0
                self._hand_over()
        except DeviceLost as err:
            self._lost(str(err))
            return
        except Exception as err:  # the thread's boundary: nobody may wait for ever
            log.exception("generation failed")
            self._lost(f"the thread of the generations ended: {type(err).__name__}: {err}")
        self._began = 0.0
        with self._change:
            self._closing = True
            left = [running for running in self._slots if running is not None]
            left += [self._waiting.pop() for _ in range(len(self._waiting))]
        self._slots = []
        for running in left:
            self._tell(running, StageUnavailable("this replica is going away"))
        self._hand_over()
        self._stepper.close()

    def _turn(self) -> None:
        """Do all that is between two steps, and a step."""
        try:
            self._drop()
            self._admit()
            self._compact()
            self._read()
            self._write()
        except DeviceLost:
            raise
        except MeshError as err:
            log.exception("step failed", extra={"slots": self.busy})
            self._begin_anew(err)

    def _tell(self, running: Running, event: Event) -> None:
        self._told.append((running, event))

    def _hand_over(self) -> None:
        """Wake the event loop once for all that a step brought."""
        if self._told:
            told, self._told = self._told, []
            self._loop.call_soon_threadsafe(_deliver, told)

    def _wait(self) -> bool:
        """Sleep while there is nothing to do; return False at the end."""
        with self._change:
            while not (self._closing or self._waiting or any(self._slots) or self._under_way):
                self._change.wait()
            return not self._closing

    def _drop(self) -> None:
        """Free the slots of what nobody awaits any more."""
        for running in self._slots:
            if running is not None and running.is_over:
                self._free(running)

    def _free(self, running: Running) -> None:
        running.ended = True
        self._slots[running.slot] = None

    def _admit(self) -> None:
        while (slot := self._first_free()) is not None:
            with self._change:
                if not self._waiting:
                    return
                running = self._waiting.pop()
            if running.is_over:
                continue
            running.admitted = running.admitted or time.monotonic()
            if slot == len(self._slots):
                self._slots.append(None)
            self._slots[slot], running.slot = running, slot
            self._stepper.begin(slot, running.prompt.source)

    def _first_free(self) -> int | None:
        for slot, running in enumerate(self._slots):
            if running is None:
                return slot
        return len(self._slots) if len(self._slots) < self._stepper.slots else None

    def _compact(self) -> None:
        """Move generations down where that makes a step less wide; other holes cost nothing."""
        while self._slots and self._slots[-1] is None:
            self._slots.pop()
        if _width(self.busy) < _width(len(self._slots)):
            hole, last = self._slots.index(None), self._slots.pop()
            assert last is not None
            self._stepper.move(last.slot, hole)
            self._slots[hole], last.slot = last, hole
            self._compact()

    def _read(self) -> None:
        """Run the next ids of texts that are not read yet, the shortest rest first."""
        left = PIECE
        reading = [running for running in self._slots if running is not None and running.is_reading]
        for running in sorted(reading, key=lambda running: len(running.text) - running.done):
            piece = running.text[running.done : -1][:left]
            if piece:
                self._stepper.read(running.slot, piece, running.done)
                running.done += len(piece)
                left -= len(piece)

    def _write(self) -> None:
        """Run a step of all that have read their text, and give each its next token."""
        chooses = any(running is not None and running.chooses for running in self._slots)
        most = 1 if chooses else self._stepper.ahead
        while len(self._under_way) >= most:
            self._take()
        if any(running is not None and running.wants_token for running in self._slots):
            self._put()
        elif self._under_way:
            self._take()
        while len(self._under_way) >= most:
            self._take()

    def _put(self) -> None:
        """Begin a step of all slots."""
        ids: list[int | None] = []
        start: list[int] = []
        takers: list[Running | None] = []
        for running in self._slots:
            taker = running if running is not None and running.wants_token else None
            takers.append(taker)
            start.append(running.done if running is not None else 0)
            if taker is not None and taker.pending:
                ids.append(None)  # the network has it
            elif running is not None and running.done < len(running.text):
                ids.append(running.text[running.done])
            else:
                ids.append(0)
        self._stepper.put(ids, start)
        self._under_way.append(takers)
        for running, taker in zip(self._slots, takers, strict=True):
            if taker is not None:
                taker.pending += 1
                taker.done += 1
            elif running is not None and running.is_reading:
                running.done += 1  # one that reads has read an id more, along with the others

    def _take(self) -> None:
        """Wait for the oldest step, and give each its token."""
        outcome = self._stepper.take()
        for row, running in enumerate(self._under_way.popleft()):
            if running is not None and not running.ended:
                running.pending -= 1
                self._grow(running, outcome, row)

    def _grow(self, running: Running, outcome: Outcome, row: int) -> None:
        """Give a generation its next token, and end it where that was the last."""
        prompt = running.prompt
        try:
            token = self._token(running, outcome, row)
        except DeviceLost:  # found when logits were fetched; all of them go on elsewhere
            raise
        except Exception as err:  # one that nobody expected is of this generation alone
            if not isinstance(err, MeshError):
                log.exception("no token could be chosen")
            self._tell(running, public(err))
            self._free(running)
            return
        running.first = running.first or time.monotonic()
        if token in prompt.rules.stop:
            self._end(running, STOP)
            return
        running.text.append(token)
        running.failures = 0
        self._tell(running, token)
        if running.made == prompt.tokens:
            self._end(running, LENGTH)

    @staticmethod
    def _token(running: Running, outcome: Outcome, row: int) -> int:
        best = int(outcome.best[row])
        check_logit(float(outcome.top[row]))
        if not running.chooses:
            return best
        prompt = running.prompt
        forced = prompt.rules.forced(running.made, prompt.tokens)
        if forced is not None:
            return forced
        banned = prompt.rules.banned(running.text, running.made)
        return choose(outcome.logits(row), best, prompt.sampling, running.text, banned)

    def _end(self, running: Running, reason: str) -> None:
        self._tell(running, running.finish(reason))
        self._free(running)

    def _begin_anew(self, error: MeshError) -> None:
        """Let all generations begin anew with the texts that they have: their caches are lost."""
        self._under_way.clear()
        self._stepper.reset()
        lost = [running for running in self._slots if running is not None]
        self._slots = []
        for running in lost:
            running.begin_anew()
            running.failures += 1
            if running.failures < TRIES:
                with self._change:
                    self._waiting.push(running.prompt.client, running)
            else:
                self._tell(running, error)


def _deliver(told: Sequence[tuple[Running, Event]]) -> None:
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
