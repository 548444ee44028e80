"""Payloads in flight: memory by digest, bounded in bytes and in count.

Each payload is a memfd (memory with a file descriptor and no name), so that it crosses to
the worker over a unix socket without a copy and vanishes with its last owner, however that
owner dies.  Its bytes never change once it is held: it is sealed.  The arena belongs to one
thread; only the memory of a `Slot` may be filled by another.

`put` and `release` count: a payload put twice (two peers with equal weights) is held until
it is released twice.  Its memory is returned when the last view of it is gone, too.
Source: memfd_create(2), fcntl(2) on file seals.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
from dataclasses import dataclass

from protocol.errors import Malformed, ShoalError
from protocol.ids import Digest, digest_of, short
from protocol.limits import MIB

MAX_ARENA_BYTES = 1024 * MIB
"""A guess: our payload, three partners' and a checkpoint, for a model of 100 M parameters."""
MAX_ARENA_COUNT = 64
"""Two descriptors each: far below the usual limit of 1,024, far above what rounds need."""

HASHED_AT_ONCE_BYTES = MIB
"""Hashed in a millisecond; what is larger is hashed in a thread, the event loop goes on."""

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class ArenaFull(ShoalError):
    """There is no room for this payload now, or no descriptor; nothing was changed."""


@dataclass(slots=True)
class _Held:
    fd: int
    size_bytes: int
    memory: mmap.mmap
    count: int


class Arena:
    """All payloads of one node that are on their way."""

    def __init__(self, max_bytes: int = MAX_ARENA_BYTES, max_count: int = MAX_ARENA_COUNT) -> None:
        self.max_bytes = max_bytes
        self._max_count = max_count
        self._held: dict[Digest, _Held] = {}
        self._slots: set[Slot] = set()

    @property
    def size_bytes(self) -> int:
        """Bytes held, and reserved by open slots."""
        return sum(h.size_bytes for h in self._held.values()) + sum(
            slot.size_bytes for slot in self._slots
        )

    def __len__(self) -> int:
        return len(self._held) + len(self._slots)

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._held

    def reserve(self, size_bytes: int) -> Slot:
        """Memory to receive a payload of this size in.

        Raises:
            ArenaFull: over a limit, ours or the system's.
        """
        self._check_room(size_bytes)
        try:
            slot = Slot(self, size_bytes)
        except OSError as error:
            raise _refused(size_bytes, error) from error
        self._slots.add(slot)
        return slot

    def put(self, data: bytes) -> Digest:
        """Hold these bytes.

        Raises:
            ArenaFull: over a limit.
        """
        digest = digest_of(data)
        slot = self.reserve(len(data))
        slot.view[:] = data
        slot.commit(digest)
        return digest

    def adopt(self, digest: Digest, size_bytes: int, fd: int) -> None:
        """Hold the memfd `fd` of our own worker, which is trusted to have hashed it.

        Takes the descriptor over, whatever comes of it.

        Raises:
            ArenaFull: over a limit, ours or the system's.
        """
        try:
            self._check_room(size_bytes)
        except ArenaFull:
            os.close(fd)
            raise
        self._hold(digest, size_bytes, fd)

    def view(self, digest: Digest) -> memoryview:
        """The payload's bytes, read-only.  KeyError: not held."""
        return memoryview(self._held[digest].memory)

    def fd(self, digest: Digest) -> int:
        """The payload's descriptor, still ours: to be sent, not closed.  KeyError: not held."""
        return self._held[digest].fd

    def release(self, digest: Digest) -> None:
        """One holder fewer; what is not held is passed over."""
        held = self._held.get(digest)
        if held is None:
            return
        held.count -= 1
        if held.count == 0:
            del self._held[digest]
            os.close(held.fd)  # the mapping goes with its last view

    def close(self) -> None:
        """Let go of everything."""
        for slot in list(self._slots):
            slot.abandon()
        for held in self._held.values():
            os.close(held.fd)
        self._held.clear()

    def _check_room(self, size_bytes: int) -> None:
        if len(self) >= self._max_count:
            raise ArenaFull(f"{len(self)} payloads in flight, at most {self._max_count}")
        if self.size_bytes + size_bytes > self.max_bytes:
            raise ArenaFull(
                f"no room for a payload of {size_bytes} bytes: {self.size_bytes} of "
                f"{self.max_bytes} bytes in use"
            )

    def _hold(self, digest: Digest, size_bytes: int, fd: int) -> None:
        if held := self._held.get(digest):
            held.count += 1
            os.close(fd)
            return
        try:
            memory = map_read_only(fd, size_bytes)
        except OSError as error:
            os.close(fd)
            raise _refused(size_bytes, error) from error
        self._held[digest] = _Held(fd, size_bytes, memory, 1)

    def _committed(self, slot: Slot, digest: Digest, fd: int) -> None:
        self._slots.discard(slot)
        self._hold(digest, slot.size_bytes, fd)

    def _abandoned(self, slot: Slot) -> None:
        self._slots.discard(slot)


