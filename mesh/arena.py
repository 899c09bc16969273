"""Tensors in memory that the processes of one machine share.

The infer stage owns one file in `/dev/shm` and lends its slots to its clients. The client passes a
slot along with a picture, the preprocess stage writes the pixels there, the engine reads them from
there: between the stages goes a reference, and no process in between copies the pixels.

A slot is lent anew only with its lock, under which its generation grows; who writes holds the lock
and has looked at the generation. So a writer that hangs keeps its slot out of use, one that died
gives it back (the kernel does), and one that comes late finds that its lease is over.
"""

import fcntl
import functools
import hashlib
import logging
import mmap
import os
import secrets
import struct
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from mesh.errors import InvalidInput
from mesh.tensor import Array, Place, pack
from protos.mesh.v1.stage_pb2 import Lending
from protos.mesh.v1.tensor_pb2 import Slot, SlotRange

log = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")
"""Processes that see the same files here see the same memory, in containers too."""
PREFIX = "trtmesh-"
PAGE = 4096
MIN_BYTES = 4096
"""Smaller tensors go with the item."""
ALIGN = 64
"""Bytes; of a cache line, and more than any vector instruction or DMA engine asks for."""
UNFINISHED_S = 60.0
"""A file that was not ready after so long was left by a process that died."""
MAX_OPEN = 16
"""Arenas that a writer keeps open; the one not used for longest goes first."""

_HEADER = struct.Struct("<8sQQ")
"""Magic, bytes of a slot, number of slots."""
_MAGIC = b"trtmesh1"
_ENTRY = struct.Struct("<16sQ")
"""Of each slot, from the second page on: whose it is, and its generation."""
_ENTRY_BYTES = 64
_LOCK = struct.Struct("@hhqqi")
"""`struct flock` of Linux: type, whence, start, length, pid."""


