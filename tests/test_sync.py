"""Replicas that meet become equal, whatever happened before, and cost a bounded amount."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_samples import (
    ALICE,
    BOB,
    CAROL,
    JOINED,
    MALLORY,
    OTHER_RUN,
    RUN,
    author,
    digest,
    following,
    forged,
    history,
    holdings,
    replica,
    signed,
    synchronised,
    update_of,
)

from crdt import replica as replica_module
from crdt.record import MAX_SNAPSHOT_BYTES, MAX_TAIL, MAX_TAIL_BYTES, Entry, Head, proof_of
from crdt.replica import MAX_AUTHORS, Replica
from crdt.schema import NoView
from crdt.sync import (
    MAX_BODY_BYTES,
    MAX_CALLS,
    Answer,
    Buckets,
    Compare,
    Heads,
    Merged,
    Missing,
    Newest,
    Parcel,
    Push,
    Request,
    Same,
    Sync,
    answer,
    merge_newest,
    merge_parcel,
    newest_request,
    pack,
    push_request,
)
from protocol import codec
from protocol.envelope import Signer
from protocol.errors import Malformed
from protocol.ids import PeerId

HONEST = {
    ALICE.peer: history(4, ALICE, jump=12),
    BOB.peer: history(3, BOB),
    CAROL.peer: history(0, CAROL),
}
OLD, _ = history(5, ALICE, jump=1)
ENTRIES = OLD + [entry for entries, _ in HONEST.values() for entry in entries]
WHOLE = replica(*ENTRIES)
OPENING = signed(update_of({"totals": b"\x96\0\0\0\0\0\0"}), MALLORY)
FORK = [following(OPENING, update, MALLORY) for update in (b"one", b"two", b"three")]
CHAINS = [OPENING, *FORK, following(FORK[0], b"one more", MALLORY)]
MALLORY_NEXT = signed(b"no update", MALLORY, epoch=2)


def equal(one: Replica, other: Replica) -> bool:
    views = one.views() == other.views()
    return views and holdings(one) == holdings(other) and one.root() == other.root()


@given(st.permutations(ENTRIES), st.lists(st.sampled_from(ENTRIES)))
@settings(max_examples=30)
def test_entries_in_any_order_and_number_make_equal_replicas(
    order: list[Entry], again: list[Entry]
) -> None:
    held = replica(*order, *again)
    assert equal(held, WHOLE)
    assert held.views() == {peer: HONEST[peer][1] for peer in sorted(HONEST)}


@given(st.lists(st.integers(0, 3), min_size=len(ENTRIES), max_size=len(ENTRIES)))
@settings(max_examples=30)
def test_replicas_that_got_a_part_each_are_equal_once_they_met(split: list[int]) -> None:
    parts = [
        replica(*(entry for entry, part in zip(ENTRIES, split, strict=True) if part in (which, 3)))
        for which in range(3)
    ]
    for _ in range(3):  # an entry with a gap before it travels once the gap is filled
        for one, other in combinations(parts, 2):
            synchronised(one, other)
            assert equal(one, other)
    for held in parts:
        assert equal(held, WHOLE)


def test_two_halves_of_a_partition_merge_when_they_meet() -> None:
    """Each half goes on with the records it had of the other, and with its own."""
    left, right = replica(), replica()
    for entry in ENTRIES:
        seen_by_both = entry.seq < 4 and entry.epoch == 1
        for half, own in ((left, entry.author == ALICE.peer), (right, entry.author != ALICE.peer)):
            if own or seen_by_both:
                half.merge(entry)
    assert not equal(left, right)
    synchronised(left, right)
    assert equal(left, right)
    assert equal(left, WHOLE)


@given(st.permutations(CHAINS), st.permutations([*CHAINS, MALLORY_NEXT]), st.data())
def test_equivocation_is_found_by_everyone_in_any_order(
    first: list[Entry], second: list[Entry], data: st.DataObject
) -> None:
    """Those who saw one chain only, or a later epoch, learn of it by the proof."""
    someone = replica(*first)
    others = [
        replica(*second),
        replica(*first[: data.draw(st.integers(0, 5))]),
        replica(OPENING, FORK[data.draw(st.integers(0, 2))], MALLORY_NEXT),
    ]
    assert "equivocated in epoch 1" in str(someone.view(MALLORY.peer))
    for other in (*others, *others):
        synchronised(other, someone)
    for other in others:
        assert equal(other, someone)


def test_both_sides_of_an_equivocation_are_found_when_two_replicas_meet() -> None:
    for one, other in ((FORK[0], FORK[1]), (CHAINS[4], FORK[1]), (FORK[1], CHAINS[4])):
        left, right = replica(*CHAINS[:2], one), replica(OPENING, other)
        synchronised(left, right)
        assert left.record(MALLORY.peer).proof
        assert equal(left, right)


HOSTILE = {
    "mutated": forged(ENTRIES[0]),
    "another author's entry": replace(ENTRIES[0], author=MALLORY.peer),
    "an old epoch": ENTRIES[0],
    "a lie about the author": signed(b"x", MALLORY, epoch=99),
    "a bomb": signed(bytes.fromhex("808080800100000000"), MALLORY),
    "a panic": signed(bytes.fromhex("0100090000"), MALLORY),
    "a deep nest": signed(b"\x01\x01\x09\x00\x28\x01\x01r\x01a\x01" + b"u\x01" * 8000, MALLORY),
    "as large as can be": signed(bytes(MAX_SNAPSHOT_BYTES), MALLORY),
    "the last epoch": signed(b"x", MALLORY, epoch=1 << 48),
}


@pytest.mark.parametrize("entry", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_entry_harms_nobody_but_its_author(entry: Entry) -> None:
    held = replica(*ENTRIES)
    before = holdings(held)
    with suppress(Malformed):
        answer(held, push_request(Parcel((entry,))))
    views, after = held.views(), holdings(held)
    assert isinstance(views.pop(MALLORY.peer, NoView("")), NoView)
    after.pop(MALLORY.peer, None)
    assert (views, after) == (WHOLE.views(), before)


@given(st.sampled_from(ENTRIES), st.integers(0, 400), st.integers(1, 255))
def test_a_flipped_byte_on_the_way_is_refused(entry: Entry, at: int, flip: int) -> None:
    body = bytearray(push_request(Parcel((entry,))))
    body[at % len(body)] ^= flip
    held = replica()
    with pytest.raises(Malformed):
        answer(held, bytes(body))
    assert holdings(held) == {}


@given(st.binary(max_size=200))
def test_junk_is_refused_by_both_sides(junk: bytes) -> None:
    with pytest.raises(Malformed):
        answer(replica(), junk)
    with pytest.raises(Malformed):
        Sync(replica()).answered(junk)


@pytest.mark.parametrize("reply", [Missing(Parcel(), ()), Merged(0)], ids=["missing", "merged"])
def test_an_answer_to_another_question_is_refused(reply: Answer) -> None:
    with pytest.raises(Malformed, match="is no answer to what was asked"):
        Sync(WHOLE).answered(codec.encode(reply))


def test_the_entries_of_another_run_are_refused() -> None:
    with pytest.raises(Malformed, match="not signed by"):
        merge_parcel(Replica(OTHER_RUN), Parcel((ENTRIES[0],)))


REQUESTS: Sequence[Request] = (
    Compare(digest()),
    Heads((0, 255), (Head(ALICE.peer, 1, 2, digest()),)),
    Push(Parcel((OPENING,), (proof_of(FORK[0], FORK[1]),))),
    Newest(ALICE.peer),
)
ANSWERS: Sequence[Answer] = (
    Same(),
    Buckets(WHOLE.buckets()),
    Missing(Parcel((OPENING,)), (Head(ALICE.peer, 0, 0, digest()),)),
    Merged(3),
)


@pytest.mark.parametrize("message", [*REQUESTS, *ANSWERS], ids=lambda kind: type(kind).__name__)
def test_every_message_round_trips(message: Request | Answer) -> None:
    kind: type = Request if message in REQUESTS else Answer  # type: ignore[assignment]
    data = codec.encode(message)
    assert codec.decode(kind, data, max_bytes=MAX_BODY_BYTES) == message


def test_equal_replicas_need_one_call_and_a_joiner_one_and_a_check() -> None:
    assert synchronised(replica(*ENTRIES), WHOLE) == 1
    joiner = replica()
    assert synchronised(joiner, WHOLE) == 2
    assert equal(joiner, WHOLE)


def test_a_joiner_with_its_own_record_needs_two_calls_and_a_check() -> None:
    own = signed(update_of({"totals": b"\x96\0\0\0\0\0\0"}), MALLORY)
    member, joiner = replica(*ENTRIES), replica(own)
    assert synchronised(joiner, member) == 3
    assert equal(joiner, member)
    assert equal(joiner, replica(*ENTRIES, own))


def test_what_is_new_to_a_peer_and_only_that_is_to_be_forwarded() -> None:
    held = replica(*ENTRIES[:3])
    body, news = answer(held, push_request(Parcel(tuple(ENTRIES[:5]))))
    assert codec.decode(Merged, body, max_bytes=99) == Merged(2)
    assert news == Parcel(tuple(ENTRIES[3:5]))
    assert not answer(held, push_request(Parcel(tuple(ENTRIES[:5]))))[1]


def test_a_proof_found_in_a_push_is_forwarded_in_place_of_the_entries() -> None:
    _, news = answer(replica(), push_request(Parcel((OPENING, *FORK[:2]))))
    assert news == Parcel((), (proof_of(FORK[0], FORK[1]),))


def test_who_lost_its_disk_gets_its_newest_epoch_from_a_peer() -> None:
    lost = replica()
    body, _ = answer(WHOLE, newest_request(ALICE.peer))
    assert merge_newest(lost, ALICE.peer, body)
    assert holdings(lost) == {ALICE.peer: holdings(WHOLE)[ALICE.peer]}
    entries, _ = HONEST[ALICE.peer]
    entry = author(client_id=8, jump=5).next(lost.record(ALICE.peer), JOINED, is_lost=True)
    assert entry is not None
    assert (entry.epoch, entry.seq) == (entries[-1].epoch + 5, 0)
    assert replica(*ENTRIES, entry).view(ALICE.peer) == JOINED


def test_who_asks_for_its_newest_epoch_is_told_from_who_answers_that_it_has_none() -> None:
    frozen = replica()
    frozen.convict(proof_of(FORK[0], FORK[1]))
    others = replica(OPENING)
    for held, is_held in ((replica(), False), (WHOLE, False), (others, True), (frozen, True)):
        body, _ = answer(held, newest_request(MALLORY.peer))
        assert merge_newest(replica(), MALLORY.peer, body) is is_held
    body, _ = answer(others, newest_request(MALLORY.peer))
    assert not merge_newest(replica(), ALICE.peer, body)  # which is no answer to the question


def test_a_record_at_all_its_limits_still_travels_in_bounded_messages() -> None:
    last = signed(bytes(MAX_SNAPSHOT_BYTES), ALICE)
    largest = [last]
    for _ in range(MAX_TAIL):
        last = following(last, bytes(MAX_TAIL_BYTES // MAX_TAIL), ALICE)
        largest.append(last)
    full = replica(*largest)
    for number in range(20):
        full.merge(signed(bytes(MAX_SNAPSHOT_BYTES), Signer(bytes([9, number]) * 16)))
    joiner, session = replica(), Sync(replica())
    session = Sync(joiner)
    calls = 0
    while (body := session.body) is not None:
        reply, _ = answer(full, body)
        assert max(len(body), len(reply)) < 160 * 1024
        session.answered(reply)
        calls += 1
    assert calls < MAX_CALLS
    assert equal(joiner, full)


def test_a_peer_that_never_ends_is_left_after_64_calls() -> None:
    session, calls = Sync(replica(*ENTRIES)), 0
    while session.body is not None:
        calls += 1
        reply: Answer = Buckets((digest(calls),) * 256)
        if calls % 2 == 0:
            reply = Missing(Parcel((signed(b"x", Signer(bytes([7, calls]) * 16)),)), ())
        session.answered(codec.encode(reply))
    assert calls == MAX_CALLS


def test_there_is_a_limit_to_authors_but_for_ourselves_and_the_creator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_module, "MAX_AUTHORS", 2)
    held = Replica(RUN, reserved=[CAROL.peer])
    assert [held.merge(signed(b"x", signer)) for signer in (ALICE, BOB, MALLORY, CAROL)] == [
        True,
        True,
        False,
        True,
    ]
    assert held.merge(signed(b"x", ALICE, epoch=2))
    full = replica(signed(b"x", MALLORY))
    assert synchronised(held, full) == 5
    assert MALLORY.peer not in held.authors()


def test_heads_of_a_full_replica_fit_a_message() -> None:
    heads = tuple(Head(PeerId(ALICE.peer), 1 << 40, 32, digest(n)) for n in range(MAX_AUTHORS + 2))
    assert len(codec.encode(Missing(Parcel(), heads))) < 120 * 1024


def test_a_changed_author_is_told_once() -> None:
    held = replica(*ENTRIES[:2])
    assert held.take_changed() == (ENTRIES[0].author,)
    assert held.take_changed() == ()


def test_a_parcel_stops_where_the_message_is_full() -> None:
    large = [signed(bytes(MAX_SNAPSHOT_BYTES), Signer(bytes([n]) * 32)) for n in range(1, 20)]
    parcel = pack(replica(*large), [Head(entry.author, 0, 0, digest()) for entry in large])
    assert parcel == Parcel(tuple(large[:7]))