class Slot:
    """Memory for one payload that is being received; ends in `commit` or `abandon`."""

    def __init__(self, arena: Arena, size_bytes: int) -> None:
        self._arena = arena
        self.size_bytes = size_bytes
        self._memory = SealableMemory(size_bytes)
        self.view = self._memory.view
        """To be filled; slices of it must be dropped before `commit`."""

    def commit(self, expected: Digest) -> None:
        """Hold what was received, if it is the payload of this name.

        Raises:
            Malformed: it is not; the slot is given back.
            ArenaFull: the system has no descriptor for it; the slot is given back.
        """
        self._commit(digest_of(self.view), expected)

    def commit_as(self, digest: Digest) -> None:
        """`commit` for who has just hashed `view`, or filled it with what has this name.

        Raises:
            ArenaFull: the system has no descriptor for it; the slot is given back.
        """
        self._commit(digest, digest)

    async def verify_and_commit(self, expected: Digest) -> None:
        """`commit` for the event loop, which goes on while a large payload is hashed.

        Who is cancelled meanwhile abandons the slot as ever: its memory goes with the hashing.
        """
        if self.size_bytes <= HASHED_AT_ONCE_BYTES:
            self.commit(expected)
        else:
            self._commit(await asyncio.to_thread(digest_of, self.view), expected)

    def _commit(self, found: Digest, expected: Digest) -> None:
        if found != expected:
            self.abandon()
            raise Malformed(f"a payload with hash {short(found)}, expected {short(expected)}")
        self._arena._committed(self, expected, self._memory.seal())

    def abandon(self) -> None:
        """Give the memory back; may be called twice."""
        self._memory.close()
        self._arena._abandoned(self)


class SealableMemory:
    """A new memfd that is written once: fill `view`, then `seal` and own the descriptor."""

    def __init__(self, size_bytes: int) -> None:
        self._fd = os.memfd_create("shoal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._fd, size_bytes)
            self._map = mmap.mmap(self._fd, size_bytes)
        except OSError:
            os.close(self._fd)
            raise
        self.view = memoryview(self._map)

    def seal(self) -> int:
        """The descriptor, which nobody can write through any more; the caller closes it."""
        fd, self._fd = self._fd, -1
        self.view.release()
        self._map.close()  # BufferError: a slice is still about, which would be our bug
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return fd

    def close(self) -> None:
        """Give the memory back unused; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)  # a receiver may still hold slices: the map goes with them
            self._fd = -1


def _refused(size_bytes: int, error: OSError) -> ArenaFull:
    return ArenaFull(f"the system has no memory for a payload of {size_bytes} bytes: {error}")


def map_read_only(fd: int, size_bytes: int) -> mmap.mmap:
    """The memory behind a descriptor, for reading."""
    return mmap.mmap(fd, size_bytes, prot=mmap.PROT_READ)
