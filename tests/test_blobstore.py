"""Blobs on a real disk: whole or partly here, never wrong, never over the quota."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import resource
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest
from blob_world import ref_of
from disks import mounted

from node.blobs import files as blob_files
from node.blobs.files import BlobFile, NoSpace, on_disk
from node.blobs.store import RECENT_CHUNKS, BlobStore, Held
from node.files import MAX_SET_ASIDE
from protocol import codec
from protocol.limits import MIB
from protocol.manifest import (
    CHUNK_BYTES,
    Manifest,
    bitfield_of,
    manifest_of,
    manifest_of_chunks,
    open_manifest,
)
from protocol.spec import BlobRef

T = TypeVar("T")
U = TypeVar("U")

DATA = random.Random(7).randbytes(2 * CHUNK_BYTES + 1000)
"""Three chunks, the last one short."""
OTHER = bytes(len(DATA))
MANIFEST = manifest_of(DATA)
NAME = MANIFEST.name
HEX = NAME.hex()


async def opened(folder: Path, quota_bytes: int = 64 * MIB) -> BlobStore:
    store = BlobStore(folder, quota_bytes)
    await store.open()
    return store


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def chunk(number: int) -> bytearray:
    return bytearray(DATA[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES])


async def partial(store: BlobStore, *chunks: int, is_lasting: bool = True) -> None:
    """These chunks have come, and then the fetch ended."""
    receiving = await store.receive(MANIFEST, is_lasting=is_lasting)
    for number in chunks:
        assert await receiving.write(number, chunk(number))
    receiving.close()


# --- whole blobs ------------------------------------------------------------------------------


async def test_a_blob_that_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    assert await (await opened(tmp_path)).put(DATA) == ref_of(DATA)
    store = await opened(tmp_path)
    path = await store.path(NAME)
    assert path == tmp_path / HEX
    assert path.read_bytes() == DATA == await store.bytes_of(NAME)
    assert (store.used_bytes, store.whole()) == (len(DATA), (NAME,))


async def test_parts_are_read_and_end_where_the_chunk_ends(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.put(DATA)
    assert await store.read(NAME, 3, 4) == DATA[3:7]
    assert await store.read(NAME, CHUNK_BYTES - 2, 4) == DATA[CHUNK_BYTES - 2 : CHUNK_BYTES]
    assert await store.read(NAME, 2 * CHUNK_BYTES, CHUNK_BYTES) == DATA[2 * CHUNK_BYTES :]
    assert await store.read(NAME, len(DATA), 1) == b""
    assert await store.read(NAME, 10 * CHUNK_BYTES, 1) is None
    assert await store.read(ref_of(OTHER).digest, 0, 1) is None


async def test_who_holds_all_of_it_says_so_with_the_manifest(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.put(DATA)
    held = store.held(NAME)
    assert held is not None
    assert (open_manifest(NAME, held.manifest), held.chunks) == (MANIFEST, b"")
    assert store.held(ref_of(OTHER).digest) is None


async def test_a_blob_is_opened_for_the_worker_and_closed_again(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.put(DATA)
    async with store.opened(NAME) as (fd,):
        assert os.pread(fd, len(DATA), 0) == DATA
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    for nothing in (None, ref_of(OTHER).digest):
        async with store.opened(nothing) as fds:
            assert fds == ()


# --- a disk that lies -------------------------------------------------------------------------


async def test_a_corrupted_chunk_costs_that_chunk_alone_and_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await (await opened(tmp_path)).put(DATA)
    spoilt = bytearray(DATA)
    spoilt[CHUNK_BYTES + 17] ^= 1
    (tmp_path / HEX).write_bytes(spoilt)
    store = await opened(tmp_path)
    reads = [store.read(NAME, CHUNK_BYTES + 4 * n, 4) for n in range(4)]
    assert [await read for read in reads] == [None] * 4
    assert await store.read(NAME, 0, 4) == DATA[:4]
    assert await store.read(NAME, len(DATA) - 4, 4) == DATA[-4:]
    assert (await store.path(NAME), store.whole()) == (None, ())
    held = store.held(NAME)
    assert held is not None
    assert held.chunks == bitfield_of([0, 2], 3)
    assert len([r for r in caplog.records if "broken on disk" in r.getMessage()]) == 1

    receiving = await store.receive(MANIFEST, is_lasting=True)
    assert receiving.held == {0, 2}
    assert await receiving.write(1, chunk(1))
    assert (await receiving.finish()).read_bytes() == DATA
    receiving.close()
    assert await store.read(NAME, CHUNK_BYTES, 4) == DATA[CHUNK_BYTES : CHUNK_BYTES + 4]


async def test_a_chunk_that_goes_bad_after_it_was_checked_is_not_served_either(
    tmp_path: Path,
) -> None:
    store = await opened(tmp_path)
    data = random.Random(5).randbytes((RECENT_CHUNKS + 1) * CHUNK_BYTES)
    name = (await store.put(data)).digest
    starts = range(0, len(data), CHUNK_BYTES)
    assert [await store.read(name, start, 4) for start in starts] == [
        data[start : start + 4] for start in starts
    ]
    with (tmp_path / name.hex()).open("r+b") as disk:
        disk.write(bytes([data[0] ^ 1]))
    assert await store.read(name, 4, 4) is None
    assert store.held(name) == Held(codec.encode(manifest_of(data)), bitfield_of(range(1, 9), 9))
    assert await store.read(name, CHUNK_BYTES, 4) == data[CHUNK_BYTES : CHUNK_BYTES + 4]


async def test_a_blob_that_is_wanted_whole_is_looked_through_first(tmp_path: Path) -> None:
    await (await opened(tmp_path)).put(DATA)
    (tmp_path / HEX).write_bytes(DATA[:-1])
    store = await opened(tmp_path)
    assert await store.path(NAME) is None
    receiving = await store.receive(MANIFEST, is_lasting=True)
    assert receiving.held == {0, 1}
    receiving.close()


async def test_a_blob_that_somebody_deleted_is_not_here_and_can_be_put_again(
    tmp_path: Path,
) -> None:
    store = await opened(tmp_path)
    await store.put(DATA)
    (tmp_path / HEX).unlink()
    assert await store.read(NAME, 0, 10) is None
    await store.put(DATA)
    assert await store.bytes_of(NAME) == DATA


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process has as many files open as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(int(fd) for fd in os.listdir("/proc/self/fd")) + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        with ExitStack() as files:
            with suppress(OSError):
                while True:
                    files.enter_context(open("/dev/null"))
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_too_many_open_files_cost_what_is_asked_meanwhile_and_no_blob(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await (await opened(tmp_path)).put(DATA)
    store = await opened(tmp_path)
    with no_descriptors():
        assert await store.read(NAME, 0, 4) is None
        with pytest.raises(NoSpace, match="Too many open files"):
            await store.path(NAME)
        with pytest.raises(NoSpace, match="Too many open files"):
            await store.receive(MANIFEST, is_lasting=True)
    assert store.whole() == (NAME,)
    assert await store.read(NAME, 0, 4) == DATA[:4]
    assert await store.path(NAME) == tmp_path / HEX
    assert "broken on disk" not in caplog.text


async def test_a_bad_block_costs_its_chunk_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await opened(tmp_path)).put(DATA)
    store = await opened(tmp_path)
    pread = os.pread

    def bad_block(fd: int, length: int, offset: int) -> bytes:
        if offset == CHUNK_BYTES:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, length, offset)

    with monkeypatch.context() as disk:
        disk.setattr(os, "pread", bad_block)
        assert await store.path(NAME) is None
        receiving = await store.receive(MANIFEST, is_lasting=True)
        assert receiving.held == {0, 2}
    assert await receiving.write(1, chunk(1))
    await receiving.finish()
    receiving.close()
    assert await store.bytes_of(NAME) == DATA


async def test_a_manifest_that_cannot_be_read_now_keeps_nobody_from_starting(
    tmp_path: Path,
) -> None:
    store = await opened(tmp_path)
    await store.put(DATA)
    small = await store.put(b"small")
    manifest = tmp_path / f"{HEX}.manifest"
    content = manifest.read_bytes()
    manifest.unlink()
    manifest.symlink_to(manifest)
    assert (await opened(tmp_path)).whole() == (small.digest,)
    manifest.unlink()
    manifest.write_bytes(content)
    store = await opened(tmp_path)
    assert set(store.whole()) == {NAME, small.digest}
    assert await store.bytes_of(NAME) == DATA


# --- a manifest that is broken or gone --------------------------------------------------------

BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "flipped": lambda content: content[:9] + bytes([content[9] ^ 1]) + content[10:],
    "truncated": lambda content: content[:-1],
    "empty": lambda content: b"",
    "too long": lambda content: bytes(1 << 20),
    "of another blob": lambda content: codec.encode(manifest_of(OTHER)),
}


@pytest.mark.parametrize("damage", [*BROKEN, "gone"])
@pytest.mark.parametrize("name", [HEX, f"{HEX}.partial"], ids=["whole", "partial"])
async def test_a_broken_manifest_is_made_anew_from_good_bytes(
    tmp_path: Path, damage: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    await (await opened(tmp_path)).put(DATA)
    manifest = tmp_path / f"{HEX}.manifest"
    content = manifest.read_bytes()
    manifest.unlink() if damage == "gone" else manifest.write_bytes(BROKEN[damage](content))
    (tmp_path / HEX).rename(tmp_path / name)
    store = await opened(tmp_path)
    assert (store.whole(), manifest.read_bytes()) == ((NAME,) if name == HEX else (), content)
    assert await store.path(NAME) == tmp_path / HEX
    assert (store.whole(), await store.bytes_of(NAME)) == ((NAME,), DATA)
    assert names(tmp_path) == [HEX, f"{HEX}.manifest"]
    assert "made anew from the blob's bytes" in caplog.text


async def test_bytes_are_hashed_in_a_thread_while_others_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await opened(tmp_path)).put(DATA)
    (tmp_path / f"{HEX}.manifest").write_bytes(b"")
    begun, may_end, of_chunks = threading.Event(), threading.Event(), manifest_of_chunks

    def slow(chunks: Iterator[bytes]) -> Manifest:
        begun.set()
        assert may_end.wait(10)
        return of_chunks(chunks)

    monkeypatch.setattr(blob_files, "manifest_of_chunks", slow)
    opening = asyncio.create_task(opened(tmp_path))
    await asyncio.to_thread(begun.wait, 10)
    assert not opening.done()
    may_end.set()
    assert (await opening).whole() == (NAME,)


@pytest.mark.parametrize("damage", ["flipped", "gone"])
@pytest.mark.parametrize("name", [HEX, f"{HEX}.partial"], ids=["whole", "partial"])
async def test_what_is_broken_past_mending_is_kept_under_another_name_and_fetched_anew(
    tmp_path: Path, damage: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    await (await opened(tmp_path)).put(DATA)
    manifest = tmp_path / f"{HEX}.manifest"
    broken = BROKEN["flipped"](manifest.read_bytes())
    manifest.unlink() if damage == "gone" else manifest.write_bytes(broken)
    spoilt = DATA[:-1] + bytes([DATA[-1] ^ 1])
    (tmp_path / HEX).write_bytes(spoilt)
    (tmp_path / HEX).rename(tmp_path / name)
    store = await opened(tmp_path)
    kept = {file: (tmp_path / file).read_bytes() for file in names(tmp_path)}
    of_bytes, of_manifest = f"{name}.unusable-1", f"{HEX}.manifest.unusable-2"
    both = {of_bytes: spoilt, of_manifest: broken}
    assert kept == ({of_bytes: spoilt} if damage == "gone" else both)
    assert f"; kept as {of_bytes}" in caplog.text
    assert f"put a good copy at {tmp_path / HEX} and start again" in caplog.text
    assert (store.whole(), store.held(NAME), store.used_bytes) == ((), None, 0)
    assert store.what_is_here(NAME).startswith("our own copy is broken and kept as ")
    await store.put(DATA)
    again = await opened(tmp_path)
    assert (await again.bytes_of(NAME), len(names(tmp_path))) == (DATA, len(kept) + 2)


async def test_so_many_are_kept_aside_and_the_next_one_stays_where_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(MAX_SET_ASIDE + 1):
        (tmp_path / HEX).write_bytes(bytes([number]))
        await opened(tmp_path)
    assert names(tmp_path) == [HEX, *(f"{HEX}.unusable-{n + 1}" for n in range(MAX_SET_ASIDE))]
    assert (tmp_path / HEX).read_bytes() == bytes([MAX_SET_ASIDE])
    assert "left as it is, for 9 others are kept already: remove those" in caplog.text


async def test_bytes_that_cannot_be_read_now_are_left_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await opened(tmp_path)).put(DATA)
    (tmp_path / f"{HEX}.manifest").write_bytes(b"")

    def bad_block(chunks: Iterator[bytes]) -> Manifest:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as disk:
        disk.setattr(blob_files, "manifest_of_chunks", bad_block)
        assert (await opened(tmp_path)).whole() == ()
    assert (await opened(tmp_path)).whole() == (NAME,)


async def test_a_full_disk_costs_a_broken_manifest_and_not_the_blob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await opened(tmp_path)).put(DATA)
    (tmp_path / f"{HEX}.manifest").write_bytes(b"")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(blob_files, "settle", full)
    assert await (await opened(tmp_path)).bytes_of(NAME) == DATA


async def test_only_what_the_store_itself_had_for_a_while_is_removed(tmp_path: Path) -> None:
    await (await opened(tmp_path)).put(DATA)
    theirs = ("junk", "00.manifest", "notes.txt", "ff" * 31 + ".partial", "FF" * 32)
    ours = (
        *(HEX + ".new", "11" * 32 + ".manifest", "22" * 32 + ".passing", "22" * 32),
        *("33" * 32 + ".passing", "33" * 32 + ".partial"),
    )
    for name in (*theirs, *ours):
        (tmp_path / name).write_bytes(b"\xc1")
    store = await opened(tmp_path)
    assert names(tmp_path) == sorted([HEX, f"{HEX}.manifest", *theirs])
    assert store.whole() == (NAME,)


# --- partly here ------------------------------------------------------------------------------


async def test_what_has_come_survives_a_restart_and_is_checked(tmp_path: Path) -> None:
    await partial(await opened(tmp_path), 0, 2)
    with (tmp_path / f"{HEX}.partial").open("r+b") as file:
        file.write(b"\xff" * 9)
    store = await opened(tmp_path)
    assert (store.held(NAME), store.whole(), store.used_bytes) == (None, (), len(DATA))
    receiving = await store.receive(MANIFEST, is_lasting=True)
    assert receiving.held == {2}
    for number in (0, 1):
        assert await receiving.write(number, chunk(number))
    assert await receiving.finish() == tmp_path / HEX
    receiving.close()
    assert await store.bytes_of(NAME) == DATA
    assert names(tmp_path) == [HEX, f"{HEX}.manifest"]


async def test_what_has_come_is_given_to_others_after_a_restart_and_all_of_it_is_a_whole_blob(
    tmp_path: Path,
) -> None:
    """Or else two that each hold half would wait for each other for ever."""
    await partial(await opened(tmp_path), 0, 2)
    store = await opened(tmp_path)
    assert await store.path(NAME) is None
    held = store.held(NAME)
    assert held is not None
    assert held.chunks == bitfield_of([0, 2], 3)
    assert store.what_is_here(NAME) == (
        f"our own copy is broken or was never complete, 2 of 3 chunks are right in "
        f"{tmp_path / HEX}.partial"
    )
    (tmp_path / f"{HEX}.partial").write_bytes(DATA)  # from a backup
    again = await opened(tmp_path)
    assert (await again.path(NAME), again.whole()) == (tmp_path / HEX, (NAME,))


async def test_chunks_that_have_come_are_served_before_the_rest_has(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    receiving = await store.receive(MANIFEST, is_lasting=True)
    before = store.held(NAME)
    await receiving.write(1, chunk(1))
    after = store.held(NAME)
    assert before is not None
    assert after is not None
    assert (before.chunks, after.chunks) == (b"\x00", b"\x02")
    assert await store.read(NAME, CHUNK_BYTES, 4) == DATA[CHUNK_BYTES : CHUNK_BYTES + 4]
    assert await store.read(NAME, 0, 4) is None
    assert (await store.path(NAME), after.manifest) == (None, codec.encode(MANIFEST))
    receiving.close()


async def test_wrong_bytes_are_not_written(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    receiving = await store.receive(MANIFEST, is_lasting=True)
    assert not await receiving.write(0, chunk(1))
    assert not await receiving.write(2, bytearray(5))
    assert receiving.held == frozenset()
    assert (tmp_path / f"{HEX}.partial").read_bytes() == OTHER
    receiving.close()


# --- blobs that are given back ----------------------------------------------------------------


def memfd(data: bytes) -> int:
    fd = os.memfd_create("test")
    os.write(fd, data)
    return fd


async def test_a_passing_blob_goes_with_its_last_holder(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    fd = memfd(DATA)
    assert [await store.put_memory(fd, len(DATA)) for _ in range(2)] == [ref_of(DATA)] * 2
    os.close(fd)
    await store.release(NAME)
    assert await store.bytes_of(NAME) == DATA
    await store.release(NAME)
    assert (names(tmp_path), store.used_bytes) == ([], 0)
    await store.release(NAME)


async def test_memory_that_cannot_be_kept_is_let_go_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mapping must not hide it: a mapping that is still looked at cannot be closed."""
    fd = memfd(DATA)
    full = await opened(tmp_path, quota_bytes=MIB)
    with pytest.raises(NoSpace, match="disk quota"):
        await full.put_memory(fd, len(DATA))
    store = await opened(tmp_path)
    with no_longer_files(MIB), pytest.raises(NoSpace, match="File too large"):
        await store.put_memory(fd, len(DATA))

    begun, write = threading.Event(), BlobFile.write

    def noted(self: BlobFile, number: int, data: bytes) -> bool:
        begun.set()
        return write(self, number, data)

    monkeypatch.setattr(BlobFile, "write", noted)
    putting = asyncio.create_task(store.put_memory(fd, len(DATA)))
    await asyncio.to_thread(begun.wait, 10)
    putting.cancel()
    await asyncio.wait([putting])
    assert (putting.cancelled(), names(tmp_path), store.used_bytes) == (True, [], 0)
    os.close(fd)


