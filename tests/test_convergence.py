"""Replicas end equal whatever is lost, doubled, late or hostile on the way, and stay small."""

from __future__ import annotations

from contextlib import suppress
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_samples import (
    ALICE,
    BOB,
    CAROL,
    MALLORY,
    following,
    forged,
    history,
    holdings,
    replica,
    signed,
    update_of,
)

from crdt.record import MAX_RECORD_BYTES, Entry, Record
from crdt.replica import Replica
from crdt.sync import MAX_BODY_BYTES, Parcel, Sync, answer, push_request
from node.bench.records_authors import RUN, Story, partner_of
from node.bench.records_hostile import KINDS, record_of
from protocol import codec
from protocol.errors import Malformed
from protocol.limits import KIB

HONEST = {
    signer.peer: history(rounds, signer, client_id=rounds)
    for signer, rounds in ((ALICE, 7), (BOB, 4), (CAROL, 2))
}
ENTRIES = [entry for entries, _ in HONEST.values() for entry in entries]
OPENING = signed(update_of({"totals": b"\x96\0\0\0\0\0\0"}), MALLORY)
FORKED = [OPENING, following(OPENING, b"one", MALLORY), following(OPENING, b"two", MALLORY)]
HOSTILE = [
    *FORKED,
    *(forged(entry) for entry in ENTRIES[::3]),
    signed(b"\x80\x80\x80\x80\x01\0\0\0\0", MALLORY, epoch=2),
    signed(b"no update", MALLORY, epoch=1 << 48),
    signed(ENTRIES[0].update, MALLORY, epoch=7),  # replayed under another name
]


steps = st.one_of(
    st.tuples(
        st.just("push"),
        st.integers(0, 2),
        st.lists(st.sampled_from([*ENTRIES, *HOSTILE]), min_size=1, max_size=6),
    ),
    st.tuples(st.just("sync"), st.permutations([0, 1, 2]), st.integers(1, 9)),
)


def synchronised(one: Replica, other: Replica, calls: int = 64) -> None:
    """From `one` to `other`; the call after so many is lost, and with it the rest."""
    session = Sync(one)
    while (body := session.body) is not None and calls:
        session.answered(answer(other, body)[0])
        calls -= 1


def state(held: Replica) -> tuple[object, ...]:
    return held.root(), holdings(held), held.views()


@given(st.lists(steps, max_size=12))
@settings(max_examples=40, deadline=None)
def test_three_replicas_end_equal_whatever_reached_them_first(script: list[tuple]) -> None:  # type: ignore[type-arg]
    """Entries lost, doubled, in any order, among hostile ones; calls that break off half-way."""
    held = [replica() for _ in range(3)]
    for what, who, detail in script:
        if what == "push":
            with suppress(Malformed):  # what stood before the bad one is merged
                answer(held[who], push_request(Parcel(tuple(detail))))
        else:
            synchronised(held[who[0]], held[who[1]], calls=detail)
    for entry in ENTRIES:  # what nobody got is pushed again by its author
        held[0].merge(entry)
    for _ in range(2):
        for one, other in permutations(held, 2):
            synchronised(one, other)
    assert state(held[0]) == state(held[1]) == state(held[2])
    views = held[0].views()
    views.pop(MALLORY.peer, None)
    assert views == {peer: HONEST[peer][1] for peer in sorted(HONEST)}


@given(
    st.sampled_from(HOSTILE + ENTRIES),
    st.lists(st.tuples(st.integers(0, 999), st.integers(1, 255)), max_size=3),
)
@settings(max_examples=100, deadline=None)
def test_no_body_whatever_changes_the_record_of_another_author(
    entry: Entry, flips: list[tuple[int, int]]
) -> None:
    body = bytearray(push_request(Parcel((*ENTRIES[-1:], entry, *ENTRIES[:1]))))
    for at, flip in flips:
        body[at % len(body)] ^= flip
    held = replica(*ENTRIES)
    before = holdings(held)
    with suppress(Malformed):
        answer(held, bytes(body))
    found = holdings(held)
    found.pop(MALLORY.peer, None)
    assert found == before


def test_an_epoch_of_before_changes_nothing_when_it_is_played_again() -> None:
    held = replica(*ENTRIES)
    before = state(held)
    old = [entry for entry in ENTRIES if entry.epoch < held.record(entry.author).epoch]
    assert len(old) > 3
    _, news = answer(held, push_request(Parcel(tuple(old))))
    assert (state(held), bool(news)) == (before, False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_made_to_harm_costs_its_bytes_and_no_more(kind: str) -> None:
    """What it costs in time and memory is measured: docs/results/records.md."""
    record = record_of(KINDS[kind], 32)
    held = Replica(RUN)
    for entry in record.chain:
        assert held.merge(entry)
    assert 25_000 < held.record(record.author).size_bytes <= MAX_RECORD_BYTES
    assert "unreadable" in str(held.view(record.author))
    joiner = Replica(RUN)
    synchronised(joiner, held)
    assert state(joiner) == state(held)


@pytest.mark.timeout(60)
def test_the_records_of_32_authors_fit_64_kib_after_every_round_and_so_does_a_join() -> None:
    """From round 65,500 on: before it the numbers are shorter, soon after it the tails go.

    `scripts/bench records` writes all rounds from the first to the 100,000th.
    """
    stories = [Story(number, 32, 65_500) for number in range(32)]
    most, worst = 0, list[Record]()
    for round in range(65_500, 65_600):
        for story in stories:
            story.write(round)
        size = sum(len(codec.encode(story.parcel())) for story in stories)
        if size > most:
            most, worst = size, [story.record for story in stories]
    assert 40 * KIB < most < 61 * KIB
    assert [held.totals.rounds for held in (story.content for story in stories)] == [65_600] * 32
    member, joiner = Replica(RUN), Replica(RUN)
    for record in worst:
        for entry in record.chain:
            member.merge(entry)
    session, down = Sync(joiner), 0
    while (body := session.body) is not None:
        reply, _ = answer(member, body)
        down += len(reply)
        session.answered(reply)
    assert down < 62 * KIB < MAX_BODY_BYTES
    assert state(joiner) == state(member)
    assert len(joiner.views()) == 32


def test_a_story_goes_on_from_a_record_that_was_kept_as_if_it_had_written_it() -> None:
    """The bench makes the worst moment again in this way."""
    whole, again = Story(3, 8, 0), Story(3, 8, 0)
    sizes = np.zeros(40, np.int32)
    for round in range(40):
        whole.write(round)
        sizes[round] = len(codec.encode(whole.parcel()))
        if round == 24:
            again.go_on_from(whole.record)
    for round in range(25, 40):
        again.write(round)
    assert again.record == whole.record
    assert again.content == whole.content
    assert sizes.max() < 2 * KIB


def test_everybody_has_one_partner_a_round_and_is_its_partner() -> None:
    for authors in (2, 8, 32):
        for round in range(40):
            partners = [partner_of(number, authors, round) for number in range(authors)]
            assert [partners[other] for other in partners] == list(range(authors))
            assert all(number != other for number, other in enumerate(partners))
