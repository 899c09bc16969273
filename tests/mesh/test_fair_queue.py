"""Each client's items stay in order, clients take turns, and an empty queue says so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.fair_queue import FairQueue

PUSHES = st.lists(st.tuples(st.sampled_from("abc"), st.integers()), max_size=50)


def filled(*items: str) -> FairQueue[str]:
    """Return a queue of items whose first letter is their client."""
    queue: FairQueue[str] = FairQueue()
    for item in items:
        queue.push(item[0], item)
    return queue


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


def test_clients_take_turns_however_much_one_sends() -> None:
    queue = filled("a1", "a2", "a3", "a4", "b1", "c1", "b2")
    assert drained(queue) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_client_that_comes_late_is_served_after_one_item_of_each_other() -> None:
    queue = filled(*(f"a{index}" for index in range(100)))
    queue.pop()
    queue.push("b", "b1")
    assert [queue.pop(), queue.pop()] == ["a1", "b1"]


def test_client_that_was_served_does_not_get_ahead_by_sending_again() -> None:
    queue = filled("a1", "b1", "c1")
    assert queue.pop() == "a1"
    queue.push("a", "a2")
    assert drained(queue) == ["b1", "c1", "a2"]


def test_peek_shows_what_pop_takes() -> None:
    queue = filled("a1", "b1", "a2")
    while queue:
        assert queue.peek() == queue.pop()


@given(PUSHES)
def test_items_of_a_client_keep_their_order_and_none_is_lost(pushes: list[tuple[str, int]]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for push in pushes:
        queue.push(push[0], push)
    assert len(queue) == len(pushes)
    popped = [queue.pop() for _ in pushes]
    for client in "abc":
        assert [x for x in popped if x[0] == client] == [x for x in pushes if x[0] == client]
    assert not queue
    assert not queue._queues


@given(PUSHES, st.data())
def test_what_is_removed_does_not_come_and_the_rest_does(
    pushes: list[tuple[str, int]], data: st.DataObject
) -> None:
    queue: FairQueue[tuple[int, str]] = FairQueue()
    entries = [(index, client) for index, (client, _) in enumerate(pushes)]
    for entry in entries:
        queue.push(entry[1], entry)
    gone = data.draw(st.sets(st.sampled_from(entries))) if entries else set()
    for entry in gone:
        queue.remove(entry[1], entry)
    assert len(queue) == len(entries) - len(gone)
    assert sorted(queue.pop() for _ in range(len(queue))) == sorted(set(entries) - gone)
    assert not queue._queues


def test_removing_what_is_gone_does_nothing() -> None:
    queue = filled("a1", "b1")
    queue.remove("a", "a7")
    queue.remove("z", "a1")
    queue.pop()
    queue.remove("a", "a1")
    assert drained(queue) == ["b1"]


def test_empty_queue_is_an_index_error() -> None:
    queue = filled("a1")
    queue.pop()
    with pytest.raises(IndexError, match="empty"):
        queue.pop()
    with pytest.raises(IndexError, match="empty"):
        queue.peek()
