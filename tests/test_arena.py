from __future__ import annotations

import asyncio
import gc
import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from node.arena import HASHED_AT_ONCE_BYTES, Arena, ArenaFull
from protocol.errors import Malformed
from protocol.ids import digest_of

DATA = b"a payload" * 100
DIGEST = digest_of(DATA)


@pytest.fixture
def arena() -> Arena:
    gc.collect()  # descriptors that other tests left are closed now, not while some are counted
    return Arena(max_bytes=4096, max_count=3)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_was_put_can_be_viewed_until_it_is_released(arena: Arena) -> None:
    assert arena.put(DATA) == DIGEST
    assert (DIGEST in arena, bytes(arena.view(DIGEST)), arena.size_bytes) == (True, DATA, 900)
    arena.release(DIGEST)
    assert (DIGEST in arena, len(arena), arena.size_bytes) == (False, 0, 0)


def test_a_payload_put_twice_is_held_until_it_is_released_twice(arena: Arena) -> None:
    arena.put(DATA)
    arena.put(DATA)
    assert (len(arena), arena.size_bytes) == (1, 900)
    arena.release(DIGEST)
    assert bytes(arena.view(DIGEST)) == DATA
    arena.release(DIGEST)
    assert DIGEST not in arena


def test_releasing_what_is_not_held_is_no_error(arena: Arena) -> None:
    arena.release(DIGEST)
    assert len(arena) == 0


def test_a_slot_is_filled_in_place_and_checked(arena: Arena) -> None:
    slot = arena.reserve(len(DATA))
    slot.view[:500] = DATA[:500]
    slot.view[500:] = DATA[500:]
    slot.commit(DIGEST)
    assert bytes(arena.view(DIGEST)) == DATA


def test_a_payload_with_another_hash_is_refused_and_its_room_given_back(arena: Arena) -> None:
    slot = arena.reserve(len(DATA))
    with pytest.raises(Malformed, match="expected"):
        slot.commit(DIGEST)
    assert (DIGEST in arena, len(arena), arena.size_bytes) == (False, 0, 0)


def test_an_abandoned_slot_gives_its_room_back(arena: Arena) -> None:
    slot = arena.reserve(4096)
    slot.abandon()
    slot.abandon()
    assert arena.size_bytes == 0


def test_open_slots_count_against_the_limit_of_bytes(arena: Arena) -> None:
    arena.reserve(4000)
    with pytest.raises(ArenaFull, match="4000 of 4096 bytes in use"):
        arena.put(DATA)
    assert len(arena) == 1


def test_a_full_arena_refuses_one_more_payload(arena: Arena) -> None:
    for byte in (b"a", b"b", b"c"):
        arena.put(byte)
    with pytest.raises(ArenaFull, match="3 payloads in flight, at most 3"):
        arena.put(b"d")


def test_a_refused_memfd_is_closed(arena: Arena) -> None:
    before = open_fds()
    fd = os.memfd_create("test")
    with pytest.raises(ArenaFull):
        arena.adopt(DIGEST, 5000, fd)
    assert open_fds() == before


def test_a_payload_can_be_written_by_nobody_once_it_is_held(arena: Arena) -> None:
    arena.put(DATA)
    fd = arena.fd(DIGEST)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, len(DATA))
    with pytest.raises(TypeError):
        arena.view(DIGEST)[0] = 0


def test_a_view_outlives_the_release_of_its_payload(arena: Arena) -> None:
    arena.put(DATA)
    view = arena.view(DIGEST)
    arena.release(DIGEST)
    assert bytes(view) == DATA


def test_no_descriptor_is_left_after_close(arena: Arena) -> None:
    before = open_fds()
    arena.put(DATA)
    arena.put(DATA)
    slot = arena.reserve(10)
    arena.close()
    del slot
    assert (open_fds(), len(arena)) == (before, 0)


@contextmanager
def few_descriptors(left: int) -> Iterator[None]:
    """A process that may open `left` more descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fillers = [os.open("/dev/null", os.O_RDONLY)]
    while fillers[-1] <= highest:  # the lowest free number is given first
        fillers.append(os.open("/dev/null", os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + left, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in fillers:
            os.close(fd)


@pytest.mark.parametrize("left", [0, 1])
def test_a_process_out_of_descriptors_has_a_full_arena_and_loses_none(
    arena: Arena, left: int
) -> None:
    before = open_fds()
    with few_descriptors(left), pytest.raises(ArenaFull, match="Too many open files"):
        arena.reserve(100)
    assert (open_fds(), len(arena)) == (before, 0)


def test_a_memfd_that_cannot_be_mapped_is_refused_and_closed(arena: Arena) -> None:
    before = open_fds()
    fd = os.memfd_create("test")
    os.ftruncate(fd, 100)
    with few_descriptors(0), pytest.raises(ArenaFull, match="Too many open files"):
        arena.adopt(DIGEST, 100, fd)
    assert (open_fds(), len(arena)) == (before, 0)


async def test_the_event_loop_goes_on_while_a_large_payload_is_hashed() -> None:
    arena = Arena()
    data = bytes(HASHED_AT_ONCE_BYTES + 1)
    slot = arena.reserve(len(data))
    hashing = asyncio.create_task(slot.verify_and_commit(digest_of(data)))
    await asyncio.sleep(0)
    assert not hashing.done()
    await hashing
    assert digest_of(data) in arena
    arena.close()


async def test_a_slot_given_up_while_it_is_hashed_gives_its_room_back() -> None:
    arena = Arena()
    slot = arena.reserve(HASHED_AT_ONCE_BYTES + 1)
    hashing = asyncio.create_task(slot.verify_and_commit(DIGEST))
    await asyncio.sleep(0)
    hashing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hashing
    slot.abandon()
    assert (arena.size_bytes, len(arena)) == (0, 0)
