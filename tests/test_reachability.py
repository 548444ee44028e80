"""The machine that finds out whether a node can be reached, by hand."""

from __future__ import annotations

from node.reachability import (
    ANSWER_S,
    ASK_AGAIN_S,
    AVOID_S,
    VERDICT_S,
    Announce,
    AskDialBack,
    Claims,
    Direct,
    Effect,
    NotReserved,
    Reachability,
    Reserve,
    Reserved,
    Seen,
    Tick,
    Unseen,
)
from protocol.envelope import Signer
from protocol.ids import PeerId

ALICE, BOB, CAROL, DAVE = (Signer(bytes([n]) * 32).peer for n in range(1, 5))
CLAIM = "/ip4/11.22.33.44/tcp/4001"
OTHER = "/ip6/2a0f:ff00::1/tcp/4001"


def through(relay: PeerId) -> str:
    return f"/ip4/11.22.33.10/tcp/4001/p2p/{relay}/p2p-circuit/p2p/{ALICE}"


def machine(*peers: PeerId, claims: tuple[str, ...] = (CLAIM,)) -> Reachability:
    """Alice's, who is connected to these; what she asked for first is ignored."""
    alice = Reachability(ALICE)
    alice.handle(Claims(claims), 0.0)
    alice.handle(Direct(peers), 0.0)
    return alice


def asked(effects: list[Effect]) -> list[PeerId]:
    return [effect.helper for effect in effects if isinstance(effect, AskDialBack)]


def reserves(effects: list[Effect]) -> list[PeerId]:
    return sorted(effect.relay for effect in effects if isinstance(effect, Reserve))


def announced(effects: list[Effect]) -> list[Announce]:
    return [effect for effect in effects if isinstance(effect, Announce)]


def test_a_claim_holds_when_two_peers_have_dialled_it() -> None:
    alice = machine(BOB)
    assert announced(alice.handle(Seen(CAROL, CLAIM), 1.0)) == []
    assert announced(alice.handle(Seen(CAROL, CLAIM), 2.0)) == []
    assert announced(alice.handle(Seen(DAVE, CLAIM), 3.0)) == [Announce("public", (CLAIM,))]


def test_a_claim_falls_when_two_others_could_not_dial_it() -> None:
    alice = machine(BOB)
    assert announced(alice.handle(Unseen(BOB, CLAIM, 1), 1.0)) == []
    assert announced(alice.handle(Unseen(CAROL, CLAIM, 1), 2.0)) == [Announce("private", ())]


def test_one_who_got_through_does_not_hold_against_two_who_did_not() -> None:
    alice = machine(BOB)
    alice.handle(Seen(CAROL, CLAIM), 1.0)
    assert announced(alice.handle(Unseen(BOB, CLAIM, 2), 1.0)) == [Announce("private", ())]
    assert announced(alice.handle(Seen(DAVE, CLAIM), 2.0)) == [Announce("public", (CLAIM,))]


def test_each_claim_is_judged_by_itself() -> None:
    alice = machine(BOB, claims=(CLAIM, OTHER))
    alice.handle(Seen(CAROL, CLAIM), 1.0)
    assert announced(alice.handle(Seen(DAVE, OTHER), 1.0)) == []
    assert announced(alice.handle(Seen(CAROL, OTHER), 1.0)) == [Announce("public", (OTHER,))]


def test_an_address_that_is_no_claim_of_ours_gets_no_vote() -> None:
    alice = machine(BOB)
    alice.handle(Seen(CAROL, OTHER), 1.0)
    alice.handle(Seen(DAVE, OTHER), 1.0)
    assert announced(alice.handle(Claims((OTHER,)), 2.0)) == []


def test_votes_are_forgotten_and_asked_for_anew() -> None:
    alice = machine(BOB)
    alice.handle(Seen(CAROL, CLAIM), 1.0)
    alice.handle(Seen(DAVE, CLAIM), 1.0)
    effects = alice.handle(Tick(), 1.0 + VERDICT_S)
    assert (announced(effects), asked(effects)) == ([Announce("unknown", ())], [BOB])


