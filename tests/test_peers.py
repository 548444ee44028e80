"""What a member believes of the others: who is there, who may still come, whom to follow."""

from __future__ import annotations

from dataclasses import replace

import pytest
from group_pump import PEERS

from protocol.ids import Digest, PeerId, Round, digest_of
from protocol.rosters import Contribution, Later
from trainers.peers import MAX_OFFERS, MAX_PEERS, QUIET_REPEATS, UNREACHABLE_AFTER, Peers
from trainers.roster import Where

ALICE, BOB, CAROL, DAVE, *_ = PEERS


def anchor(name: str) -> Digest:
    return digest_of(name.encode())


HERE = (Round(5), anchor("here"))
PAST = {(Round(4), anchor("past"))}


def later(round: int, name: str, tokens: int = 10, *, is_coming: bool = False) -> Later:
    return Later(round=Round(round), anchor=anchor(name), anchor_tokens=tokens, is_coming=is_coming)


def offer(name: str = "payload", round: int = 5, at: str = "here") -> Contribution:
    return Contribution(
        round=Round(round),
        fragment=0,
        anchor=anchor(at),
        anchor_tokens=10,
        digest=digest_of(name.encode()),
        size_bytes=100,
        tokens=8,
    )


def peers(*present: PeerId) -> Peers:
    """The others, as a peer sees them whose round begins at HERE."""
    known = Peers()
    known.members(present)
    known.begin(HERE)
    return known


def test_may_come_who_said_nothing_or_was_in_the_past_when_the_round_began() -> None:
    known = Peers()
    known.members((ALICE, BOB, CAROL))
    known.heard(BOB, offer(round=4, at="past"), (Round(4), anchor("past")))
    known.heard(CAROL, later(4, "elsewhere"), (Round(4), anchor("past")))
    known.begin(HERE)
    assert known.awaited(PAST, has_time=False) == [ALICE, BOB]


def test_who_says_that_it_is_behind_gets_some_time_to_come() -> None:
    known = peers(ALICE)
    for said in (later(4, "past", is_coming=True), offer(round=4, at="past")):
        known.heard(ALICE, said, HERE)
        assert known.awaited(PAST, has_time=True) == [ALICE]
        assert known.awaited(PAST, has_time=False) == []


@pytest.mark.parametrize("said", [offer(), later(5, "here"), later(7, "ahead"), later(4, "past")])
def test_nobody_waits_for_who_has_said(said: Contribution | Later) -> None:
    known = peers(ALICE)
    known.heard(ALICE, said, HERE)
    assert known.awaited(PAST, has_time=True) == []


def test_nobody_waits_for_who_cannot_be_reached_until_it_is_heard() -> None:
    known = peers(ALICE)
    for _ in range(UNREACHABLE_AFTER):
        assert known.awaited(PAST, has_time=True) == [ALICE]
        known.unreachable(ALICE)
    assert known.awaited(PAST, has_time=True) == []
    known.heard(ALICE, later(4, "past", is_coming=True), HERE)
    assert known.awaited(PAST, has_time=True) == [ALICE]


def test_who_leaves_the_view_is_there_for_two_repeats_or_until_a_message_fails() -> None:
    known = peers(ALICE, BOB)
    known.members(())
    assert known.there == [ALICE, BOB]
    known.unreachable(BOB)
    assert known.there == [ALICE]
    for _ in range(QUIET_REPEATS):
        assert known.there == [ALICE]
        known.repeat()
    known.repeat()
    assert (known.there, known.everyone) == ([], [ALICE, BOB])
    known.heard(BOB, later(5, "here"), HERE)
    assert known.there == [BOB]


def test_a_contribution_stands_when_its_maker_has_gone_on() -> None:
    known = peers(ALICE)
    known.heard(ALICE, offer(), HERE)
    known.heard(ALICE, offer("next", round=6, at="next"), HERE)
    assert known.offers == {ALICE: offer()}
    known.begin((Round(6), anchor("next")))
    assert known.offers == {ALICE: offer("next", round=6, at="next")}


def test_a_late_copy_of_an_older_statement_changes_nothing() -> None:
    known = peers(ALICE)
    known.heard(ALICE, later(5, "here"), HERE)
    known.heard(ALICE, offer(round=4, at="past"), HERE)
    assert known.awaited(PAST, has_time=True) == []


def test_few_payloads_of_one_peer_are_looked_at_in_a_round() -> None:
    known = peers(ALICE)
    for n in range(MAX_OFFERS + 5):
        known.heard(ALICE, offer(f"{n}"), HERE)
    assert known.offers == {ALICE: offer(f"{MAX_OFFERS - 1}")}


