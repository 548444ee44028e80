"""Blobs on a real disk, fetched from donors that are dictionaries."""

from __future__ import annotations

import asyncio
import random
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from node.blobstore import BlobStore, NoSpace, NotFetched, _on_disk
from protocol import rpc
from protocol.envelope import Signer
from protocol.errors import PeerUnavailable
from protocol.ids import PeerId, RunId, digest_of
from protocol.spec import BlobRef

RUN = RunId(b"r" * 32)
ALICE, BOB = (Signer(bytes([n]) * 32).peer for n in (1, 2))
PEERS = {"alice": ALICE, "bob": BOB}
DATA = random.Random(7).randbytes(2 * rpc.CHUNK_BYTES + 1000)
"""Three chunks, the last one short."""
WRONG = bytes(len(DATA))


def ref_of(data: bytes) -> BlobRef:
    return BlobRef(digest=digest_of(data), size_bytes=len(data))


class Disk:
    """A store in a folder, and whom it blamed."""

    def __init__(self, folder: Path, quota_bytes: int = 64 * rpc.MIB) -> None:
        self.folder = folder
        self.blamed: list[PeerId] = []
        self.store = BlobStore(folder, quota_bytes, blame=lambda peer, _: self.blamed.append(peer))

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


async def disk(folder: Path, quota_bytes: int = 64 * rpc.MIB) -> Disk:
    made = Disk(folder, quota_bytes)
    await made.store.open()
    return made


class Donors:
    """Peers that hold bytes; a peer that holds none never answers."""

    def __init__(self, **held: bytes) -> None:
        self.held = {PEERS[name]: data for name, data in held.items()}
        self.fails: set[int] = set()
        """The calls, counted from 0, that find the peer gone."""
        self.asked: list[tuple[PeerId, int]] = []
        self.called = asyncio.Event()

    async def call(self, peer: PeerId, method: Any, request: Any, **_: Any) -> Any:
        assert method is rpc.BLOB
        assert request.run == RUN
        self.asked.append((peer, request.offset))
        self.called.set()
        if peer not in self.held:
            await asyncio.Event().wait()
        if len(self.asked) - 1 in self.fails:
            raise PeerUnavailable(peer, "gone")
        return self.held[peer][request.offset : request.offset + request.length]


async def test_a_blob_that_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    ref = await (await disk(tmp_path)).store.put(DATA)
    store = (await disk(tmp_path)).store
    path = await store.path(ref.digest)
    assert path is not None
    assert path.read_bytes() == DATA
    assert store.used_bytes == len(DATA)


async def test_parts_are_read_and_end_where_the_blob_ends(tmp_path: Path) -> None:
    store = (await disk(tmp_path)).store
    ref = await store.put(b"0123456789")
    assert await store.read(ref.digest, 3, 4) == b"3456"
    assert await store.read(ref.digest, 8, 4) == b"89"
    assert await store.read(ref_of(b"other").digest, 0, 1) is None


async def test_a_blob_that_rotted_on_disk_is_not_used(tmp_path: Path) -> None:
    ref = await (await disk(tmp_path)).store.put(DATA)
    (tmp_path / ref.digest.hex()).write_bytes(WRONG)
    again = await disk(tmp_path)
    assert await again.store.read(ref.digest, 0, 10) is None
    assert (again.names(), again.store.used_bytes) == ([], 0)


async def test_a_blob_that_somebody_deleted_is_not_here(tmp_path: Path) -> None:
    store = (await disk(tmp_path)).store
    ref = await store.put(DATA)
    (tmp_path / ref.digest.hex()).unlink()
    assert await store.read(ref.digest, 0, 10) is None
    assert await store.put(DATA) == ref
    assert await store.read(ref.digest, 0, 10) == DATA[:10]


async def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "00ff.partial").write_bytes(b"half")
    assert (await disk(tmp_path)).names() == []


async def test_over_the_quota_nothing_is_written_and_the_sentence_says_what_to_do(
    tmp_path: Path,
) -> None:
    full = await disk(tmp_path, quota_bytes=3 * rpc.MIB)
    ref = await full.store.put(DATA)
    with pytest.raises(NoSpace, match=r"2\.0 of 3\.0 MiB .* expected room for 2\.0 MiB more; "):
        await full.store.put(WRONG)
    assert full.names() == [ref.digest.hex()]
    await full.store.remove(ref.digest)
    await full.store.put(WRONG)