def test_helpers_are_asked_one_after_the_other_and_each_seldom() -> None:
    alice = Reachability(ALICE)
    alice.handle(Claims((CLAIM,)), 0.0)
    first, second = sorted((BOB, CAROL))
    assert asked(alice.handle(Direct((BOB, CAROL)), 0.0)) == [first]
    assert asked(alice.handle(Tick(), 1.0)) == []
    assert asked(alice.handle(Unseen(first, CLAIM, 0), 2.0)) == [second]
    assert asked(alice.handle(Tick(), 2.0 + ANSWER_S)) == []  # nobody is left to ask
    assert asked(alice.handle(Tick(), ASK_AGAIN_S)) == [first]


def test_two_relays_are_asked_while_no_claim_holds_and_their_addresses_announced() -> None:
    alice = Reachability(ALICE)
    alice.handle(Claims((CLAIM,)), 0.0)
    relays = reserves(alice.handle(Direct((BOB, CAROL, DAVE)), 0.0))
    assert len(relays) == 2
    alice.handle(Reserved(relays[0], 600.0, (through(relays[0]),)), 1.0)
    effects = alice.handle(Reserved(relays[1], 600.0, (through(relays[1]),)), 1.0)
    both = tuple(through(relay) for relay in relays)
    assert (announced(effects), alice.relays) == ([Announce("unknown", both)], tuple(relays))


def test_who_is_seen_at_no_address_of_the_open_internet_needs_no_relay() -> None:
    alice = machine(BOB, CAROL, claims=())
    assert alice.handle(Tick(), 1.0) == []


def test_who_can_be_reached_gives_its_relays_up() -> None:
    alice = machine(BOB)
    alice.handle(Reserved(BOB, 600.0, (through(BOB),)), 1.0)
    alice.handle(Seen(CAROL, CLAIM), 2.0)
    effects = alice.handle(Seen(DAVE, CLAIM), 2.0)
    assert (announced(effects), alice.relays) == ([Announce("public", (CLAIM,))], ())


def test_a_relay_that_is_gone_is_replaced_at_once() -> None:
    alice = machine(BOB, CAROL)
    alice.handle(Reserved(BOB, 600.0, (through(BOB),)), 1.0)
    alice.handle(Reserved(CAROL, 600.0, (through(CAROL),)), 1.0)
    effects = alice.handle(Direct((CAROL, DAVE)), 2.0)
    assert reserves(effects) == [DAVE]
    assert announced(effects) == [Announce("unknown", (through(CAROL),))]


def test_a_reservation_is_renewed_in_half_of_its_time_and_given_up_at_its_end() -> None:
    alice = machine(BOB)
    alice.handle(Reserved(BOB, 600.0, (through(BOB),)), 0.0)
    assert reserves(alice.handle(Tick(), 299.0)) == []
    assert reserves(alice.handle(Tick(), 300.0)) == [BOB]
    assert reserves(alice.handle(Tick(), 301.0)) == []
    effects = alice.handle(Tick(), 600.0)
    assert (announced(effects), reserves(effects)) == ([Announce("unknown", ())], [BOB])


def test_a_relay_that_refuses_is_left_alone_longer_each_time() -> None:
    alice = machine(BOB)
    now = 0.0
    for pause_s in (AVOID_S, 2 * AVOID_S, 4 * AVOID_S):
        assert reserves(alice.handle(NotReserved(BOB), now)) == []
        assert reserves(alice.handle(Tick(), now + pause_s - 0.1)) == []
        now += pause_s
        assert reserves(alice.handle(Tick(), now)) == [BOB]


def test_relays_that_refused_and_left_are_forgotten_once_they_might_be_asked_again() -> None:
    """Else a node that lives for weeks among peers that come and go remembers them all."""
    alice = machine(BOB)
    for n in range(10, 20):
        passing = Signer(bytes([n]) * 32).peer
        alice.handle(Direct((BOB, passing)), 0.0)
        alice.handle(NotReserved(passing), 0.0)
    alice.handle(NotReserved(BOB), 0.0)
    alice.handle(Direct((BOB,)), 1.0)
    alice.handle(Tick(), AVOID_S - 0.1)
    assert len(alice._avoided) == 11
    alice.handle(Tick(), AVOID_S)
    assert list(alice._avoided) == [BOB]  # how often it refused still counts


def test_a_reservation_that_comes_after_its_relay_has_gone_is_none() -> None:
    alice = machine(BOB)
    alice.handle(Direct(()), 1.0)
    assert announced(alice.handle(Reserved(BOB, 600.0, (through(BOB),)), 2.0)) == []