def test_peers_are_bounded_and_who_is_gone_makes_room() -> None:
    crowd = [PeerId(f"{n:03}") for n in range(MAX_PEERS)]
    known = peers(*crowd)
    known.heard(ALICE, offer(), HERE)
    assert known.everyone == crowd
    known.members(crowd[1:])
    known.unreachable(crowd[0])
    known.heard(ALICE, offer(), HERE)
    assert known.everyone == [*crowd[1:], ALICE]


def test_everybody_who_contributes_is_answered_once() -> None:
    known = peers(ALICE, BOB)
    known.heard(ALICE, offer(), HERE)
    known.heard(BOB, later(5, "here"), HERE)
    assert known.take_asked() == [(ALICE, HERE)]
    assert known.take_asked() == []
    known.heard(ALICE, offer(), HERE)
    assert known.take_asked() == [(ALICE, HERE)]


def follows(*said: Later, me: PeerId = DAVE, silent: bool = False) -> PeerId | None:
    """Whom a peer at HERE follows when ALICE, BOB, ... said this."""
    known = peers(*PEERS[: len(said) + silent])
    for peer, statement in zip(PEERS, said, strict=False):
        known.heard(peer, statement, HERE)
    return known.to_follow(me, Where(HERE[0], 10, HERE[1]), PAST, ())


SAME, BEHIND, AHEAD, FAR_BEHIND = later(5, "here"), later(4, "past"), later(8, "a"), later(2, "b")
EVEN, NEXT, MORE, LESS = (
    later(5, "even", 12),
    later(7, "next", 12),
    later(5, "more", 16),
    later(5, "less", 7),
)
FIRST, LAST = PeerId("0"), PeerId("z")
"""Ids below and above all others."""


@pytest.mark.parametrize(
    ("said", "me", "whom"),
    [
        ((), LAST, None),
        ((SAME, BEHIND), LAST, None),
        # The only other member, or one of two: its word is not enough if somebody is with us.
        ((AHEAD,), FIRST, ALICE),
        ((AHEAD, SAME), LAST, None),
        ((AHEAD, BEHIND), LAST, None),
        # Two that agree, if their history is further, has more tokens, or the lowest id.
        ((AHEAD, AHEAD, SAME), FIRST, ALICE),
        ((FAR_BEHIND, FAR_BEHIND, SAME), LAST, None),
        ((MORE, MORE, SAME), FIRST, ALICE),
        ((LESS, LESS, SAME), LAST, None),
        ((EVEN, EVEN, SAME), LAST, ALICE),
        ((EVEN, EVEN, SAME), FIRST, None),
        ((SAME, EVEN, EVEN), LAST, None),
        ((NEXT, NEXT, SAME), FIRST, None),  # two rounds are no lead
        ((NEXT, NEXT, SAME), LAST, ALICE),
        ((AHEAD, EVEN, SAME), LAST, None),  # those do not agree
        # Alone on ours: two that agree in any case, else by the same order.
        ((LESS, LESS), FIRST, ALICE),
        ((FAR_BEHIND, FAR_BEHIND, AHEAD), FIRST, ALICE),
        ((LESS, later(5, "other", 7)), LAST, None),
        ((LESS,), LAST, None),
        ((EVEN,), LAST, ALICE),
        ((EVEN,), FIRST, None),
        ((MORE, LESS), FIRST, ALICE),
    ],
)
def test_whom_to_follow(said: tuple[Later, ...], me: PeerId, whom: PeerId | None) -> None:
    assert follows(*said, me=me) == whom


def test_one_alone_is_not_followed_while_another_is_silent() -> None:
    assert follows(AHEAD, silent=True) is None
    assert follows(AHEAD, AHEAD, silent=True) == ALICE


def test_whose_weights_could_not_be_had_is_not_followed() -> None:
    known = peers(ALICE, BOB)
    known.heard(ALICE, AHEAD, HERE)
    known.heard(BOB, AHEAD, HERE)
    here = Where(HERE[0], 10, HERE[1])
    assert known.to_follow(CAROL, here, PAST, {ALICE}) == BOB
    assert known.to_follow(CAROL, here, PAST, {ALICE, BOB}) is None


def test_who_is_further_may_lead_on_unless_it_has_answered_later() -> None:
    known = peers(ALICE, BOB, CAROL)
    known.heard(ALICE, offer(round=6, at="next"), HERE)
    known.heard(BOB, later(6, "next"), HERE)
    known.heard(CAROL, later(9, "end"), HERE)  # finished, and says so to all
    assert known.may_lead_on(HERE[0], 9) == [ALICE, CAROL]


def test_after_a_restart_the_tokens_that_led_here_are_those_that_others_say() -> None:
    known = peers(ALICE, BOB)
    known.heard(ALICE, replace(SAME, anchor_tokens=77), HERE)
    known.heard(BOB, replace(AHEAD, anchor_tokens=99), HERE)
    assert known.tokens_to(HERE) == 77
    assert known.tokens_to((Round(6), anchor("unknown"))) == 0
