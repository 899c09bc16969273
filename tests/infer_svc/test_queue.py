import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from infer_svc.config import Batching, QueuePolicy
from infer_svc.queue import EARLY_S, Entry, Moments, RequestQueue, ShapeKey
from mesh.errors import InvalidInput, Overloaded
from mesh.item import Reply, Request

SMALL: ShapeKey = ((4,),)
LARGE: ShapeKey = ((9,),)
NOW = 1000.0

Make = Callable[..., Entry]


def entry_in(loop: asyncio.AbstractEventLoop, **given: Any) -> Entry:
    """Make an entry that was queued at NOW."""
    parameters = {name: given.pop(name) for name in ("priority", "timeout") if name in given}
    request = Request(
        given.pop("target", "m"),
        b"",
        parameters=json.dumps(parameters).encode() if parameters else b"",
        deadline=given.pop("deadline", math.inf),
    )
    future: asyncio.Future[Reply] = loop.create_future()
    defaults: dict[str, Any] = {"key": SMALL, "rows": 1, "queued": NOW}
    return Entry(request=request, tensors={}, future=future, **(defaults | given))


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Make entries whose futures belong to the test's loop."""
    loop = asyncio.get_running_loop()
    yield lambda **given: entry_in(loop, **given)


def queued(batching: Batching, *entries: Entry) -> RequestQueue:
    queue = RequestQueue(batching)
    for entry in entries:
        queue.push(entry)
    return queue


def drain(queue: RequestQueue) -> list[Entry]:
    """Take everything, one entry at a time, in the order of the queue."""
    taken = []
    while (first := queue.first()) is not None:
        taken += queue.take(first.key, 1)
    return taken


LEVELS = Batching(levels=3, default_level=2)


async def test_one_level_is_first_in_first_out(make: Make) -> None:
    entries = [make() for _ in range(5)]
    assert drain(queued(Batching(), *entries)) == entries


async def test_clients_have_no_turns_within_a_level(make: Make) -> None:
    entries = [make() for _ in range(4)]
    for entry, client in zip(entries, "aaab", strict=True):
        entry.request.client = client
    assert drain(queued(Batching(), *entries)) == entries


async def test_smaller_level_is_served_first(make: Make) -> None:
    low, high, middle = (make(priority=level) for level in (3, 1, 2))
    assert drain(queued(LEVELS, low, high, middle)) == [high, middle, low]


@pytest.mark.parametrize("given", [{}, {"priority": 0}, {"priority": 4}, {"timeout": 5}], ids=str)
async def test_request_without_a_priority_that_there_is_has_the_default_level(
    make: Make, given: dict[str, int]
) -> None:
    low, default, high = make(priority=3), make(**given), make(priority=1)
    assert drain(queued(LEVELS, low, default, high)) == [high, default, low]


@pytest.mark.parametrize(
    "parameters",
    [
        b"{", b"[]", b'"x"', b"null", b"\xff", b'{"priority": "high"}', b'{"priority": null}',
        b'{"priority": [1]}', b'{"priority": -1}', b'{"timeout": -1}',
        b'{"priority": Infinity}', b'{"timeout": NaN}', b'{"timeout": 1e400}',
        b'{"timeout": ' + b"9" * 400 + b"}",
    ],
    ids=lambda value: value[:24].decode(errors="replace"),
)  # fmt: skip
async def test_parameters_that_cannot_be_used_are_refused_and_not_queued(
    make: Make, parameters: bytes
) -> None:
    entry = make()
    entry.request.parameters = parameters
    queue = RequestQueue(LEVELS)
    with pytest.raises(InvalidInput, match="priority"):
        queue.push(entry)
    assert len(queue) == 0
    assert queue.first() is None


async def test_priority_without_levels_changes_nothing(make: Make) -> None:
    first, second = make(), make(priority=1)
    assert drain(queued(Batching(), first, second)) == [first, second]


async def test_parameters_that_mean_nothing_here_are_passed_over(make: Make) -> None:
    entry = make()
    entry.request.parameters = b'{"binary_data_output": true}'
    assert drain(queued(Batching(), entry)) == [entry]


async def test_full_level_is_overloaded_and_others_are_not(make: Make) -> None:
    policies = ((1, QueuePolicy(max_size=2)),)
    queue = RequestQueue(Batching(levels=2, default_level=2, policies=policies))
    for _ in range(2):
        queue.push(make(priority=1))
    with pytest.raises(Overloaded, match="2 requests wait for model 'm', its max_queue_size is 2"):
        queue.push(make(priority=1))
    queue.push(make(priority=2))
    assert len(queue) == 3


