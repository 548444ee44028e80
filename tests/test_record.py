"""A record is what its author signed, in any order, and never what somebody else did."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_samples import (
    ALICE,
    BOB,
    JOINED,
    OTHER_RUN,
    RUN,
    after,
    author,
    following,
    forged,
    history,
    replica,
    signed,
    update_of,
)

from crdt.author import SOFT_RECORD_BYTES
from crdt.record import (
    MAX_SNAPSHOT_BYTES,
    MAX_TAIL,
    MAX_TAIL_BYTES,
    Entry,
    Proof,
    Record,
    clash,
    first_entry,
    next_entry,
    proof_of,
)
from crdt.values import keyed, view
from protocol import codec
from protocol.envelope import Signer
from protocol.errors import Malformed

GOLDEN = Path(__file__).parent / "golden" / "record.txt"
ENTRIES, CONTENT = history(81)
"""Many epochs of an honest author; the newest has a tail."""
NEWEST = [entry for entry in ENTRIES if entry.epoch == ENTRIES[-1].epoch]
SNAPSHOT = signed(update_of({"a": b"1"}))


def merged(*entries: Entry) -> Record:
    record = Record(entries[0].author)
    for entry in entries:
        record = record.merged(entry)
    return record


def test_golden_bytes() -> None:
    """A change here makes the records of a run unreadable: docs/protocol.md says how."""
    first = first_entry(ALICE, RUN, 5, update_of({"member": b"\x90"}))
    second = following(first, update_of({"member": b"\x91"}, first.update))
    lines = "".join(f"{codec.encode(value).hex()}\n" for value in (first, second))
    if os.environ.get("SHOAL_REWRITE"):
        GOLDEN.write_text(lines)
    assert lines == GOLDEN.read_text()


@given(st.data())
def test_entries_in_any_order_and_number_make_the_same_record(data: st.DataObject) -> None:
    some = data.draw(st.lists(st.sampled_from(ENTRIES), max_size=20))
    order = data.draw(st.permutations([*NEWEST, *some]))
    assert merged(*order) == Record(ALICE.peer, tuple(NEWEST))


def test_an_epoch_that_is_full_is_replaced_and_keeps_the_content() -> None:
    assert sorted({entry.epoch for entry in ENTRIES}) == list(range(1, ENTRIES[-1].epoch + 1))
    assert len(NEWEST) > 1
    record = merged(*ENTRIES)
    assert record.chain == tuple(NEWEST)
    assert view(record.updates) == CONTENT


@pytest.mark.parametrize(("update_bytes", "updates"), [(10, MAX_TAIL), (500, 16), (8000, 1)])
def test_the_tail_ends_at_32_updates_or_8_kib(update_bytes: int, updates: int) -> None:
    writer, content = author(), JOINED
    record = merged(first_entry(ALICE, RUN, 1, update_of({"a": b""})))
    while entry := next_entry(ALICE, RUN, record.chain[-1], bytes(update_bytes)):
        record = record.merged(entry)
    assert len(record.chain) - 1 == updates
    entry = writer.next(record, content, is_lost=False)
    assert entry is not None
    assert (entry.epoch, entry.seq) == (2, 0)


def test_an_older_epoch_is_ignored_and_a_newer_one_waits_for_its_snapshot() -> None:
    new = signed(b"new", epoch=9)
    tail = following(new, b"tail")
    assert merged(SNAPSHOT, tail) == Record(ALICE.peer, (SNAPSHOT,), (tail,))
    assert merged(SNAPSHOT, tail, new) == Record(ALICE.peer, (new, tail))
    assert merged(new, SNAPSHOT) == Record(ALICE.peer, (new,))


def test_what_waits_is_of_one_epoch_only() -> None:
    waiting = [following(signed(b"x", epoch=epoch), b"tail") for epoch in range(2, 99)]
    assert merged(SNAPSHOT, *waiting).ahead == (waiting[-1],)


A1, B1 = following(SNAPSHOT, b"a1"), following(SNAPSHOT, b"b1")
A2, B2 = following(A1, b"a2"), following(B1, b"b2")
A3 = following(A2, b"a3")
GREEDY = signed(bytes(8000), seq=3, previous=A2.digest, tail_bytes=8000)


@pytest.mark.parametrize(
    "entries",
    [
        (SNAPSHOT, signed(b"another snapshot")),
        (SNAPSHOT, A1, B1),
        (SNAPSHOT, A1, B2),
        (SNAPSHOT, A1, A2, B2),
        (A2, B2),
        (A1, A2, GREEDY),
        (A1, GREEDY),
        (signed(b"own", epoch=4), SNAPSHOT, signed(b"stolen key", epoch=4)),
    ],
    ids=["snapshots", "fork", "no parent", "later", "waiting", "wrong sum", "gap", "epoch 4"],
)
@given(data=st.data())
def test_equivocation_is_found_in_any_order(
    entries: tuple[Entry, ...], data: st.DataObject
) -> None:
    record = merged(*data.draw(st.permutations(entries)))
    assert record.proof is not None
    assert (record.chain, record.ahead) == ((), ())
    assert clash(record.proof.first, record.proof.second)


def test_a_frozen_record_takes_no_more_entries() -> None:
    frozen = merged(SNAPSHOT, A1, B1)
    assert frozen.merged(A2) is frozen
    assert frozen.merged(signed(b"new", epoch=2)) is frozen
    assert author().next(frozen, JOINED, is_lost=False) is None


@given(st.permutations([proof_of(A1, B1), proof_of(A2, B2), proof_of(A1, B2)]))
def test_of_many_proofs_all_peers_keep_the_same_one(proofs: list[Proof]) -> None:
    record = Record(ALICE.peer)
    for proof in proofs:
        record = record.convicted(proof)
    smallest = min(proofs, key=lambda proof: proof.digest)
    assert record == Record(ALICE.peer, proof=smallest)


@pytest.mark.parametrize("pair", [(A1, A2), (A1, A3), (SNAPSHOT, A1), (A1, A1)])
def test_an_honest_chain_proves_nothing(pair: tuple[Entry, Entry]) -> None:
    for first, second in (pair, pair[::-1]):
        with pytest.raises(ValueError, match="prove nothing"):
            Proof(first, second)


def test_entries_of_two_authors_prove_nothing() -> None:
    assert not clash(SNAPSHOT, signed(b"another", BOB))


def test_only_the_author_can_sign_and_only_for_one_run() -> None:
    with pytest.raises(Malformed, match="not signed by"):
        forged(SNAPSHOT).verify(RUN)
    with pytest.raises(Malformed, match="not signed by"):
        SNAPSHOT.verify(OTHER_RUN)
    SNAPSHOT.verify(RUN)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"update": bytes(MAX_SNAPSHOT_BYTES + 1)}, "update has 16385 bytes"),
        ({"update": b""}, "update has 0 bytes"),
        ({"seq": MAX_TAIL + 1}, "seq is 33"),
        ({"seq": 1, "update": bytes(MAX_TAIL_BYTES + 1)}, "update has 8193 bytes"),
        ({"seq": 1, "tail_bytes": MAX_TAIL_BYTES + 1}, "tail_bytes is 8193"),
        ({"seq": 1, "tail_bytes": 1}, "tail_bytes is 1, expected a whole number from 2"),
        ({"previous": SNAPSHOT.digest}, "names an entry before it"),
        ({"epoch": 0}, "epoch is 0"),
    ],
)
def test_refuses_an_entry_that(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        signed(**({"update": b"xx"} | fields))  # type: ignore[arg-type]


def test_an_author_that_lost_its_disk_goes_on_beyond_the_newest_epoch_that_is_known() -> None:
    """Of the newest it may have signed more than anyone remembers: it does not touch it."""
    remembered = merged(*NEWEST, signed(b"?", epoch=700, seq=2, tail_bytes=9))
    entry = author(client_id=8, jump=10).next(remembered, JOINED, is_lost=True)
    assert entry is not None
    assert (entry.epoch, entry.seq) == (710, 0)
    assert replica(*ENTRIES, entry).view(ALICE.peer) == JOINED


def test_an_author_with_nothing_begins_at_the_epoch_it_drew() -> None:
    entry = author(jump=123_456).next(Record(ALICE.peer), JOINED, is_lost=False)
    assert entry is not None
    assert (entry.epoch, entry.seq) == (123_456, 0)


def test_an_author_whose_record_does_not_read_starts_a_new_epoch() -> None:
    entry = author().next(merged(signed(b"no update")), JOINED, is_lost=False)
    assert entry is not None
    assert (entry.epoch, entry.seq) == (2, 0)


def test_an_author_writes_nothing_when_nothing_changed() -> None:
    assert author().next(merged(*ENTRIES), CONTENT, is_lost=False) is None


@pytest.mark.parametrize("blames", [0, 2, 16])
def test_a_tail_ends_at_the_soft_limit_or_at_a_quarter_of_a_large_snapshot(blames: int) -> None:
    """Content and trace: what is overwritten stays behind only until the next epoch."""
    writer, record, content = author(), Record(ALICE.peer), JOINED
    for number in range(blames):
        content = content.with_blame(Signer(bytes([9, number]) * 16).peer, "late" * 20)
    for round in range(200):
        content = after(content, round)
        before = record
        entry = writer.next(record, content, is_lost=False)
        assert entry is not None
        record = record.merged(entry)
        snapshot = signed(update_of(keyed(content))).size_bytes + 9  # its epoch, its client
        assert record.size_bytes <= max(SOFT_RECORD_BYTES, snapshot * 5 // 4)
        if round > 100 and entry.seq == 0:  # no sooner than it had to
            assert before.size_bytes + 400 > min(SOFT_RECORD_BYTES, snapshot * 5 // 4)
    assert view(record.updates) == content
    assert content.totals.rounds == 200
    assert (record.size_bytes > SOFT_RECORD_BYTES) == (blames == 16)
