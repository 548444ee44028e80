"""Blobs on a real disk: whole or partly here, never wrong, never over the quota."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blob_world import ref_of

from node.blobstore import RECENT_CHUNKS, BlobStore, NoSpace, on_disk
from protocol import codec
from protocol.manifest import CHUNK_BYTES, bitfield_of, manifest_of, open_manifest
from protocol.rpc import MIB

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
    assert await store.read(NAME, 0, 10) == DATA[:10]


async def test_files_that_are_no_blobs_are_removed(tmp_path: Path) -> None:
    await (await opened(tmp_path)).put(DATA)
    for name in (
        "junk",
        "00.manifest",
        "ff" * 32,
        "ff" * 32 + ".manifest",
        HEX[:-2] + "00.partial",
    ):
        (tmp_path / name).write_bytes(b"\xc1")
    store = await opened(tmp_path)
    assert (names(tmp_path), store.whole()) == ([HEX, f"{HEX}.manifest"], (NAME,))


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
    """A file system of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", f"{folder}"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs takes rights that this process has not")
    yield folder
    subprocess.run(["umount", f"{folder}"], check=True)


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
