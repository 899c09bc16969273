"""Shared memory: leases, refusals, and what is left when somebody dies."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mesh import arena as module
from mesh.arena import MAX_OPEN, Arena, Lender, Slots, Writer, remove_orphans
from mesh.errors import InvalidInput
from mesh.tensor import Array, inline, pack, unpack
from protos.mesh.v1.tensor_pb2 import Slot, SlotRange

SLOT_BYTES = 8192
PIXELS: dict[str, Array] = {"x": np.arange(5000, dtype=np.uint8).reshape(2, 2500)}

HOLDER = """
import sys, time
from mesh.arena import MAX_OPEN, Arena
from protos.mesh.v1.tensor_pb2 import Slot
arena = Arena(sys.argv[1])
slot = Slot(arena=sys.argv[1], index=int(sys.argv[2]), generation=int(sys.argv[3]))
with arena.writing(slot) as place:
    print("writing" if place else "refused", flush=True)
    time.sleep(60)
"""
OWNER = """
import time
from mesh.arena import Lender
lender = Lender(1)
lender.open(8192)
print(lender.lend("s").arena, flush=True)
time.sleep(60)
"""


@pytest.fixture
def lender() -> Iterator[Lender]:
    lender = Lender(1)
    lender.open(SLOT_BYTES)
    yield lender
    lender.close()


def slots_of(lender: Lender, session: str = "s") -> Slots:
    lending = lender.lend(session)
    assert lending is not None
    return Slots(lending, session)


def taken(slots: Slots) -> Slot:
    slot = slots.take()
    assert slot is not None
    return slot


def range_of(payload: bytes) -> SlotRange:
    """Return the range of the only tensor of a payload."""
    found: list[SlotRange] = []

    def note(at: SlotRange) -> memoryview:
        found.append(at)
        return memoryview(bytes(at.bytes))

    unpack(payload, note)
    return found[0]


def start(program: str, *words: str) -> tuple["subprocess.Popen[str]", str]:
    """Start a Python program; return it and its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def test_tensors_go_by_reference_and_come_back_the_same(lender: Lender) -> None:
    slot = taken(slots_of(lender))
    tensors = {**PIXELS, "y": np.linspace(0, 1, 700).astype(np.float32).reshape(7, 100)}
    tensors["x"] = tensors["x"][:, ::2].repeat(2, axis=1)  # its rows are not contiguous
    payload = Writer().pack(tensors, slot)
    assert len(payload) < 2800 + 500  # x is 5,000 bytes; y is below 4,096 and comes along
    back = unpack(payload, lambda at: lender.read(at, "s"))
    assert all(np.array_equal(back[name], array) for name, array in tensors.items())
    assert not back["x"].flags.writeable


def test_several_tensors_of_a_slot_do_not_overlap(lender: Lender) -> None:
    slot = taken(slots_of(lender))
    tensors: dict[str, Array] = {
        "a": np.full(4097, 1, np.uint8), "b": np.full(4000, 2, np.uint8),
        "c": np.full(4096, 3, np.uint8),
    }  # fmt: skip
    payload = Writer().pack(tensors, slot)
    back = unpack(payload, lambda at: lender.read(at, "s"))
    assert {name: set(array.tolist()) for name, array in back.items()} == {
        "a": {1}, "b": {2}, "c": {3},
    }  # fmt: skip
    assert len(payload) > 8000, "c does not fit beside a, so it comes along"


def test_reference_needs_the_memory(lender: Lender) -> None:
    payload = Writer().pack(PIXELS, taken(slots_of(lender)))
    with pytest.raises(InvalidInput, match="tensor 'x' is in shared memory"):
        unpack(payload)
    with pytest.raises(InvalidInput, match="lends none"):
        Lender(0).read(range_of(payload), "s")


def test_file_that_is_removed_is_read_on_by_its_owner_and_opened_by_nobody(lender: Lender) -> None:
    payload = Writer().pack(PIXELS, taken(slots_of(lender)))
    at = range_of(payload)
    lender.remove()
    assert bytes(lender.read(at, "s")) == PIXELS["x"].tobytes()
    with pytest.raises(FileNotFoundError):
        Arena(at.slot.arena)


