"""Rosters: who leads, who is in, what counts, which one wins, and what of it can be forged."""

from __future__ import annotations

from dataclasses import replace

import pytest
from group_pump import PEERS, RUN, SIGNERS
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec
from protocol.algorithms import MAX_GROUP
from protocol.errors import Malformed
from protocol.ids import Digest, PeerId, Round, RunId, digest_of
from protocol.limits import MAX_FRAGMENT, MAX_PAYLOAD_BYTES, MAX_ROUND, MAX_TOKENS
from protocol.messages import MAX_MESSAGE_BYTES, Message
from protocol.rosters import (
    MAX_ROSTER_BYTES,
    MAX_TERM,
    Contribution,
    Entry,
    Later,
    Roster,
    SignedRoster,
    sign_roster,
)
from trainers.effects import Share
from trainers.roster import (
    KnownRoster,
    fault_of_roster,
    fault_of_statement,
    first_in_line,
    leader_of,
    roster_of,
    shares,
)

ALICE, BOB, CAROL, *_ = PEERS
ANCHOR = digest_of(b"anchor")


def payload(name: str) -> Digest:
    return digest_of(name.encode())


def offer(name: str, tokens: int = 800) -> Contribution:
    return Contribution(
        round=Round(4),
        fragment=1,
        anchor=ANCHOR,
        anchor_tokens=7,
        digest=payload(name),
        size_bytes=100,
        tokens=tokens,
    )


def roster(*tokens: int, term: int = 0, leader: PeerId = ALICE) -> Roster:
    line = {peer: offer(peer, n) for peer, n in zip(PEERS, tokens, strict=False)}
    return roster_of(line, leader=leader, term=term, most_claimed=800)


def known(roster: Roster) -> KnownRoster:
    return KnownRoster(roster, sign_roster(roster, RUN, SIGNERS[roster.leader]))


def test_the_leader_is_the_same_for_all_and_changes_with_everything_that_it_depends_on() -> None:
    def leaders(run: RunId, fragment: int, term: int) -> list[PeerId]:
        return [leader_of(PEERS, run, Round(n), fragment, term) for n in range(30)]

    usual = leaders(RUN, 0, 0)
    assert usual == [leader_of(PEERS[::-1], RUN, Round(n), 0, 0) for n in range(30)]
    assert len(set(usual)) > 12  # of 24; any peer may
    others = [leaders(RunId(ANCHOR), 0, 0), leaders(RUN, 1, 0), leaders(RUN, 0, 1)]
    assert all(sum(a == b for a, b in zip(usual, other, strict=True)) < 6 for other in others)


def test_weights_follow_tokens_within_an_eighth_and_one_in_the_order_of_the_roster() -> None:
    averaged = shares(roster(800, 50, 400), (), 800)
    assert averaged == (
        Share(payload(ALICE), Round(4), 800 / 1300),
        Share(payload(BOB), Round(4), 100 / 1300),
        Share(payload(CAROL), Round(4), 400 / 1300),
    )


def test_who_is_refused_is_left_out_and_the_others_are_weighted_anew() -> None:
    averaged = shares(roster(800, 800, 400), {payload(BOB)}, 800)
    assert [(s.digest, s.weight) for s in averaged] == [
        (payload(ALICE), 800 / 1200),
        (payload(CAROL), 400 / 1200),
    ]


def test_claims_of_tokens_count_up_to_those_of_a_whole_round() -> None:
    assert roster(10**9).entries == (Entry(ALICE, payload(ALICE), 100, 800),)


def test_of_two_rosters_that_with_more_tokens_wins_then_the_lower_digest() -> None:
    more, less = known(roster(800, 800)), known(roster(800, 799))
    assert (more.beats(less), less.beats(more)) == (True, False)
    low, high = sorted((known(roster(8, term=n)) for n in range(2)), key=lambda k: k.digest)
    assert (low.beats(high), high.beats(low), low.beats(low)) == (True, False, False)


def test_rosters_of_the_same_payloads_are_as_good_whoever_signed_them() -> None:
    one = known(roster(800, 800))
    assert one.is_as_good_as(known(roster(800, 800, term=3, leader=BOB)))
    assert not one.is_as_good_as(known(roster(800, 799)))
    assert not one.is_as_good_as(known(replace(one.roster, anchor=payload("other"))))


def test_a_roster_has_room_for_sixteen_first_those_of_the_last_rosters_then_by_id() -> None:
    offers = {peer: offer(peer) for peer in PEERS[:20]}
    assert list(first_in_line(offers, ())) == PEERS[:16]
    assert list(first_in_line(offers, set(PEERS[4:20]))) == PEERS[4:20]
    assert list(first_in_line(offers, {PEERS[19]})) == [*PEERS[:15], PEERS[19]]