@pytest.mark.parametrize("leave", ["taken", "gave-up", "late"])
async def test_whoever_leaves_makes_room(make: Make, leave: str) -> None:
    policy = QueuePolicy(max_size=1, timeout_s=1.0)
    first = make()
    queue = queued(Batching(default_policy=policy), first)
    with pytest.raises(Overloaded):
        queue.push(make())
    if leave == "taken":
        assert queue.take(SMALL, 1) == [first]
    elif leave == "gave-up":
        queue.discard(first)
    else:
        assert queue.drop_late(NOW + 2) == [first]
    queue.push(make())
    assert len(queue) == 1


async def test_delayed_entries_count_for_the_size_of_their_level(make: Make) -> None:
    policy = QueuePolicy(timeout_s=1.0, reject=False, max_size=2)
    queue = queued(Batching(default_policy=policy), make(), make())
    assert queue.drop_late(NOW + 1) == []
    with pytest.raises(Overloaded):
        queue.push(make(queued=NOW + 1))


async def test_timeout_rejects_when_it_is_reached(make: Make) -> None:
    policy = QueuePolicy(timeout_s=1.0)
    first, second = make(), make(queued=NOW + 0.5)
    queue = queued(Batching(default_policy=policy), first, second)
    assert queue.next_late() == NOW + 1
    assert queue.drop_late(NOW + 0.999) == []
    assert queue.drop_late(NOW + 1.0) == [first]
    assert queue.next_late() == NOW + 1.5
    assert drain(queue) == [second]


async def test_delayed_entry_is_served_after_those_of_its_level_and_before_lower_ones(
    make: Make,
) -> None:
    delays = QueuePolicy(timeout_s=1.0, reject=False)
    queue = RequestQueue(Batching(levels=2, default_level=2, default_policy=delays))
    waiting = [make(priority=1), make(priority=2), make(priority=1)]
    for entry in waiting:
        queue.push(entry)
    assert queue.drop_late(NOW + 1) == []
    later = [make(priority=2, queued=NOW + 1), make(priority=1, queued=NOW + 1)]
    for entry in later:
        queue.push(entry)
    assert drain(queue) == [later[1], waiting[0], waiting[2], later[0], waiting[1]]


async def test_delayed_entry_is_not_delayed_again_but_still_has_its_deadline(make: Make) -> None:
    delays = QueuePolicy(timeout_s=1.0, reject=False)
    entry = make(deadline=NOW + 5)
    queue = queued(Batching(default_policy=delays), entry)
    assert queue.drop_late(NOW + 1) == queue.drop_late(NOW + 4.9) == []
    assert queue.next_late() == NOW + 5
    assert queue.drop_late(NOW + 5) == [entry]
    assert len(queue) == 0


@pytest.mark.parametrize(
    ("policy", "timeout_us", "limit_s"),
    [
        (QueuePolicy(timeout_s=1.0, allow_override=True), 200_000, 0.2),
        (QueuePolicy(timeout_s=1.0, allow_override=True), 5_000_000, 1.0),
        (QueuePolicy(timeout_s=1.0, allow_override=True), 0, 1.0),
        (QueuePolicy(timeout_s=1.0), 200_000, 1.0),
        (QueuePolicy(allow_override=True), 200_000, 0.2),
        (QueuePolicy(), 200_000, math.inf),
    ],
    ids=["shorter", "longer", "none", "not-allowed", "no-default", "nothing"],
)
async def test_request_may_only_shorten_its_timeout_where_the_policy_allows(
    make: Make, policy: QueuePolicy, timeout_us: int, limit_s: float
) -> None:
    queue = queued(Batching(default_policy=policy), make(timeout=timeout_us))
    assert queue.next_late() == pytest.approx(NOW + limit_s)


async def test_deadline_drops_whatever_the_policy_says(make: Make) -> None:
    delays = QueuePolicy(timeout_s=10.0, reject=False)
    late, fine = make(deadline=NOW + 1), make(deadline=NOW + 2)
    queue = queued(Batching(default_policy=delays), late, fine)
    assert queue.drop_late(NOW + 1) == [late]
    assert drain(queue) == [fine]


async def test_entry_without_limits_is_never_late(make: Make) -> None:
    queue = queued(Batching(), make())
    assert queue.next_late() == math.inf
    assert queue.drop_late(NOW * 1e6) == []