async def passing(store: BlobStore, data: bytes) -> BlobRef:
    fd = memfd(data)
    try:
        return await store.put_memory(fd, len(data))
    finally:
        os.close(fd)


async def test_a_disk_that_removes_nothing_ends_nobody_and_its_room_counts_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who gives a checkpoint back has used it by then."""
    store = await opened(tmp_path, quota_bytes=3 * MIB)
    await passing(store, DATA)

    def read_only(_: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as disk:
        disk.setattr(Path, "unlink", read_only)
        await store.release(NAME)
        await store.forget_partials()
        with pytest.raises(NoSpace, match="disk quota"):
            await passing(store, OTHER)
    assert "blob not removed: digest=" in caplog.text
    assert "Read-only file system" in caplog.text
    assert (store.held(NAME), store.whole(), await store.bytes_of(NAME)) == (None, (), b"")
    assert store.used_bytes == len(DATA)
    assert await passing(store, OTHER) == ref_of(OTHER)  # the disk works again
    other = ref_of(OTHER).digest.hex()
    assert (names(tmp_path), store.used_bytes) == ([other, f"{other}.passing"], len(OTHER))


async def test_what_a_read_only_disk_kept_is_the_same_blob_when_it_is_put_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(tmp_path)
    await passing(store, DATA)
    with monkeypatch.context() as disk:
        disk.setattr(BlobFile, "delete", lambda _: os.unlink(tmp_path / "none"))
        await store.release(NAME)
    await passing(store, DATA)
    assert await store.bytes_of(NAME) == DATA
    assert (names(tmp_path), store.used_bytes) == ([HEX, f"{HEX}.passing"], len(DATA))


async def nothing_moves(*but: threading.Thread | None) -> None:
    """Until all tasks wait, and no thread but these is at the disk."""
    while True:
        for _ in range(20):
            await asyncio.sleep(0)
        at_disk = [thread for thread in threading.enumerate() if thread.name == "blobs"]
        if not (others := [thread for thread in at_disk if thread not in but]):
            return
        await asyncio.to_thread(others[0].join)


class Slow:
    """A method of a blob's file that ends when it is told to, the first time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None
        work = getattr(BlobFile, name)

        def slow(blob: BlobFile, *args: object, **kwargs: object) -> object:
            if not self.begun.is_set():
                self.thread = threading.current_thread()
                self.begun.set()
                assert self.may_end.wait(10)
            return work(blob, *args, **kwargs)

        monkeypatch.setattr(BlobFile, name, slow)

    async def meets(self, first: Coroutine[None, None, T], then: Coroutine[None, None, U]) -> U:
        """`then` begins, and goes as far as it can, while `first` is at the disk."""
        slow = asyncio.create_task(first)
        await asyncio.to_thread(self.begun.wait, 10)
        other = asyncio.create_task(then)
        await nothing_moves(self.thread)
        self.may_end.set()
        await slow
        return await other


