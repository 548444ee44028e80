"""Fetches into a real store, from donors that are dictionaries: many, dead, lying, partial."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgpack
import pytest
from blob_world import ALICE, BOB, CAROL, Donor, node, ref_of

from node.blobstore import NoSpace
from node.transfers import NotFetched
from protocol import rpc
from protocol.errors import Malformed
from protocol.ids import PeerId, digest_of
from protocol.manifest import manifest_of
from protocol.rpc import KIB, MIB
from protocol.spec import BlobRef

DATA = random.Random(7).randbytes(5 * MIB + 1000)
REF = ref_of(DATA)
CHUNKS = 6


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def wrong() -> Donor:
    return Donor(bytes(len(DATA)), manifest_of(DATA))


async def test_several_donors_give_a_blob_together_and_each_byte_comes_once(
    tmp_path: Path,
) -> None:
    donors = {ALICE: Donor(DATA), BOB: Donor(DATA)}
    here, progress = await node(tmp_path, donors), []
    path = await here.transfers.fetch(
        REF, lambda: list(donors), progress=lambda held, size: progress.append((held, size))
    )
    assert path.read_bytes() == DATA
    assert all(donor.asked for donor in donors.values())
    offsets = [offset for donor in donors.values() for offset in donor.asked]
    assert len(set(offsets)) == CHUNKS * 4 - 3
    assert (progress[0], progress[-1], len(progress)) == (
        (0, len(DATA)),
        (len(DATA), len(DATA)),
        CHUNKS + 1,
    )
    assert await here.store.read(REF.digest, len(DATA) - 5, 5) == DATA[-5:]
    await here.transfers.fetch(REF, list)


async def test_a_donor_that_dies_costs_a_chunk_at_most(tmp_path: Path) -> None:
    donors = {ALICE: Donor(DATA, dies_after=3), BOB: Donor(DATA)}
    here = await node(tmp_path, donors)
    path = await here.transfers.fetch(REF, lambda: list(donors))
    assert (path.read_bytes(), here.blamed) == (DATA, [])


async def test_wrong_bytes_are_blamed_once_and_another_donor_gives_the_blob(tmp_path: Path) -> None:
    donors = {ALICE: wrong(), BOB: Donor(DATA)}
    here = await node(tmp_path, donors)
    path = await here.transfers.fetch(REF, lambda: list(donors))
    assert (path.read_bytes(), here.blamed) == (DATA, [ALICE])


async def test_who_lied_is_not_asked_again_by_the_next_fetch(tmp_path: Path) -> None:
    donors = {ALICE: wrong()}
    here = await node(tmp_path, donors)
    for _ in range(2):
        with pytest.raises(NotFetched):
            await here.transfers.fetch(REF, lambda: list(donors))
    assert here.blamed == [ALICE]
    donors[BOB] = Donor(DATA)
    asked = len(donors[ALICE].asked)
    await here.transfers.fetch(REF, lambda: list(donors))
    assert len(donors[ALICE].asked) == asked


async def test_a_fetch_goes_on_after_a_restart_where_it_was(tmp_path: Path) -> None:
    first = {ALICE: Donor(DATA, dies_after=9)}
    here = await node(tmp_path, first)
    with pytest.raises(NotFetched, match="gone"):
        await here.transfers.fetch(REF, lambda: list(first))
    came = here.store.held(REF.digest)
    assert came is not None
    then = {BOB: Donor(DATA)}
    again = await node(tmp_path, then)
    path = await again.transfers.fetch(REF, lambda: list(then))
    assert path.read_bytes() == DATA
    whole_chunks = sum(bin(byte).count("1") for byte in came.chunks)
    assert whole_chunks >= 1
    asked = {offset // MIB for offset in then[BOB].asked}
    assert len(asked) == CHUNKS - whole_chunks


async def test_a_corrupted_chunk_is_fetched_again_and_nothing_else(tmp_path: Path) -> None:
    donors = {ALICE: Donor(DATA)}
    await (await node(tmp_path, donors)).store.put(DATA)
    spoilt = bytearray(DATA)
    spoilt[2 * MIB] ^= 1
    (tmp_path / REF.digest.hex()).write_bytes(spoilt)
    here = await node(tmp_path, donors)
    path = await here.transfers.fetch(REF, lambda: list(donors))
    assert path.read_bytes() == DATA
    assert sorted(donors[ALICE].asked) == [2 * MIB + n * 256 * KIB for n in range(4)]


async def test_late_joiners_that_hold_parts_are_donors_too(tmp_path: Path) -> None:
    donors = {
        ALICE: Donor(DATA, held=frozenset({0, 2, 4})),
        BOB: Donor(DATA, held=frozenset({1, 3, 5})),
    }
    here = await node(tmp_path, donors)
    path = await here.transfers.fetch(REF, lambda: list(donors))
    assert path.read_bytes() == DATA
    assert {offset // MIB for offset in donors[ALICE].asked} == {0, 2, 4}


async def test_members_are_asked_first_and_the_dht_when_none_of_them_has_it(tmp_path: Path) -> None:
    donors, asked = {BOB: Donor(DATA)}, list[bytes]()

    async def holders(digest: bytes) -> list[PeerId]:
        asked.append(digest)
        return [BOB]

    here = await node(tmp_path, donors)
    here.transfers.holders = holders
    await here.transfers.fetch(REF, lambda: [ALICE])
    assert asked == [REF.digest]
    other = random.Random(8).randbytes(MIB)
    donors[CAROL] = Donor(other)
    await here.transfers.fetch(ref_of(other), lambda: [CAROL])
    assert asked == [REF.digest]


async def test_when_nobody_has_it_every_reason_is_named_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    donors = {ALICE: Donor(b"another blob")}
    here = await node(tmp_path, donors)
    with pytest.raises(NotFetched, match=r"not here.*; .*reached|reached.*; .*not here"):
        await here.transfers.fetch(REF, lambda: [ALICE, BOB])
    with pytest.raises(NotFetched, match="there was no other peer to ask"):
        await here.transfers.fetch(REF, list)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (msgpack.packb([1 << 40, b""]), "size_bytes is 1099511627776, expected a whole number"),
        (msgpack.packb([1 << 40, bytes(128 * KIB)]), "size_bytes is 1099511627776"),
        (b"\xc1", "bad manifest"),
    ],
)
async def test_a_manifest_that_claims_a_terabyte_is_blamed_and_nothing_is_kept_for_it(
    tmp_path: Path, body: bytes, reason: str
) -> None:
    class Liar(Donor):
        def info(self, wanted: bool) -> rpc.BlobInfo:
            return rpc.BlobInfo(body, b"")

    liar = Liar(DATA)
    ref = BlobRef(digest=digest_of(body), size_bytes=4096 * MIB)
    liar.manifest = type("Named", (), {"name": ref.digest})()
    here = await node(tmp_path, {ALICE: liar})
    with pytest.raises(NotFetched, match=reason):
        await here.transfers.fetch(ref, lambda: [ALICE])
    assert (here.blamed, names(tmp_path), here.store.used_bytes) == ([ALICE], [], 0)


def test_a_blob_of_a_terabyte_cannot_even_be_named() -> None:
    with pytest.raises(ValueError, match="size_bytes is 1099511627776"):
        BlobRef(digest=REF.digest, size_bytes=1 << 40)
    assert issubclass(Malformed, ValueError)


async def test_another_size_than_was_promised_is_told_and_no_donors_fault(tmp_path: Path) -> None:
    donors = {ALICE: Donor(DATA)}
    here = await node(tmp_path, donors)
    promised = BlobRef(digest=REF.digest, size_bytes=len(DATA) + 1)
    with pytest.raises(NotFetched, match=f"holds {len(DATA)} bytes .* expected {len(DATA) + 1}"):
        await here.transfers.fetch(promised, lambda: list(donors))
    assert (here.blamed, names(tmp_path)) == ([], [])


async def test_without_room_nothing_is_fetched(tmp_path: Path) -> None:
    donors = {ALICE: Donor(DATA)}
    here = await node(tmp_path, donors, quota_bytes=MIB)
    with pytest.raises(NoSpace, match="disk quota"):
        await here.transfers.fetch(REF, lambda: list(donors))
    assert (donors[ALICE].asked, names(tmp_path)) == ([], [])


async def test_a_fetch_has_a_deadline_and_keeps_what_came(tmp_path: Path) -> None:
    donors = {ALICE: Donor(DATA, is_frozen=True)}
    here = await node(tmp_path, donors)
    with pytest.raises(NotFetched, match=r"not all of it came within 0\.01 s"):
        await here.transfers.fetch(REF, lambda: list(donors), deadline_s=0.01)


async def test_a_cancelled_fetch_leaves_nothing_running_and_can_be_gone_on_with(
    tmp_path: Path,
) -> None:
    donors = {ALICE: Donor(DATA, is_frozen=True)}
    here = await node(tmp_path, donors)
    before = asyncio.all_tasks()
    fetching = asyncio.create_task(here.transfers.fetch(REF, lambda: list(donors)))
    await here.transfers.caller.called.wait()  # type: ignore[attr-defined]
    fetching.cancel()
    await asyncio.wait([fetching])
    assert (fetching.cancelled(), asyncio.all_tasks()) == (True, before)
    donors[BOB] = Donor(DATA)
    donors[ALICE].is_frozen = False
    assert (await here.transfers.fetch(REF, lambda: list(donors))).read_bytes() == DATA


async def test_two_fetches_of_one_blob_fetch_it_once(tmp_path: Path) -> None:
    donors = {ALICE: Donor(DATA)}
    here = await node(tmp_path, donors)
    async with asyncio.TaskGroup() as tasks:
        both = [
            tasks.create_task(here.transfers.fetch(REF, lambda: list(donors), is_lasting=False))
            for _ in range(2)
        ]
    assert both[0].result() == both[1].result()
    assert len(donors[ALICE].asked) == CHUNKS * 4 - 3
    for is_here in (True, False):
        await here.store.release(REF.digest)
        assert (await here.store.path(REF.digest) is not None) is is_here