@pytest.mark.parametrize(
    ("given", "policy", "batch_s", "due"),
    [
        ({}, QueuePolicy(), 0.0, 0.5),
        ({"deadline": NOW + 0.3}, QueuePolicy(), 0.0, 0.3 - EARLY_S),
        ({"deadline": NOW + 0.3}, QueuePolicy(), 0.1, 0.1),
        ({}, QueuePolicy(timeout_s=0.2), 0.1, 0.2 - EARLY_S),
        ({"deadline": NOW + 9}, QueuePolicy(timeout_s=9), 0.1, 0.5),
    ],
    ids=["delay", "deadline", "batch-time", "timeout", "all-later"],
)
async def test_entry_is_due_after_the_delay_or_before_it_would_be_late(
    make: Make, given: dict[str, float], policy: QueuePolicy, batch_s: float, due: float
) -> None:
    queue = RequestQueue(Batching(delay_s=0.5, default_policy=policy))
    entry = make(**given)
    queue.push(entry, batch_s)
    moment, whose = queue.next_due()
    assert moment == pytest.approx(NOW + due)
    assert whose is entry


async def test_soonest_due_is_found_behind_others(make: Make) -> None:
    urgent = make(deadline=NOW + 0.1, key=LARGE)
    queue = queued(Batching(delay_s=0.5), make(), urgent, make())
    assert queue.next_due()[1] is urgent
    assert queue.take(LARGE, 1) == [urgent]
    assert queue.next_due()[0] == NOW + 0.5


async def test_entries_of_one_shape_are_taken_in_order(make: Make) -> None:
    entries = [make(key=key) for key in (SMALL, LARGE, SMALL, LARGE, SMALL)]
    queue = queued(Batching(), *entries)
    assert queue.rows(SMALL) == 3
    assert queue.take(SMALL, 8) == entries[::2]
    assert queue.rows(SMALL) == 0
    assert queue.take(SMALL, 8) == []
    assert queue.take(LARGE, 1) == [entries[1]]
    assert len(queue) == queue.rows(LARGE) == 1


async def test_taken_rows_fit_and_nobody_overtakes(make: Make) -> None:
    entries = [make(rows=rows) for rows in (3, 4, 2, 1)]
    queue = queued(Batching(), *entries)
    assert queue.take(SMALL, 8) == entries[:2]
    assert queue.take(SMALL, 8) == entries[2:]


async def test_entry_larger_than_a_batch_is_taken_alone(make: Make) -> None:
    entries = [make(rows=5), make(rows=1)]
    queue = queued(Batching(), *entries)
    assert queue.take(SMALL, 2) == entries[:1]


async def test_batch_spans_levels_most_urgent_first(make: Make) -> None:
    low, high = make(priority=3), make(priority=1)
    assert queued(LEVELS, low, high).take(SMALL, 8) == [high, low]


async def test_entry_that_gave_up_is_neither_taken_nor_counted(make: Make) -> None:
    kept, gave_up = make(), make()
    queue = queued(Batching(delay_s=0.5), gave_up, kept)
    gave_up.future.cancel()
    assert queue.take(SMALL, 1) == [kept]
    assert len(queue) == queue.rows(SMALL) == 0
    assert queue.next_due() == (math.inf, None)


async def test_discarded_entry_is_out_at_once_and_only_once(make: Make) -> None:
    entry, other = make(deadline=NOW + 1), make()
    queue = queued(Batching(delay_s=0.5), entry, other)
    for _ in range(2):
        queue.discard(entry)
        assert len(queue) == queue.rows(SMALL) == 1
    assert queue.first() is other
    assert queue.next_late() == math.inf


async def test_shapes_are_ripe_as_long_as_enough_rows_wait(make: Make) -> None:
    queue = RequestQueue(Batching(), ripe_rows=3)
    for key, rows in ((SMALL, 2), (LARGE, 3), (SMALL, 1)):
        queue.push(make(key=key, rows=rows))
    assert list(queue.ripe()) == [LARGE, SMALL]
    queue.take(LARGE, 3)
    assert list(queue.ripe()) == [SMALL]
    queue.take(SMALL, 2)
    assert list(queue.ripe()) == []


async def test_oldest_is_found_on_any_level_until_it_leaves(make: Make) -> None:
    old, new = make(priority=2, queued=NOW - 2), make(priority=1, queued=NOW - 1)
    queue = queued(Batching(levels=2, default_level=2), old, new)
    assert queue.oldest() == NOW - 2
    queue.discard(old)
    assert queue.oldest() == NOW - 1
    drain(queue)
    assert queue.oldest() == math.inf


async def test_shapes_that_no_longer_wait_are_forgotten(make: Make) -> None:
    queue = RequestQueue(LEVELS)
    for width in range(100):
        entry = make(key=((width,),), priority=1 + width % 3)
        queue.push(entry)
        queue.discard(entry)
    assert (len(queue._shapes), len(queue._lines)) == (0, 0)


