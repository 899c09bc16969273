"""A request knows when its time is over, and a reply which error it stands for."""

import time

import pytest

from mesh.errors import DeadlineExceeded, InvalidInput
from mesh.item import Reply, Request
from mesh.status import to_status


def test_request_without_a_deadline_is_never_late() -> None:
    Request("t", b"").check_deadline()


def test_request_in_time_passes() -> None:
    Request("t", b"", deadline=time.monotonic() + 1).check_deadline()


def test_late_request_says_by_how_much_and_where_it_waited() -> None:
    now = time.monotonic()
    late = Request("digits", b"", deadline=now - 0.5, received=now - 2)
    with pytest.raises(DeadlineExceeded) as caught:
        late.check_deadline()
    assert "passed 50" in str(caught.value)
    assert "after 200" in str(caught.value)
    assert "queue of 'digits'" in str(caught.value)


def test_request_remembers_when_it_came() -> None:
    before = time.monotonic()
    assert before <= Request("t", b"").received <= time.monotonic()


def test_reply_without_a_status_is_no_error() -> None:
    assert Reply(b"x").error() is None


def test_reply_with_a_status_is_the_error_it_was_made_of() -> None:
    error = Reply(status=to_status(InvalidInput("no tensor"))).error()
    assert isinstance(error, InvalidInput)
    assert str(error) == "no tensor"


def test_reply_that_is_checked_raises_what_its_status_stands_for() -> None:
    Reply(b"x").check()
    with pytest.raises(InvalidInput, match="no shape"):
        Reply(status=to_status(InvalidInput("no shape"))).check()
