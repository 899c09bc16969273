"""A lease counts at its link until it is released, once."""

from mesh.lease import Lease
from mesh.link import Link


def test_lease_counts_until_it_is_released_and_tells_so_once() -> None:
    link, released = Link("127.0.0.1:1", "/x/Run", lambda: None), list[str]()
    first = Lease(link, 600, lambda: released.append("first"))
    second = Lease(link, 1, lambda: released.append("second"))
    assert (link.items, link.bytes) == (2, 601)
    first.release()
    first.release()
    assert (link.items, link.bytes) == (1, 1)
    assert released == ["first"]
    second.release()
    assert (link.items, link.bytes) == (0, 0)
    assert released == ["first", "second"]


def test_lease_of_a_link_without_shared_memory_has_no_slot() -> None:
    lease = Lease(Link("127.0.0.1:1", "/x/Run", lambda: None), 1, lambda: None)
    assert lease.take_slot() is None
    assert lease.inline(b"payload") == b"payload"
    lease.release()