def test_a_copy_of_another_payload_is_not_averaged() -> None:
    offers = {ALICE: offer("a"), BOB: offer("a"), CAROL: offer("c")}
    assert list(first_in_line(offers, ())) == [ALICE, CAROL]
    assert list(first_in_line(offers, {BOB})) == [BOB, CAROL]  # the newcomer is the copyist


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"round": 9, "fragment": 0}, "a roster of round 9, the run has 9"),
        ({"fragment": 0}, "a roster of fragment 0 in round 4"),
        ({"entries": (Entry(BOB, ANCHOR, 100, 801),)}, "a roster that counts more than 800 tokens"),
        (
            {"entries": (Entry(BOB, ANCHOR, 101, 800),)},
            "a roster of payloads of 101 bytes, not 100",
        ),
    ],
)
def test_a_roster_that_no_honest_leader_signs(
    changes: dict[str, object], fault: str | None
) -> None:
    changed = replace(roster(800), **changes)  # type: ignore[arg-type]
    found = fault_of_roster(changed, rounds=9, fragments=3, most_claimed=800, own=offer("mine"))
    assert (found and found[: len(fault or "")]) == fault


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (offer("b"), None),
        (replace(offer("b"), tokens=10**9), None),  # is clipped
        (
            replace(offer("b"), round=Round(9), fragment=0),
            "a contribution to round 9, the run has 9",
        ),
        (replace(offer("b"), fragment=2), "a contribution of fragment 2 in round 4"),
        (replace(offer("b"), size_bytes=99), "a payload of 99 bytes, not 100"),
        (offer("mine"), "our own payload offered as its own"),
        (Later(round=Round(9), anchor=ANCHOR, anchor_tokens=0, is_coming=False), None),
        (
            Later(round=Round(10), anchor=ANCHOR, anchor_tokens=0, is_coming=False),
            "at round 10, the run has 9",
        ),
    ],
)
def test_a_statement_that_no_honest_member_makes(
    said: Contribution | Later, fault: str | None
) -> None:
    assert fault_of_statement(said, rounds=9, fragments=3, own=offer("mine")) == fault


def test_a_roster_opens_in_its_run_only_as_its_leader_signed_it() -> None:
    signed = sign_roster(roster(800, 400), RUN, SIGNERS[ALICE])
    assert signed.open(RUN) == roster(800, 400)
    with pytest.raises(Malformed, match="not signed"):
        signed.open(RunId(ANCHOR))
    with pytest.raises(Malformed, match="not signed"):
        sign_roster(roster(800, 400), RUN, SIGNERS[BOB]).open(RUN)
    with pytest.raises(Malformed, match="not signed"):
        SignedRoster(codec.encode(roster(800, 401)), signed.signature).open(RUN)


def test_the_largest_roster_fits_into_a_message() -> None:
    largest = Roster(
        round=Round(MAX_ROUND),
        fragment=MAX_FRAGMENT,
        term=MAX_TERM,
        leader=ALICE,
        anchor=ANCHOR,
        entries=tuple(
            Entry(peer, ANCHOR, MAX_PAYLOAD_BYTES, MAX_TOKENS) for peer in PEERS[:MAX_GROUP]
        ),
    )
    signed = sign_roster(largest, RUN, SIGNERS[ALICE])
    assert len(signed.body) <= MAX_ROSTER_BYTES
    assert len(codec.encode(signed)) <= MAX_MESSAGE_BYTES


@pytest.mark.parametrize(
    "entries",
    [
        (),
        (Entry(BOB, ANCHOR, 1, 1), Entry(ALICE, ANCHOR, 1, 1)),
        (Entry(ALICE, ANCHOR, 1, 1), Entry(ALICE, ANCHOR, 1, 1)),
        tuple(Entry(peer, ANCHOR, 1, 1) for peer in PEERS[: MAX_GROUP + 1]),
    ],
)
def test_a_roster_names_one_to_sixteen_peers_in_order_each_once(
    entries: tuple[Entry, ...],
) -> None:
    with pytest.raises(ValueError, match="entries"):
        replace(roster(800), entries=entries)


DIGESTS = st.binary(min_size=32, max_size=32).map(Digest)
STATEMENTS = st.builds(
    Contribution,
    round=st.integers(0, MAX_ROUND).map(Round),
    fragment=st.integers(0, MAX_FRAGMENT),
    anchor=DIGESTS,
    anchor_tokens=st.integers(0, MAX_TOKENS),
    digest=DIGESTS,
    size_bytes=st.integers(1, MAX_PAYLOAD_BYTES),
    tokens=st.integers(1, MAX_TOKENS),
) | st.builds(
    Later,
    round=st.integers(0, MAX_ROUND).map(Round),
    anchor=DIGESTS,
    anchor_tokens=st.integers(0, MAX_TOKENS),
    is_coming=st.booleans(),
)


@given(STATEMENTS)
def test_statements_travel_unchanged(said: Contribution | Later) -> None:
    decoded: object = codec.decode(
        Message,  # type: ignore[arg-type]
        codec.encode(said),
        max_bytes=MAX_MESSAGE_BYTES,
    )
    assert decoded == said


@given(
    st.dictionaries(
        st.sampled_from(PEERS),
        st.tuples(DIGESTS, st.integers(1, MAX_PAYLOAD_BYTES), st.integers(1, MAX_TOKENS)),
    ),
    st.integers(0, MAX_TERM),
)
def test_rosters_travel_unchanged(
    entries: dict[PeerId, tuple[Digest, int, int]], term: int
) -> None:
    if not 1 <= len(entries) <= MAX_GROUP:
        return
    made = replace(
        roster(800),
        term=term,
        entries=tuple(Entry(peer, *rest) for peer, rest in sorted(entries.items())),
    )
    assert codec.decode(Roster, codec.encode(made), max_bytes=MAX_ROSTER_BYTES) == made


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=16))
def test_weights_are_a_mean_within_bounds(tokens: list[int]) -> None:
    weights = [share.weight for share in shares(roster(*tokens), (), 800)]
    assert sum(weights) == pytest.approx(1)
    assert max(weights) <= 8.001 * min(weights)