@contextmanager
def full_disk(at_bytes: int) -> Iterator[None]:
    """No file of this process may grow further: the nearest thing to a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_breaks_nothing(tmp_path: Path) -> None:
    little = await disk(tmp_path)
    ref = await little.store.put(b"small")
    with full_disk(rpc.MIB), pytest.raises(NoSpace, match=r"^disk: .* expected .*; free some"):
        await little.store.put(DATA)
    assert (little.names(), little.store.used_bytes) == ([ref.digest.hex()], len(b"small"))
    await little.store.put(DATA)


async def test_a_blob_is_fetched_in_chunks_with_progress_and_then_served(tmp_path: Path) -> None:
    here, donors, progress = await disk(tmp_path), Donors(alice=DATA), []
    path = await here.store.fetch(
        donors, RUN, ref_of(DATA), [ALICE], progress=lambda held, size: progress.append(held)
    )
    assert path.read_bytes() == DATA
    assert progress == [rpc.CHUNK_BYTES, 2 * rpc.CHUNK_BYTES, len(DATA)]
    assert await here.store.read(digest_of(DATA), len(DATA) - 5, 5) == DATA[-5:]
    await here.store.fetch(donors, RUN, ref_of(DATA), [ALICE])
    assert len(donors.asked) == 3


async def test_the_next_peer_goes_on_at_the_chunk_where_the_last_one_failed(tmp_path: Path) -> None:
    here, donors = await disk(tmp_path), Donors(alice=DATA, bob=DATA)
    donors.fails = {1}
    path = await here.store.fetch(donors, RUN, ref_of(DATA), [ALICE, BOB])
    assert path.read_bytes() == DATA
    chunk = rpc.CHUNK_BYTES
    assert donors.asked == [(ALICE, 0), (ALICE, chunk), (BOB, chunk), (BOB, 2 * chunk)]
    assert here.blamed == []


async def test_wrong_bytes_are_blamed_on_the_donor_and_another_one_gives_the_blob(
    tmp_path: Path,
) -> None:
    here, donors = await disk(tmp_path), Donors(alice=WRONG, bob=DATA)
    path = await here.store.fetch(donors, RUN, ref_of(DATA), [ALICE, BOB])
    assert path.read_bytes() == DATA
    assert here.blamed == [ALICE]


@pytest.mark.parametrize("peers", [[ALICE, BOB], [BOB, ALICE]])
async def test_of_two_donors_together_only_the_wrong_one_is_blamed(
    tmp_path: Path, peers: list[PeerId]
) -> None:
    here, donors = await disk(tmp_path), Donors(alice=WRONG, bob=DATA)
    donors.fails = {1}
    path = await here.store.fetch(donors, RUN, ref_of(DATA), peers)
    assert path.read_bytes() == DATA
    assert set(here.blamed) <= {ALICE}
    assert here.blamed == [ALICE] * (peers[0] == ALICE)


async def test_a_chunk_of_another_length_is_blamed_at_once(tmp_path: Path) -> None:
    here, donors = await disk(tmp_path), Donors(alice=DATA[:-1])
    with pytest.raises(NotFetched, match="sent 999 bytes of a chunk of 1000"):
        await here.store.fetch(donors, RUN, ref_of(DATA), [ALICE])
    assert (here.blamed, here.names(), here.store.used_bytes) == ([ALICE], [], 0)


async def test_when_nobody_has_it_every_reason_is_named_and_nothing_stays(tmp_path: Path) -> None:
    here, donors = await disk(tmp_path), Donors(alice=DATA, bob=DATA)
    donors.fails = {2, 3}
    with pytest.raises(NotFetched, match=r"gone; .*gone"):
        await here.store.fetch(donors, RUN, ref_of(DATA), [ALICE, BOB])
    with pytest.raises(NotFetched, match="there is no peer to ask"):
        await here.store.fetch(donors, RUN, ref_of(DATA), [])
    assert (here.blamed, here.names(), here.store.used_bytes) == ([], [], 0)


async def test_a_fetch_has_a_deadline_and_leaves_nothing_behind(tmp_path: Path) -> None:
    here, donors = await disk(tmp_path), Donors()
    with pytest.raises(NotFetched, match=r"0 of 2098152 bytes from 1 peers within 0\.01 s"):
        await here.store.fetch(donors, RUN, ref_of(DATA), [ALICE], deadline_s=0.01)
    assert (here.names(), here.store.used_bytes) == ([], 0)


async def test_a_cancelled_fetch_leaves_nothing(tmp_path: Path) -> None:
    here, donors = await disk(tmp_path), Donors()
    fetching = asyncio.create_task(here.store.fetch(donors, RUN, ref_of(DATA), [ALICE]))
    await donors.called.wait()
    fetching.cancel()
    await asyncio.wait([fetching])
    assert fetching.cancelled()
    assert (here.names(), here.store.used_bytes) == ([], 0)


async def test_being_cancelled_waits_until_the_disk_has_ended() -> None:
    """Or else the thread would write on to a file that was removed meanwhile."""
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        may_end.wait(10)
        ended.set()

    writing = asyncio.create_task(_on_disk(work))
    await asyncio.to_thread(begun.wait, 10)
    writing.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not writing.done()
    may_end.set()
    await asyncio.wait([writing])
    assert (writing.cancelled(), ended.is_set()) == (True, True)