async def test_a_blob_that_is_put_while_one_of_its_name_is_deleted_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(tmp_path)
    await passing(store, DATA)
    slow = Slow(monkeypatch, "delete")
    assert await slow.meets(store.release(NAME), passing(store, DATA)) == ref_of(DATA)
    assert await store.bytes_of(NAME) == DATA
    assert (names(tmp_path), store.used_bytes) == ([HEX, f"{HEX}.passing"], len(DATA))


async def test_a_look_at_a_file_that_goes_bad_says_nothing_of_one_that_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(tmp_path)
    await passing(store, DATA)
    (tmp_path / HEX).write_bytes(OTHER)

    async def given_back_and_put_again() -> None:
        await store.release(NAME)
        await passing(store, DATA)

    slow = Slow(monkeypatch, "rename")  # of what is found broken
    await slow.meets(store.read(NAME, 0, 4), given_back_and_put_again())
    assert await store.bytes_of(NAME) == DATA
    assert names(tmp_path) == [HEX, f"{HEX}.passing"]


async def test_who_wants_a_blob_when_its_turn_to_go_comes_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two idle ones are looked at, and while the first goes the second is taken up again."""
    store = await opened(tmp_path)
    first = manifest_of(OTHER)
    (await store.receive(first, is_lasting=False)).close()
    await partial(store, 0, is_lasting=False)
    slow = Slow(monkeypatch, "delete")
    receiving = await slow.meets(store.forget_partials(), store.receive(MANIFEST, is_lasting=False))
    for number in range(3):
        assert await receiving.write(number, chunk(number))
    await receiving.finish()
    receiving.close()
    assert store.whole() == (NAME,)
    assert names(tmp_path) == [HEX, f"{HEX}.passing"]


async def test_a_blob_that_was_forgotten_meanwhile_takes_none_of_its_name_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(tmp_path)
    (await store.receive(manifest_of(OTHER), is_lasting=False)).close()
    await partial(store, 0, is_lasting=False)

    async def removed_and_received() -> None:
        await store.remove(NAME)
        await partial(store, 1, is_lasting=False)

    slow = Slow(monkeypatch, "delete")
    removing = asyncio.create_task(store.forget_partials())
    await asyncio.to_thread(slow.begun.wait, 10)
    await removed_and_received()
    slow.may_end.set()
    await removing
    assert store.held(NAME) == Held(codec.encode(MANIFEST), bitfield_of([1], 3))
    assert names(tmp_path) == [f"{HEX}.partial", f"{HEX}.passing"]


async def test_who_takes_in_a_blob_that_is_on_its_way_waits_for_the_other_and_has_it_all(
    tmp_path: Path,
) -> None:
    store = await opened(tmp_path)
    receiving = await store.receive(MANIFEST, is_lasting=False)
    putting = asyncio.create_task(passing(store, DATA))
    await receiving.write(0, chunk(0))
    await nothing_moves()
    assert receiving.held == {0}
    for number in (1, 2):
        await receiving.write(number, chunk(number))
    await receiving.finish()
    receiving.close()
    assert await putting == ref_of(DATA)
    await store.release(NAME)
    assert await store.bytes_of(NAME) == DATA  # of two holders one is left
    await store.release(NAME)
    assert names(tmp_path) == []


async def test_a_lasting_blob_is_not_given_back(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.put(DATA)
    assert await store.hold(NAME) is not None
    await store.release(NAME)
    assert store.whole() == (NAME,)


async def test_whole_passing_blobs_do_not_survive_a_restart_and_partial_ones_do(
    tmp_path: Path,
) -> None:
    before = await opened(tmp_path)
    fd = memfd(OTHER)
    await before.put_memory(fd, len(OTHER))
    os.close(fd)
    await partial(before, 1, is_lasting=False)
    store = await opened(tmp_path)
    assert names(tmp_path) == [f"{HEX}.partial", f"{HEX}.passing"]
    receiving = await store.receive(MANIFEST, is_lasting=False)
    assert receiving.held == {1}
    receiving.close()
    await store.forget_partials()
    assert names(tmp_path) == []


async def test_what_was_given_up_makes_room_and_what_is_held_does_not(tmp_path: Path) -> None:
    store = await opened(tmp_path, quota_bytes=5 * MIB)
    await partial(store, 1, is_lasting=False)
    ref = await store.put(OTHER)
    await store.put(b"small")
    assert names(tmp_path)[0] != f"{HEX}.partial" or len(names(tmp_path)) > 2
    third = random.Random(8).randbytes(len(DATA))
    await store.put(third)
    assert set(store.whole()) == {ref.digest, ref_of(b"small").digest, ref_of(third).digest}
    with pytest.raises(NoSpace):
        await store.receive(MANIFEST, is_lasting=False)


# --- no room ----------------------------------------------------------------------------------


async def test_over_the_quota_nothing_is_written_and_the_sentence_says_what_to_do(
    tmp_path: Path,
) -> None:
    full = await opened(tmp_path, quota_bytes=3 * MIB)
    await full.put(DATA)
    with pytest.raises(NoSpace, match=r"2\.0 of 3\.0 MiB .* expected room for 2\.0 MiB more; "):
        await full.put(OTHER)
    assert names(tmp_path) == [HEX, f"{HEX}.manifest"]
    await full.remove(NAME)
    await full.put(OTHER)


@contextmanager
def no_longer_files(at_bytes: int) -> Iterator[None]:
    """No file of this process may grow further."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_file_that_may_not_grow_breaks_nothing(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    small = await store.put(b"small")
    with no_longer_files(MIB), pytest.raises(NoSpace, match=r"^disk: .* expected .*; free some"):
        await store.put(DATA)
    assert (store.whole(), store.used_bytes) == ((small.digest,), len(b"small"))
    assert len(names(tmp_path)) == 2
    await store.put(DATA)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path, 3) as disk:
        yield disk