def test_payload_can_go_another_way_after_all(lender: Lender) -> None:
    slots = slots_of(lender)
    payload = Writer().pack(PIXELS, taken(slots))
    assert np.array_equal(unpack(inline(payload, slots.read))["x"], PIXELS["x"])


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("arena", "trtmesh-00", "wanted one of the 126 slots"),
        ("arena", "/etc/passwd", "wanted one of the 126 slots"),
        ("index", 126, "wanted one of the 126 slots"),
        ("index", 2**32 - 1, "wanted one of the 126 slots"),
        ("index", 1, "is over"),
        ("generation", 0, "is over"),
        ("generation", 2**64 - 1, "is over"),
        ("offset", 8192 - 4999, "wanted at most 8192"),
        ("offset", 2**64 - 1, "wanted at most 8192"),
        ("bytes", 8193, "wanted at most 8192"),
    ],
)
def test_what_the_lease_does_not_cover_is_refused(
    lender: Lender, field: str, value: str | int, text: str
) -> None:
    at = range_of(Writer().pack(PIXELS, taken(slots_of(lender))))
    setattr(at.slot if field in ("arena", "index", "generation") else at, field, value)
    with pytest.raises(InvalidInput, match=text):
        lender.read(at, "s")


def test_another_session_is_refused(lender: Lender) -> None:
    at = range_of(Writer().pack(PIXELS, taken(slots_of(lender))))
    with pytest.raises(InvalidInput, match="another client's"):
        lender.read(at, "t")


def test_size_that_is_not_the_tensors_is_refused(lender: Lender) -> None:
    payload = Writer().pack(PIXELS, taken(slots_of(lender)))

    def half(at: SlotRange) -> memoryview:
        return lender.read(SlotRange(slot=at.slot, offset=0, bytes=2500), "s")

    with pytest.raises(InvalidInput, match="2500 bytes came, wanted 5000"):
        unpack(payload, half)


def test_lease_that_is_over_is_neither_written_nor_read(lender: Lender) -> None:
    slots = slots_of(lender)
    old = taken(slots)
    payload = Writer().pack(PIXELS, old)
    slots.give_back(old)
    while (new := taken(slots)).index != old.index:
        pass
    newer = Writer().pack({"x": np.full(5000, 7, np.uint8)}, new)
    late = Writer().pack(PIXELS, old)
    assert np.array_equal(unpack(late)["x"], PIXELS["x"]), "a late writer sends the bytes"
    assert set(unpack(newer, lambda at: lender.read(at, "s"))["x"].tolist()) == {7}
    with pytest.raises(InvalidInput, match="is over"):
        lender.read(range_of(payload), "s")


def test_slots_that_are_all_leased(lender: Lender) -> None:
    slots = slots_of(lender)
    leases = [taken(slots) for _ in range(63)]
    assert slots.take() is None
    slots.give_back(leases[5])
    assert taken(slots).index == leases[5].index


def test_sessions_share_what_is_left_and_give_it_back(lender: Lender) -> None:
    counts = []
    for session in "abcdefghi":
        lending = lender.lend(session)
        assert lending is not None
        counts.append(len(lending.slots))
    assert counts == [63, 32, 16, 8, 4, 2, 1, 0, 0]
    lender.take_back("a")
    lender.take_back("unknown")
    again = lender.lend("j")
    assert again is not None
    assert len(again.slots) == 32


def test_session_of_the_past_can_lease_no_more(lender: Lender) -> None:
    before = slots_of(lender, "a")
    lender.take_back("a")
    after = [slots_of(lender, session) for session in "bc"]
    owned = {taken(slots).index for slots in after for _ in range(32)}
    left = {slot.index for slot in iter(before.take, None)}
    assert not owned & left


def test_slot_of_a_writer_that_hangs_is_not_lent_until_it_is_gone(lender: Lender) -> None:
    slots = slots_of(lender)
    slot = taken(slots)
    words = (slot.arena, str(slot.index), str(slot.generation))
    process, line = start(HOLDER, *words)
    try:
        assert line == "writing"
        os.kill(process.pid, signal.SIGSTOP)
        slots.give_back(slot)
        assert slot.index not in {taken(slots).index for _ in range(62)}
        assert slots.take() is None
    finally:
        end(process)
    assert taken(slots).index == slot.index