class Arena:
    """One mapped file of slots, whoever owns it.

    Args:
        name: of the file in `FOLDER`, random: a file of that name is the same memory.

    Raises:
        OSError: there is no such file here, or it is not ours.
        ValueError: it is no arena.
    """

    def __init__(self, name: str) -> None:
        if not name.startswith(PREFIX) or "/" in name:
            raise ValueError(f"{name!r} is no name of an arena")
        self.name = name
        self._fd = os.open(FOLDER / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._end = weakref.finalize(self, os.close, self._fd)
        size = os.fstat(self._fd).st_size
        header = os.pread(self._fd, _HEADER.size, 0).ljust(_HEADER.size, b"\0")
        magic, self.slot_bytes, self.slots = _HEADER.unpack(header)
        if magic != _MAGIC or size != _file_bytes(self.slot_bytes, self.slots):
            raise ValueError(f"{name} is no arena")
        self._memory = memoryview(mmap.mmap(self._fd, size))
        self._data = _data_offset(self.slots)
        self._writing: set[int] = set()
        self._guard = threading.Lock()

    @property
    def memory(self) -> memoryview:
        """Return the whole mapped file."""
        return self._memory

    def close(self) -> None:
        """Let go of the file; memory that arrays still look at stays mapped until they end."""
        self._end()

    def lend(self, index: int, owner: bytes, *, anew: bool = False) -> Slot | None:
        """Begin a lease of a slot; every earlier one of it is over.

        Args:
            index: of the slot.
            owner: whose it is, as `owner_tag` returns it.
            anew: the slot changes hands; else it must be the owner's.

        Returns:
            The slot; None: somebody still writes there, or it is another's.
        """
        with self._locked(index) as locked:
            if not locked:
                return None
            tag, generation = self._entry(index)
            if not anew and tag != owner:
                return None
            _ENTRY.pack_into(self._memory, _entry_offset(index), owner, generation + 1)
        return Slot(arena=self.name, index=index, generation=generation + 1)

    @contextmanager
    def writing(self, slot: Slot) -> Iterator[Place | None]:
        """Hold a slot while writing to it.

        Yields:
            A function that copies bytes into the slot and returns where they are, or None where
            they do not fit. None in its place: the lease is over, or another writes there.
        """
        if slot.index >= self.slots:
            yield None
            return
        with self._locked(slot.index) as locked:
            if not locked or self._entry(slot.index)[1] != slot.generation:
                yield None
                return
            begin = self._data + slot.index * self.slot_bytes
            used = 0

            def place(data: memoryview) -> SlotRange | None:
                nonlocal used
                if data.nbytes < MIN_BYTES or used + data.nbytes > self.slot_bytes:
                    return None
                self._memory[begin + used : begin + used + data.nbytes] = data
                at = SlotRange(slot=slot, offset=used, bytes=data.nbytes)
                used += -(-data.nbytes // ALIGN) * ALIGN
                return at

            yield place

    def read(self, at: SlotRange, owner: bytes) -> memoryview:
        """Return the bytes of a range, not copied and not to be written.

        Raises:
            InvalidInput: it is not in this arena, not the owner's, or its lease is over.
        """
        slot = at.slot
        if slot.arena != self.name or slot.index >= self.slots:
            raise InvalidInput(
                f"slot {slot.index} of arena {slot.arena!r} came, wanted one of the {self.slots} "
                "slots that this replica lends"
            )
        if at.offset + at.bytes > self.slot_bytes:
            raise InvalidInput(
                f"bytes {at.offset} to {at.offset + at.bytes} of a slot came, wanted at most "
                f"{self.slot_bytes}"
            )
        if self._entry(slot.index) != (owner, slot.generation):
            raise InvalidInput(
                f"the lease of slot {slot.index} (generation {slot.generation}) is over or "
                "another client's; send the tensor anew"
            )
        begin = self._data + slot.index * self.slot_bytes + at.offset
        return self._memory[begin : begin + at.bytes].toreadonly()

    def _entry(self, index: int) -> tuple[bytes, int]:
        tag, generation = _ENTRY.unpack_from(self._memory, _entry_offset(index))
        return tag, generation

    @contextmanager
    def _locked(self, index: int) -> Iterator[bool]:
        """Try the lock of a slot: among processes by the kernel, among threads by a set."""
        with self._guard:
            if index in self._writing or not self._lock(index, fcntl.F_WRLCK):
                free = False
            else:
                free = True
                self._writing.add(index)
        try:
            yield free
        finally:
            if free:
                with self._guard:
                    self._lock(index, fcntl.F_UNLCK)
                    self._writing.discard(index)

    def _lock(self, index: int, kind: int) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _LOCK.pack(kind, os.SEEK_SET, index, 1, 0))
        except BlockingIOError:
            return False
        return True


class Lender:
    """The owner's side: makes the file and lends its slots to sessions.

    Args:
        mbytes: size of the file; 0: no slots.
    """

    def __init__(self, mbytes: int) -> None:
        self._bytes = mbytes * 1024 * 1024
        self._arena: Arena | None = None
        self._fd = -1
        self._free: deque[int] = deque()
        self._lent: dict[str, list[int]] = {}

    def open(self, slot_bytes: int) -> None:
        """Make the file; where that cannot be, tensors go with the items.

        Args:
            slot_bytes: that the largest item of the models needs.
        """
        slot_bytes = -(-slot_bytes // PAGE) * PAGE
        slots = (self._bytes - PAGE) // (slot_bytes + _ENTRY_BYTES) if slot_bytes else 0
        if slots < 1:
            return
        remove_orphans()
        name = PREFIX + secrets.token_hex(16)
        try:
            self._fd = _make(name, slot_bytes, slots)
            self._arena = Arena(name)
        except OSError as err:
            log.warning("no shared memory", extra={"error": str(err), "bytes": self._bytes})
            return
        self._free.extend(range(slots))
        log.info("shared memory", extra={"slots": slots, "slot_bytes": slot_bytes})

    @property
    def memory(self) -> memoryview | None:
        """Return the whole mapped file, for who reads slots by other means; None: there is none."""
        return self._arena.memory if self._arena is not None else None

    def lend(self, session: str) -> Lending | None:
        """Lend half of what is left to a session, so that later ones get some too."""
        arena = self._arena
        if arena is None:
            return None
        owner = owner_tag(session)
        lent = self._lent[session] = []
        for _ in range(-(-len(self._free) // 2)):
            index = self._free.popleft()
            # What somebody of an earlier session still writes to stays out of use.
            ready = arena.lend(index, owner, anew=True) is not None
            (lent if ready else self._free).append(index)
        return Lending(arena=arena.name, slots=lent)

    def take_back(self, session: str) -> None:
        """End what was lent to a session."""
        self._free.extend(self._lent.pop(session, ()))

    def read(self, at: SlotRange, session: str) -> memoryview:
        """Return the bytes of a range that a session refers to; errors as `Arena.read`."""
        if self._arena is None:
            raise InvalidInput("a slot came, and this replica lends none; send the bytes")
        return self._arena.read(at, owner_tag(session))

    def remove(self) -> None:
        """Remove the file; whoever has it open works on."""
        if self._arena is not None:
            with suppress(FileNotFoundError):
                os.unlink(FOLDER / self._arena.name)

    def close(self) -> None:
        """Remove the file and let go of it."""
        self.remove()
        if self._arena is not None:
            self._arena.close()
            os.close(self._fd)
            self._arena = None


class Slots:
    """The client's side: the slots that one session may pass on.

    Args:
        lending: as the owner sent it.
        session: the client's.

    Raises:
        OSError, ValueError: the memory is not shared with this process.
    """

    def __init__(self, lending: Lending, session: str) -> None:
        self._arena = Arena(lending.arena)
        self._owner = owner_tag(session)
        self._free = deque(index for index in lending.slots if index < self._arena.slots)

    def take(self) -> Slot | None:
        """Begin the lease of a slot; None: all are in use."""
        for _ in range(len(self._free)):
            index = self._free.popleft()
            slot = self._arena.lend(index, self._owner)
            if slot is not None:
                return slot
            self._free.append(index)
        return None

    def give_back(self, slot: Slot) -> None:
        """End a lease."""
        self._free.append(slot.index)

    def read(self, at: SlotRange) -> memoryview:
        """Return the bytes of a range, should they have to go another way after all."""
        return self._arena.read(at, self._owner)

    def close(self) -> None:
        """Let go of the file."""
        self._arena.close()


class Writer:
    """The writing side: opens arenas as slots of them come."""

    def __init__(self) -> None:
        self._arenas: OrderedDict[str, Arena | None] = OrderedDict()
        self._guard = threading.Lock()

    def pack(self, tensors: Mapping[str, Array], slot: Slot | None) -> bytes:
        """Serialize named tensors, large ones as a reference to a slot where that can be."""
        arena = self._open(slot.arena) if slot is not None else None
        if slot is None or arena is None:
            return pack(tensors)
        with arena.writing(slot) as place:
            return pack(tensors, place)

    def _open(self, name: str) -> Arena | None:
        with self._guard:
            if name not in self._arenas:
                try:
                    self._arenas[name] = Arena(name)
                except (OSError, ValueError) as err:
                    log.info("memory is not shared", extra={"arena": name, "error": str(err)})
                    self._arenas[name] = None
                if len(self._arenas) > MAX_OPEN:
                    self._arenas.popitem(last=False)
            self._arenas.move_to_end(name)
            return self._arenas[name]


@functools.lru_cache(maxsize=1024)  # asked for twice with each item
def owner_tag(session: str) -> bytes:
    """Return 16 bytes that stand for a session in the table of slots."""
    return hashlib.blake2b(session.encode(), digest_size=16).digest()


def remove_orphans() -> None:
    """Remove arenas whose owner died; the owner of a live one holds its lock."""
    for path in FOLDER.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if path.suffix == ".new" and time.time() - path.stat().st_mtime < UNFINISHED_S:
                continue
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(fd)


def _make(name: str, slot_bytes: int, slots: int) -> int:
    """Make a file with all its memory, and return a descriptor that holds the owner's lock."""
    new = FOLDER / f"{name}.new"
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # Without it, a full tmpfs is found out by a signal in the middle of a copy.
        os.posix_fallocate(fd, 0, _file_bytes(slot_bytes, slots))
        os.pwrite(fd, _HEADER.pack(_MAGIC, slot_bytes, slots), 0)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.rename(new, FOLDER / name)
    except BaseException:
        os.close(fd)
        os.unlink(new)
        raise
    return fd


def _entry_offset(index: int) -> int:
    return PAGE + index * _ENTRY_BYTES


def _data_offset(slots: int) -> int:
    return -(-_entry_offset(slots) // PAGE) * PAGE


def _file_bytes(slot_bytes: int, slots: int) -> int:
    return _data_offset(slots) + slots * slot_bytes