async def test_moments_keep_no_more_than_a_few_that_have_passed(make: Make) -> None:
    moments = Moments()
    for number in range(1000):
        entry = make()
        entry.waits = number % 100 == 0
        moments.add(1000.0 - number, entry, waiting=number // 100 + 1)
        assert len(moments._heap) <= 2 * (number // 100 + 1) + 8
    assert moments.soonest()[0] == 100.0


async def test_cost_of_an_entry_does_not_grow_with_those_that_wait(make: Make) -> None:
    def cost(waiting: int) -> float:
        queue = RequestQueue(Batching(delay_s=60.0), ripe_rows=3)
        for number in range(waiting):
            queue.push(make(key=((number,),), deadline=NOW + 60 + number))
        best = math.inf
        for _ in range(20):
            entries = [make(key=((number,),), deadline=NOW + 99) for number in range(50)]
            started = time.thread_time()
            for entry in entries:
                queue.push(entry)
                queue.drop_late(NOW)
                queue.next_due()
                queue.first()
                list(queue.ripe())
                queue.take(entry.key, 1)
                queue.discard(entry)
            best = min(best, time.thread_time() - started)
        return best

    assert cost(4096) < 8 * cost(16)


class QueueMachine(RuleBasedStateMachine):
    """Compares the queue with a list of what waits."""

    @initialize(reject=st.booleans(), ripe_rows=st.integers(1, 6))
    def begin(self, reject: bool, ripe_rows: int) -> None:
        self.loop = asyncio.new_event_loop()
        policy = QueuePolicy(timeout_s=5.0, reject=reject)
        policies = ((1, policy), (2, QueuePolicy()))
        self.reject = reject
        self.ripe_rows = ripe_rows
        self.now = NOW
        self.queue = RequestQueue(
            Batching(levels=2, default_level=2, delay_s=1.0, policies=policies), ripe_rows
        )
        self.waiting: list[Entry] = []
        self.moved: set[Entry] = set()

    def in_order(self, key: ShapeKey | None = None) -> list[Entry]:
        """Return what is to be served, by the list alone."""
        found = [entry for entry in self.waiting if key in (None, entry.key)]
        return sorted(found, key=lambda entry: (entry.level, entry.moved))

    @rule(
        key=st.sampled_from([SMALL, LARGE, ((1,), (2,))]),
        rows=st.integers(1, 5),
        priority=st.integers(0, 2),
        left_s=st.sampled_from([0.5, 3.0, 9.0, math.inf]),
    )
    def push(self, key: ShapeKey, rows: int, priority: int, left_s: float) -> None:
        given = {"key": key, "rows": rows, "priority": priority, "queued": self.now}
        entry = entry_in(self.loop, deadline=self.now + left_s, **given)
        self.queue.push(entry)
        self.waiting.append(entry)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), told=st.booleans())
    def give_up(self, data: st.DataObject, told: bool) -> None:
        entry = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(entry)
        entry.future.cancel()
        self.queue.discard(entry)
        if told:
            self.queue.discard(entry)

    @precondition(lambda self: self.waiting)
    @rule(max_rows=st.integers(1, 8))
    def take(self, max_rows: int) -> None:
        first = self.queue.first()
        assert first is not None
        wanted: list[Entry] = []
        for entry in self.in_order(first.key):
            if wanted and sum(e.rows for e in wanted) + entry.rows > max_rows:
                break
            wanted.append(entry)
        assert self.queue.take(first.key, max_rows) == wanted
        self.waiting = [entry for entry in self.waiting if entry not in wanted]

    @rule(passed_s=st.sampled_from([0.1, 1.0, 4.0]))
    def pass_time(self, passed_s: float) -> None:
        self.now += passed_s
        late = self.queue.drop_late(self.now)
        for entry in late:
            self.waiting.remove(entry)
            timed_out = self.reject and entry.level == 1 and entry.queued + 5.0 <= self.now
            assert entry.request.deadline <= self.now or timed_out
        for entry in sorted(self.waiting, key=lambda e: e.queued):
            assert entry.request.deadline > self.now
            timed_out = entry.level == 1 and entry.queued + 5.0 <= self.now
            assert entry.moved == timed_out
            if entry.moved and entry not in self.moved:
                self.moved.add(entry)
                self.waiting.remove(entry)
                self.waiting.append(entry)

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert len(self.queue) == len(self.waiting)
        order = self.in_order()
        assert self.queue.first() is (order[0] if order else None)
        sums: dict[ShapeKey, int] = {}
        for entry in self.waiting:
            sums[entry.key] = sums.get(entry.key, 0) + entry.rows
        assert {key: self.queue.rows(key) for key in sums} == sums
        assert set(self.queue.ripe()) == {key for key in sums if sums[key] >= self.ripe_rows}
        due = min((entry.due for entry in self.waiting), default=math.inf)
        assert self.queue.next_due()[0] == due

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.close()


TestQueueIsAsAListOfWhatWaits = QueueMachine.TestCase
TestQueueIsAsAListOfWhatWaits.settings = settings(max_examples=60, stateful_step_count=30)