def test_writer_that_comes_late_is_refused(lender: Lender) -> None:
    slot = taken(slots_of(lender))
    process, line = start(HOLDER, slot.arena, str(slot.index), str(slot.generation - 1))
    end(process)
    assert line == "refused"


def test_two_threads_of_one_process_do_not_write_one_slot(lender: Lender) -> None:
    slot = taken(slots_of(lender))
    arena = Arena(slot.arena)
    with arena.writing(slot) as first, arena.writing(slot) as second:
        assert first is not None
        assert second is None
    with arena.writing(slot) as third:
        assert third is not None
    arena.close()


def test_file_is_for_its_owner_only_and_goes_with_it() -> None:
    lender = Lender(1)
    lender.open(SLOT_BYTES)
    lending = lender.lend("s")
    assert lending is not None
    path = module.FOLDER / lending.arena
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size <= 1024**2
    assert path.stat().st_blocks * 512 >= path.stat().st_size - 4096, "its memory is there"
    lender.close()
    lender.close()
    assert not path.exists()


def test_file_of_an_owner_that_was_killed_is_removed_and_no_other(lender: Lender) -> None:
    lending = lender.lend("s")
    process, name = start(OWNER)
    os.kill(process.pid, signal.SIGSTOP)
    remove_orphans()
    assert (module.FOLDER / name).exists(), "its owner is stopped, not dead"
    end(process)
    remove_orphans()
    assert not (module.FOLDER / name).exists()
    assert lending is not None
    assert (module.FOLDER / lending.arena).exists()


def test_without_room_there_is_no_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    before = set(module.FOLDER.iterdir())
    monkeypatch.setattr(os, "posix_fallocate", full)
    lender = Lender(1)
    lender.open(SLOT_BYTES)
    assert lender.lend("s") is None
    assert set(module.FOLDER.iterdir()) == before


@pytest.mark.parametrize(("mbytes", "slot_bytes"), [(0, 8192), (1, 0), (1, 2**20)])
def test_no_arena_where_none_is_wanted_or_no_slot_fits(mbytes: int, slot_bytes: int) -> None:
    lender = Lender(mbytes)
    lender.open(slot_bytes)
    assert lender.lend("s") is None
    lender.close()


@pytest.mark.parametrize(
    "data",
    [b"", b"short", bytes(4096), b"trtmesh1" + b"\xff" * 16, b"trtmesh1" + bytes(16) + b"x" * 99],
)
def test_file_that_is_no_arena_is_refused(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    (tmp_path / "trtmesh-ab").write_bytes(data)
    with pytest.raises(ValueError, match="is no arena"):
        Arena("trtmesh-ab")
    assert unpack(Writer().pack(PIXELS, Slot(arena="trtmesh-ab")))["x"].shape == (2, 2500)


@pytest.mark.parametrize("name", ["", "x", "../etc/passwd", "trtmesh-/../x", "trtmesh-nothing"])
def test_name_of_nothing_here_means_bytes(name: str) -> None:
    assert Writer().pack(PIXELS, Slot(arena=name)) == pack(PIXELS)
    with pytest.raises((OSError, ValueError)):
        Arena(name)


def test_slot_beyond_the_arena_means_bytes(lender: Lender) -> None:
    slot = taken(slots_of(lender))
    slot.index = 4711
    assert Writer().pack(PIXELS, slot) == pack(PIXELS)


def test_descriptors_end_with_their_users(lender: Lender) -> None:
    before = len(os.listdir("/proc/self/fd"))
    slots = slots_of(lender)
    payload = Writer().pack(PIXELS, taken(slots))
    assert len(os.listdir("/proc/self/fd")) > before
    slots.close()
    assert unpack(inline(payload, slots.read))["x"].shape == (2, 2500)
    del slots
    assert len(os.listdir("/proc/self/fd")) == before


def test_writer_keeps_the_arenas_it_used_last() -> None:
    before = len(os.listdir("/proc/self/fd"))
    writer = Writer()
    for _ in range(MAX_OPEN + 5):
        lender = Lender(1)
        lender.open(SLOT_BYTES)
        writer.pack(PIXELS, taken(slots_of(lender)))
        lender.close()
        del lender
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * MAX_OPEN
    del writer
    assert len(os.listdir("/proc/self/fd")) == before
