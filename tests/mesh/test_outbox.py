"""Envelopes stay small, nothing is lost or doubled, and large items do not hold up small ones."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import InvalidInput
from mesh.outbox import (
    CHANNEL_BYTES,
    FRAGMENT_BYTES,
    MAX_BYTES,
    MAX_ITEM_BYTES,
    MAX_ITEMS,
    WHOLE_ITEM_BYTES,
    Assembler,
    Outbox,
)
from protos.mesh.v1.stage_pb2 import Envelope, Fragment, Item


class SlowStream:
    """Records envelopes; a write ends when the test lets it."""

    def __init__(self) -> None:
        self.begun: list[Envelope] = []
        self._may_end = asyncio.Semaphore(0)
        self._began = asyncio.Condition()

    async def write(self, envelope: Envelope) -> None:
        async with self._began:
            self.begun.append(envelope)
            self._began.notify_all()
        await self._may_end.acquire()

    def end_writes(self, count: int = 1) -> None:
        for _ in range(count):
            self._may_end.release()

    async def has_begun(self, count: int) -> None:
        async with self._began:
            await asyncio.wait_for(self._began.wait_for(lambda: len(self.begun) >= count), 5)


@asynccontextmanager
async def running_outbox() -> AsyncIterator[tuple[Outbox, SlowStream]]:
    stream = SlowStream()
    outbox = Outbox(stream.write)
    writer = asyncio.create_task(outbox.run())
    yield outbox, stream
    outbox.close()
    stream.end_writes(10_000)
    await asyncio.wait_for(writer, 5)


def put(outbox: Outbox, key: int, size: int = 10) -> None:
    item = outbox.item(size)
    item.id = key
    item.payload = bytes(size)


def ids(envelopes: list[Envelope]) -> list[list[int]]:
    return [[item.id for item in envelope.items] for envelope in envelopes]


def flat_ids(envelopes: list[Envelope]) -> list[int]:
    return [item.id for envelope in envelopes for item in envelope.items]


def large_item(key: int, size: int) -> Item:
    return Item(id=key, payload=bytes([key]) * size)


def cut(item: Item, at: list[int]) -> Iterator[Fragment]:
    """Yield the fragments of an item that is cut at these places."""
    data = item.SerializeToString()
    places = sorted({0, len(data), *(place % len(data) for place in at)})
    for start, end in pairwise(places):
        yield Fragment(
            id=item.id, data=data[start:end], last=end == len(data),
            total_bytes=0 if start else len(data),
        )  # fmt: skip


async def test_item_is_written_at_once_when_nothing_else_is() -> None:
    async with running_outbox() as (outbox, stream):
        put(outbox, 1)
        await stream.has_begun(1)
        assert ids(stream.begun) == [[1]]


async def test_what_comes_during_a_write_leaves_as_one_envelope() -> None:
    async with running_outbox() as (outbox, stream):
        put(outbox, 0)
        await stream.has_begun(1)
        for key in range(1, MAX_ITEMS + 1):
            put(outbox, key)
            await asyncio.sleep(0)  # the writer had its chance
        stream.end_writes()
        await stream.has_begun(2)
        assert ids(stream.begun) == [[0], list(range(1, MAX_ITEMS + 1))]


async def test_control_rides_with_items_and_goes_alone_when_there_are_none() -> None:
    async with running_outbox() as (outbox, stream):
        outbox.control().cancel.append(7)
        await stream.has_begun(1)
        put(outbox, 1)
        outbox.control().drain = True
        stream.end_writes()
        await stream.has_begun(2)
        assert [list(envelope.cancel) for envelope in stream.begun] == [[7], []]
        assert [(len(e.items), e.drain) for e in stream.begun] == [(0, False), (1, True)]


@settings(max_examples=50)
@given(st.lists(st.integers(0, MAX_BYTES + 2), max_size=200), st.integers(1, 40))
def test_envelope_is_never_larger_than_its_bounds(sizes: list[int], burst: int) -> None:
    written: list[Envelope] = []

    async def write(envelope: Envelope) -> None:
        written.append(envelope)
        await asyncio.sleep(0)

    async def send() -> None:
        outbox = Outbox(write)
        writer = asyncio.create_task(outbox.run())
        for key, size in enumerate(sizes):
            put(outbox, key, size)
            if key % burst == 0:
                await asyncio.sleep(0)
        outbox.close()
        await writer

    asyncio.run(send())
    assert flat_ids(written) == list(range(len(sizes)))
    for envelope in written:
        payloads = [len(item.payload) for item in envelope.items]
        assert 1 <= len(payloads) <= MAX_ITEMS
        assert len(payloads) == 1 or sum(payloads) <= MAX_BYTES


async def test_one_item_too_many_is_a_second_envelope() -> None:
    async with running_outbox() as (outbox, stream):
        for key in range(MAX_ITEMS + 1):
            put(outbox, key)
        stream.end_writes(2)
        await stream.has_begun(2)
        assert ids(stream.begun) == [list(range(MAX_ITEMS)), [MAX_ITEMS]]


async def test_largest_whole_item_fits_the_channel_with_everything_around_it() -> None:
    async with running_outbox() as (outbox, stream):
        put(outbox, 1, 10_000)
        put(outbox, 2, WHOLE_ITEM_BYTES)
        put(outbox, 3, 10_000)
        stream.end_writes(3)
        await stream.has_begun(3)
        assert ids(stream.begun) == [[1], [2], [3]]
        assert max(envelope.ByteSize() for envelope in stream.begun) <= CHANNEL_BYTES


async def test_small_item_waits_for_one_fragment_of_a_large_one_at_most() -> None:
    async with running_outbox() as (outbox, stream):
        outbox.put_large(large_item(9, 10 * FRAGMENT_BYTES))
        for small in range(5):
            await stream.has_begun(2 * small + 1)
            assert stream.begun[-1].HasField("fragment")
            put(outbox, small)
            stream.end_writes(2)
            await stream.has_begun(2 * small + 2)
            assert ids(stream.begun[-1:]) == [[small]] or ids(stream.begun[-2:-1]) == [[small]]


async def test_two_large_items_share_the_stream() -> None:
    async with running_outbox() as (outbox, stream):
        outbox.put_large(large_item(1, 3 * FRAGMENT_BYTES))
        outbox.put_large(large_item(2, 3 * FRAGMENT_BYTES))
        stream.end_writes(100)
        await stream.has_begun(8)
        assert [envelope.fragment.id for envelope in stream.begun] == [1, 2] * 4


async def test_close_writes_what_was_queued_and_ends() -> None:
    stream = SlowStream()
    outbox = Outbox(stream.write)
    for key in range(100):
        put(outbox, key)
    outbox.put_large(large_item(7, WHOLE_ITEM_BYTES + 1))
    outbox.control().drain = True
    outbox.close()
    stream.end_writes(100)
    await asyncio.wait_for(outbox.run(), 5)
    assert flat_ids(stream.begun) == list(range(100))
    assert [e.fragment.last for e in stream.begun if e.HasField("fragment")] == [False] * 4 + [True]
    assert sum(envelope.drain for envelope in stream.begun) == 1


async def test_close_ends_a_writer_that_waits() -> None:
    async with running_outbox() as (outbox, stream):
        outbox.close()
    assert stream.begun == []


@pytest.mark.parametrize("sizes", [[1], [0, 1], [300_000, 2], [262_144] * 3, [10**6] * 4], ids=str)
async def test_items_that_the_outbox_cut_are_whole_again(sizes: list[int]) -> None:
    wanted = {key: large_item(key, size) for key, size in enumerate(sizes, 1)}
    assembler = Assembler()
    found = {}

    async def receive(envelope: Envelope) -> None:
        assert envelope.ByteSize() <= CHANNEL_BYTES
        whole = assembler.add(Envelope.FromString(envelope.SerializeToString()).fragment)
        if whole is not None:
            found[whole.id] = whole

    outbox = Outbox(receive)
    for item in wanted.values():
        outbox.put_large(item)
    outbox.close()
    await outbox.run()
    assert found == wanted


@given(
    st.lists(st.tuples(st.binary(max_size=200), st.lists(st.integers(0, 300))), max_size=5),
    st.randoms(use_true_random=False),
)
def test_items_cut_anywhere_and_interleaved_are_whole_again(
    cuts: list[tuple[bytes, list[int]]], random: Random
) -> None:
    items = [Item(id=key + 1, payload=payload) for key, (payload, _) in enumerate(cuts)]
    streams = [list(cut(item, at)) for item, (_, at) in zip(items, cuts, strict=True)]
    assembler = Assembler()
    found = []
    while any(streams):
        stream = random.choice([left for left in streams if left])
        whole = assembler.add(stream.pop(0))
        if whole is not None:
            found.append(whole)
    assert sorted(found, key=lambda item: item.id) == items
    assert not assembler._parts
    assert assembler._bytes == 0


def test_incomplete_items_are_bounded_together_and_give_their_room_back() -> None:
    assembler = Assembler(max_bytes=100)
    assert assembler.add(Fragment(id=1, data=b"x" * 10, total_bytes=60)) is None
    with pytest.raises(InvalidInput, match="100 for all that are incomplete"):
        assembler.add(Fragment(id=2, data=b"x", total_bytes=60))
    with pytest.raises(InvalidInput, match="do not add up"):
        assembler.add(Fragment(id=1, data=b"x" * 51))
    assert assembler.add(Fragment(id=2, data=b"x", total_bytes=60)) is None


@pytest.mark.parametrize(
    "fragments",
    [
        pytest.param([Fragment(id=1, data=b"x", total_bytes=MAX_ITEM_BYTES + 1)], id="too_large"),
        pytest.param([Fragment(id=1, data=b"x", last=True)], id="no_size"),
        pytest.param([Fragment(id=1, data=b"xyz", total_bytes=2, last=True)], id="longer"),
        pytest.param([Fragment(id=1, data=b"x", total_bytes=2, last=True)], id="shorter"),
        pytest.param([Fragment(id=1, data=b"xy", total_bytes=2)], id="never_last"),
        pytest.param([Fragment(id=1, data=b"\xff\xff", total_bytes=2, last=True)], id="no_item"),
    ],
)
def test_fragments_that_are_no_item_are_refused_and_leave_nothing(
    fragments: list[Fragment],
) -> None:
    assembler = Assembler()
    with pytest.raises(InvalidInput):
        for fragment in fragments:
            assembler.add(fragment)
    assert not assembler._parts
    assert assembler._bytes == 0
