"""Fetches into a real store, from donors that are dictionaries: many, dead, lying, partial."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgpack
import pytest
from blob_world import ALICE, BOB, CAROL, RUN, Donor, Node, Operator, node, ref_of

from node import materials
from node.blobs import progress
from node.blobs.donor_search import DonorSearch
from node.blobs.files import NoSpace
from node.blobs.progress import Report
from node.blobs.transfers import FETCH_S, NotFetched
from node.materials import fetch_blob
from node.ports import Rpc
from node.rpc import CallRefused
from node.telemetry import Waits
from protocol import rpc
from protocol.errors import Malformed
from protocol.frame import Refusal
from protocol.ids import PeerId, digest_of
from protocol.limits import KIB, MIB
from protocol.manifest import manifest_of
from protocol.spec import BlobRef
from protocol.transfer_steps import Event

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
        REF, lambda: list(donors), progress=lambda *told: progress.append(told)
    )
    assert path.read_bytes() == DATA
    assert all(donor.asked for donor in donors.values())
    offsets = [offset for donor in donors.values() for offset in donor.asked]
    assert len(set(offsets)) == CHUNKS * 4 - 3
    assert (progress[0], progress[-1], len(progress)) == (
        (0, len(DATA), 0),
        (len(DATA), len(DATA), 2),
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


async def test_a_fetch_that_ends_lets_one_of_those_that_wait_go_on_and_no_more(
    tmp_path: Path,
) -> None:
    """Who comes while the turn is passed on waits, too."""
    donors = {ALICE: Donor(DATA, is_frozen=True)}
    here = await node(tmp_path, donors)
    first, second = [
        asyncio.create_task(here.transfers.fetch(REF, lambda: list(donors))) for _ in range(2)
    ]
    await here.transfers.caller.called.wait()  # type: ignore[attr-defined]
    donors[ALICE].is_frozen = False
    first.cancel()
    third: list[asyncio.Task[Path]] = []
    first.add_done_callback(
        lambda _: third.append(asyncio.create_task(here.transfers.fetch(REF, lambda: list(donors))))
    )
    await asyncio.wait([first, second])
    assert await third[0] == second.result()
    assert len(donors[ALICE].asked) == len(set(donors[ALICE].asked)) == CHUNKS * 4 - 3
    assert not here.transfers._turns


@pytest.mark.parametrize("code", ["busy", "late", "failed"])
async def test_a_donor_that_cannot_answer_now_stays_one(tmp_path: Path, code: str) -> None:
    told: list[Event] = []

    class Busy:
        async def call(self, peer: PeerId, method: object, *_: object, **__: object) -> object:
            raise CallRefused(peer, "blob-info/1", Refusal(code, "not now"))

    search = DonorSearch(
        REF,
        run=RUN,
        caller=cast(Rpc, Busy()),
        peers=list,
        holders=None,
        is_relayed=lambda peer: False,
        is_banned=lambda peer: False,
        blame=lambda peer, reason: pytest.fail(reason),
        tell=told.append,
        rng=random.Random(1),
    )
    await search.poll(ALICE)
    assert told == []


# --- what a person sees of it ------------------------------------------------------------------


def corpus(
    here: Node, donors: dict[PeerId, Donor], waits: Waits, seen: Operator
) -> asyncio.Task[Path]:
    """Fetched until it is here."""
    return asyncio.create_task(
        fetch_blob(
            "the corpus",
            REF,
            transfers=here.transfers,
            peers=lambda: list(donors),
            waits=waits,
            journal=seen,
        )
    )


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110  fetches go on meanwhile
            await asyncio.sleep(0)


def test_a_report_says_how_much_is_here_how_fast_and_from_how_many() -> None:
    report = Report("the corpus", "any member", 60.0, Waits(lambda: 0.0))
    texts = [report.text(0.0)]
    report.told(100 * MIB, 256 * MIB, 0)
    texts.append(report.text(10.0))
    for at in range(20, 101, 10):
        report.told((100 + 2 * at) * MIB, 300 * MIB, 4)
        texts.append(report.text(float(at)))
    assert texts[:3] == [
        "the corpus",
        "the corpus, 100.0 of 256.0 MiB are here, 0.00 MiB/s from 0 donors",
        "the corpus, 140.0 of 300.0 MiB are here, 2.00 MiB/s from 4 donors",
    ]
    texts += [report.text(110.0 + n) for n in range(7)]  # nothing comes any more
    assert texts[-1] == "the corpus, 300.0 of 300.0 MiB are here, 0.00 MiB/s from 4 donors"


async def test_a_fetch_under_way_shows_in_the_wait_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "REPORT_S", 0.0)
    donors = {
        ALICE: Donor(DATA, held=frozenset({0, 2})),
        BOB: Donor(DATA, held=frozenset({1})),
    }
    here, waits, seen = await node(tmp_path, donors), Waits(lambda: 1000.0), Operator()
    fetching = corpus(here, donors, waits, seen)
    await until(lambda: waits.current is not None and " 3.0 of 5.0" in waits.current.what)
    assert waits.current is not None
    before, _, after = waits.current.what.partition(" are here, ")
    assert before == "the corpus, 3.0 of 5.0 MiB"
    assert after.endswith(" MiB/s from 2 donors")
    assert 1000.0 < waits.current.until_unix_s <= 1000.0 + FETCH_S
    fetching.cancel()
    await asyncio.wait([fetching])
    assert [waits.current, seen.trouble] == [None, None]


async def test_who_holds_the_only_copy_and_finds_it_broken_is_told_so_until_somebody_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(materials, "AGAIN_S", 0.0)
    await (await node(tmp_path, {})).store.put(DATA)
    spoilt = bytearray(DATA)
    spoilt[2 * MIB] ^= 1
    (tmp_path / REF.digest.hex()).write_bytes(spoilt)
    donors = dict[PeerId, Donor]()
    for _ in range(2):  # the second time it was known to be broken
        here, waits, seen = await node(tmp_path, donors), Waits(lambda: 0.0), Operator()
        fetching = corpus(here, donors, waits, seen)
        await until(lambda: seen.trouble is not None)  # noqa: B023  awaited at once
        assert seen.trouble is not None
        assert seen.trouble.startswith(
            "the corpus: our own copy is broken or was never complete, 5 of 6 chunks are right in "
        )
        assert "nobody has it; there was no other peer to ask; start a member" in seen.trouble
        fetching.cancel()
        await asyncio.wait([fetching])
    donors[ALICE] = Donor(DATA)
    here, waits, seen = await node(tmp_path, donors), Waits(lambda: 0.0), Operator("old")
    assert (await corpus(here, donors, waits, seen)).read_bytes() == DATA
    assert (seen.trouble, {offset // MIB for offset in donors[ALICE].asked}) == (None, {2})