async def test_a_full_disk_is_one_sentence_before_a_byte_is_fetched(small_disk: Path) -> None:
    store = await opened(small_disk)
    small = await store.put(bytes(MIB))
    with pytest.raises(NoSpace, match=r"disk: No space left on device in .*; free some space"):
        await store.receive(MANIFEST, is_lasting=True)
    assert store.whole() == (small.digest,)
    assert names(small_disk) == [small.digest.hex(), f"{small.digest.hex()}.manifest"]
    assert await store.bytes_of(small.digest) == bytes(MIB)
    await store.remove(small.digest)
    await store.put(DATA)
    assert await store.bytes_of(NAME) == DATA


async def test_being_cancelled_waits_until_the_disk_has_ended() -> None:
    """Or else the thread would write on to a file that was removed meanwhile."""
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        may_end.wait(10)
        ended.set()

    writing = asyncio.create_task(on_disk(work))
    await asyncio.to_thread(begun.wait, 10)
    writing.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not writing.done()
    may_end.set()
    await asyncio.wait([writing])
    assert (writing.cancelled(), ended.is_set()) == (True, True)


class Renaming:
    """A disk that has just named a blob whole, and has not said so yet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_done, self.may_say_so, rename = (
            threading.Event(),
            threading.Event(),
            BlobFile.rename,
        )

        def slow(blob: BlobFile, *, is_whole: bool) -> None:
            rename(blob, is_whole=is_whole)
            self.is_done.set()
            self.may_say_so.wait(10)

        monkeypatch.setattr(BlobFile, "rename", slow)

    async def cancel(self, task: asyncio.Task[object]) -> None:
        await asyncio.to_thread(self.is_done.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        self.may_say_so.set()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_who_is_cancelled_when_all_of_it_has_come_leaves_nothing_of_their_own_blob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(tmp_path)
    await Renaming(monkeypatch).cancel(asyncio.create_task(store.put(DATA)))
    assert (names(tmp_path), store.used_bytes) == ([], 0)


async def test_a_fetch_that_is_cancelled_when_all_of_it_has_come_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(tmp_path)
    receiving = await store.receive(MANIFEST, is_lasting=True)
    for number in range(3):
        await receiving.write(number, chunk(number))
    with monkeypatch.context() as disk:
        await Renaming(disk).cancel(asyncio.create_task(receiving.finish()))
    receiving.close()
    again = await store.receive(MANIFEST, is_lasting=True)
    assert again.held == {0, 1, 2}
    await again.finish()
    again.close()
    assert await store.bytes_of(NAME) == DATA
    assert names(tmp_path) == [HEX, f"{HEX}.manifest"]


async def test_a_disk_that_hangs_keeps_nobody_who_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(blob_files, "HANGS_S", 0.01)
    begun, may_end = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        may_end.wait(10)

    writing = asyncio.create_task(on_disk(work))
    await asyncio.to_thread(begun.wait, 10)
    try:
        writing.cancel()
        await asyncio.wait([writing])
        assert writing.cancelled()
        assert "the disk hangs" in caplog.text
        thread = next(thread for thread in threading.enumerate() if thread.name == "blobs")
        assert thread.daemon  # or else the process would wait for it
    finally:
        may_end.set()
