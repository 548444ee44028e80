"""NoLoCo by hand: tell it one thing, look at what it asks for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.algorithms import NolocoConfig
from protocol.envelope import Signer
from protocol.ids import Digest, PeerId, Round, RunId, digest_of
from protocol.messages import (
    Abort,
    Accept,
    Commit,
    Decision,
    Exchange,
    Have,
    Propose,
    Refuse,
)
from trainers.effects import (
    ApplyOuter,
    Blame,
    CatchUp,
    Closed,
    CloseInner,
    Effect,
    Fetch,
    Finished,
    Publish,
    Release,
    RunInner,
    Send,
    SetTimer,
    Share,
    Snapshot,
    Wait,
)
from trainers.events import (
    CatchUpFailed,
    DecisionsSeen,
    Fetched,
    FetchFailed,
    InnerDone,
    InnerFailed,
    LeftBehind,
    MembersChanged,
    OuterDone,
    OuterRefused,
    Received,
    Resumed,
    SendFailed,
    SnapshotDone,
    TimerFired,
)
from trainers.noloco import Noloco
from trainers.pairs import edge_key, fragment_in_turn
from trainers.reanchor import source
from trainers.timers import (
    AskAgain,
    DoubtDeadline,
    ExchangeDeadline,
    ProposalDeadline,
    SearchDeadline,
)

RUN = RunId(digest_of(b"run"))
ALICE, BOB, CAROL, DAVE = sorted(Signer(bytes([n]) * 32).peer for n in range(4))
CONFIG = NolocoConfig(inner_steps=8, proposal_deadline_s=5.0, exchange_deadline_s=20.0)
TOKENS = 800
CLAIMED = 1600
"""Most tokens that weigh, and most that may be claimed."""
WEIGHTS = digest_of(b"weights")


def payload(name: str) -> Digest:
    return digest_of(name.encode())


def machine(me: PeerId = ALICE, *members: PeerId, rounds: int = 9) -> Noloco:
    """A peer in round 0, training since 0.0."""
    trainer = Noloco(
        me, CONFIG, run=RUN, rounds=rounds, fragments=1, max_tokens=TOKENS, most_claimed=CLAIMED
    )
    trainer.handle(MembersChanged(tuple(sorted(members))), 0.0)
    assert trainer.handle(Resumed(Round(0), WEIGHTS), 0.0) == [RunInner(Round(0), 8)]
    return trainer


def searching(me: PeerId = ALICE, *members: PeerId, rounds: int = 9) -> Noloco:
    """A peer that offers payload "a" since 8.0 and has told what it asked for then."""
    trainer = machine(me, *members, rounds=rounds)
    assert trainer.handle(InnerDone(8, 400), 8.0) == [Snapshot(Round(0), 0)]
    trainer.handle(SnapshotDone(Round(0), 0, payload("a"), 100), 8.0)
    return trainer


def propose(name: str = "a", round: int = 0, size: int = 100, tokens: int = 400) -> Propose:
    return Propose(Round(round), 0, payload(name), size, tokens, 5.0)


def accept(name: str = "b", round: int = 0, size: int = 100, tokens: int = 400) -> Accept:
    return Accept(payload("a"), Round(round), payload(name), size, tokens)


def exchange(proposer: PeerId, partner: PeerId, names: str, theirs: int = 0) -> Exchange:
    return Exchange(
        fragment=0,
        proposer=proposer,
        partner=partner,
        proposer_round=Round(0),
        partner_round=Round(theirs),
        proposer_digest=payload(names[0]),
        partner_digest=payload(names[1]),
        proposer_tokens=400,
        partner_tokens=400,
    )


def alone(round: int = 1, fragment: int = 0) -> ApplyOuter:
    return ApplyOuter(Round(round), fragment, payload("a"), ())


def averaged(exchange: Exchange, weight: float = 0.5) -> ApplyOuter:
    """Alice's outer step; the weight is the proposer's."""
    shares = (
        Share(exchange.proposer_digest, exchange.proposer_round, weight),
        Share(exchange.partner_digest, exchange.partner_round, 1 - weight),
    )
    return ApplyOuter(Round(exchange.round + 1), exchange.fragment, payload("a"), shares)


def but_waits(effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if not isinstance(effect, Wait)]


def proposer() -> Noloco:
    """Alice, whose proposal Bob accepted at 9.0."""
    alice = searching(ALICE, BOB)
    alice.handle(Received(BOB, accept()), 9.0)
    return alice


def partner() -> Noloco:
    """Alice, who accepted Bob's proposal of "b" at 8.0 and holds its payload at 9.0."""
    alice = machine(ALICE, BOB)
    alice.handle(InnerDone(8, 400), 8.0)
    alice.handle(Received(BOB, propose("b")), 8.0)
    alice.handle(SnapshotDone(Round(0), 0, payload("a"), 100), 8.0)
    alice.handle(Fetched(payload("b")), 9.0)
    return alice


BOTH = exchange(ALICE, BOB, "ab")
"""Alice proposed."""
THEIRS = exchange(BOB, ALICE, "ba")
"""Bob proposed."""


def test_trains_on_while_it_looks_for_a_partner() -> None:
    alice = machine(ALICE, BOB)
    assert alice.handle(InnerDone(8, 400), 8.0) == [Snapshot(Round(0), 0)]
    assert alice.handle(SnapshotDone(Round(0), 0, payload("a"), 100), 8.0) == [
        RunInner(Round(1), 8),
        SetTimer(28.0, SearchDeadline(payload("a"))),
        Wait("a partner", None, 28.0),
        Send(BOB, propose()),
        SetTimer(13.0, ProposalDeadline(payload("a"), BOB)),
        Wait("an answer to a proposal", BOB, 13.0),
    ]


def test_proposes_to_the_candidate_with_the_lowest_edge_key_then_to_the_next() -> None:
    others = sorted((BOB, CAROL, DAVE), key=lambda p: edge_key(RUN, Round(0), 0, ALICE, p))
    alice = machine(ALICE, BOB, CAROL, DAVE)
    alice.handle(InnerDone(8, 400), 8.0)
    effects = alice.handle(SnapshotDone(Round(0), 0, payload("a"), 100), 8.0)
    assert [e.to for e in effects if isinstance(e, Send)] == [others[0]]
    effects = alice.handle(Received(others[0], Refuse(payload("a"), "taken", 0.0)), 9.0)
    assert [e.to for e in effects if isinstance(e, Send)] == [others[1]]
    effects = alice.handle(TimerFired(ProposalDeadline(payload("a"), others[1])), 14.0)
    assert [e.to for e in effects if isinstance(e, Send)] == [others[2]]
    effects = alice.handle(SendFailed(others[2], propose()), 15.0)
    assert effects == [Wait("a partner", None, 28.0)]


def test_edge_keys_are_symmetric_and_change_with_the_round() -> None:
    assert edge_key(RUN, Round(3), 0, ALICE, BOB) == edge_key(RUN, Round(3), 0, BOB, ALICE)
    assert edge_key(RUN, Round(3), 0, ALICE, BOB) != edge_key(RUN, Round(4), 0, ALICE, BOB)


def test_the_proposer_applies_with_payload_and_receipt_then_commits() -> None:
    alice = searching(ALICE, BOB)
    assert but_waits(alice.handle(Received(BOB, accept()), 9.0)) == [
        Fetch(payload("b"), 100, BOB),
        SetTimer(29.0, ExchangeDeadline(payload("a"))),
    ]
    assert alice.handle(Fetched(payload("b")), 10.0) == []
    assert alice.handle(Received(BOB, Have(BOTH)), 10.0) == [averaged(BOTH)]
    assert alice.handle(OuterDone(Round(1), WEIGHTS), 10.5) == [
        Send(BOB, Commit(BOTH)),
        Release(payload("b")),
        Publish((Decision(payload("a"), payload("b")),)),
        Release(payload("a")),
        Closed(Round(0), 400, BOTH, False, ""),
    ]
    assert alice.round == 1


def test_receipt_before_payload_is_as_good() -> None:
    alice = proposer()
    assert alice.handle(Received(BOB, Have(BOTH)), 10.0) == []
    assert alice.handle(Fetched(payload("b")), 10.0) == [averaged(BOTH)]


def test_the_partner_promises_and_applies_only_on_commit() -> None:
    alice = machine(ALICE, BOB)
    alice.handle(InnerDone(8, 400), 4.0)
    assert alice.handle(Received(BOB, propose("b")), 4.0) == []  # kept until the snapshot
    effects = alice.handle(SnapshotDone(Round(0), 0, payload("a"), 100), 4.0)
    assert Send(BOB, Accept(payload("b"), Round(0), payload("a"), 100, 400)) in effects
    assert but_waits(alice.handle(Fetched(payload("b")), 5.0)) == [
        Send(BOB, Have(THEIRS)),
        SetTimer(10.0, AskAgain(payload("b"))),
    ]
    assert alice.handle(Received(BOB, Commit(THEIRS)), 6.0) == [averaged(THEIRS)]
    assert alice.handle(OuterDone(Round(1), WEIGHTS), 6.5) == [
        Release(payload("b")),
        Publish((Decision(payload("a"), None),)),
        Release(payload("a")),
        Closed(Round(0), 400, THEIRS, False, ""),
    ]


def test_crossing_proposals_pair_and_the_lower_id_decides() -> None:
    alice, bob = searching(ALICE, BOB), searching(BOB, ALICE)
    assert alice.handle(Received(BOB, propose("b")), 9.0) == []
    effects = bob.handle(Received(ALICE, propose("c")), 9.0)
    assert Send(ALICE, Accept(payload("c"), Round(0), payload("a"), 100, 400)) in effects


def test_an_exchange_takes_both_to_the_larger_round_plus_one() -> None:
    alice = searching(ALICE, BOB)
    alice.handle(Received(BOB, accept(round=3)), 9.0)
    alice.handle(Fetched(payload("b")), 9.0)
    ahead = exchange(ALICE, BOB, "ab", theirs=3)
    assert alice.handle(Received(BOB, Have(ahead)), 9.0) == [averaged(ahead)]
    alice.handle(OuterDone(Round(4), WEIGHTS), 9.0)
    assert alice.round == 4


def test_a_round_that_was_made_longer_or_closed_early_counts_what_was_trained() -> None:
    for tokens, counted in ((0, 0), (1200, 1200), (9999, CLAIMED)):
        alice = machine()
        alice.handle(InnerDone(8, tokens), 8.0)
        alice.handle(SnapshotDone(Round(0), 0, payload("a"), 100), 8.0)
        alice.handle(TimerFired(SearchDeadline(payload("a"))), 28.0)
        effects = alice.handle(OuterDone(Round(1), WEIGHTS), 29.0)
        assert [effect.tokens for effect in effects if isinstance(effect, Closed)] == [counted]


def test_weights_follow_tokens_within_bounds() -> None:
    alice = searching(ALICE, BOB)
    alice.handle(Received(BOB, accept(tokens=10**9)), 9.0)  # weighs as a whole round does
    alice.handle(Fetched(payload("b")), 9.0)
    claim = exchange(ALICE, BOB, "ab")
    claimed = {"partner_tokens": CLAIMED}
    receipt = Exchange(**{f: getattr(claim, f) for f in claim.__slots__} | claimed)
    effects = alice.handle(Received(BOB, Have(receipt)), 9.0)
    assert effects == [averaged(receipt, 400 / 1200)]


def test_alone_when_nobody_answers_by_the_next_snapshot() -> None:
    alice = searching(ALICE, BOB)
    assert alice.handle(InnerDone(8, 400), 12.0) == [alone()]
    assert alice.handle(OuterDone(Round(1), WEIGHTS), 12.5) == [
        Publish((Decision(payload("a"), None),)),
        Release(payload("a")),
        Closed(Round(0), 400, None, False, "not closed by the next snapshot"),
        Snapshot(Round(1), 0),
    ]


def test_alone_by_the_search_deadline() -> None:
    alice = searching(ALICE)
    assert alice.handle(TimerFired(SearchDeadline(payload("a"))), 28.0) == [alone()]


def test_a_late_acceptance_is_answered_with_abort() -> None:
    alice = searching(ALICE, BOB)
    alice.handle(TimerFired(ProposalDeadline(payload("a"), BOB)), 13.0)
    assert alice.handle(Received(BOB, accept()), 14.0) == [Send(BOB, Abort(payload("a")))]


def test_the_proposer_aborts_at_the_deadline_and_again_when_asked() -> None:
    alice = proposer()
    effects = alice.handle(TimerFired(ExchangeDeadline(payload("a"))), 29.0)
    assert effects == [
        Release(payload("b")),
        Send(BOB, Abort(payload("a"))),
        alone(),
    ]
    late = alice.handle(Received(BOB, Have(BOTH)), 30.0)
    assert late == [Send(BOB, Abort(payload("a")))]


def test_a_partner_in_doubt_asks_and_believes_the_presence() -> None:
    alice = partner()
    assert alice.handle(TimerFired(AskAgain(payload("b"))), 14.0) == [
        Send(BOB, Have(THEIRS)),
        SetTimer(19.0, AskAgain(payload("b"))),
    ]
    assert but_waits(alice.handle(TimerFired(ExchangeDeadline(payload("b"))), 28.0)) == [
        SetTimer(48.0, DoubtDeadline(payload("b"))),
    ]
    seen = DecisionsSeen(BOB, (Decision(payload("b"), payload("a")),))
    assert alice.handle(seen, 30.0) == [averaged(THEIRS)]
    assert alice.handle(TimerFired(AskAgain(payload("b"))), 30.1) == []


@pytest.mark.parametrize("accepted", [payload("c"), None])
def test_a_partner_in_doubt_is_free_when_the_proposer_exchanged_with_another_or_nobody(
    accepted: Digest | None,
) -> None:
    alice = partner()
    seen = DecisionsSeen(BOB, (Decision(payload("b"), accepted),))
    assert but_waits(alice.handle(seen, 10.0)) == [Release(payload("b"))]
    assert alice.handle(Received(BOB, Commit(THEIRS)), 11.0) == []


def test_a_partner_in_doubt_goes_alone_at_twice_the_deadline_and_counts_it() -> None:
    alice = partner()
    alice.handle(TimerFired(ExchangeDeadline(payload("b"))), 28.0)
    assert alice.handle(InnerDone(8, 400), 40.0) == []  # the next snapshot waits
    assert alice.handle(TimerFired(DoubtDeadline(payload("b"))), 48.0) == [
        Release(payload("b")),
        alone(),
    ]
    effects = alice.handle(OuterDone(Round(1), WEIGHTS), 48.5)
    reason = "the proposer's decision never came"
    assert Closed(Round(0), 400, None, True, reason) in effects


def test_a_proposer_that_is_asked_again_repeats_its_commit() -> None:
    alice = proposer()
    alice.handle(Fetched(payload("b")), 10.0)
    alice.handle(Received(BOB, Have(BOTH)), 10.0)
    alice.handle(OuterDone(Round(1), WEIGHTS), 10.5)
    assert alice.handle(Received(BOB, Have(BOTH)), 20.0) == [Send(BOB, Commit(BOTH))]


def test_a_failed_fetch_frees_both() -> None:
    assert but_waits(proposer().handle(FetchFailed(payload("b"), "gone"), 10.0)) == [
        Release(payload("b")),
        Send(BOB, Abort(payload("a"))),
    ]
    alice = machine(ALICE, BOB)
    alice.handle(InnerDone(8, 400), 8.0)
    alice.handle(Received(BOB, propose("b")), 8.0)
    alice.handle(SnapshotDone(Round(0), 0, payload("a"), 100), 8.0)
    assert but_waits(alice.handle(FetchFailed(payload("b"), "gone"), 10.0)) == [
        Release(payload("b")),
        Send(BOB, Refuse(payload("b"), "failed", 0.0)),
    ]


def test_a_payload_that_the_worker_refuses_is_blamed_and_costs_nothing() -> None:
    alice = proposer()
    alice.handle(Fetched(payload("b")), 10.0)
    alice.handle(Received(BOB, Have(BOTH)), 10.0)
    assert alice.handle(OuterRefused(payload("b"), "not finite"), 10.5) == [
        Blame(BOB, "not finite"),
        Release(payload("b")),
        Send(BOB, Abort(payload("a"))),
        alone(),
    ]


def test_blames_a_payload_of_another_size() -> None:
    alice = searching(ALICE, BOB)
    effects = alice.handle(Received(BOB, accept(size=99)), 9.0)
    assert effects[0] == Blame(BOB, "a payload of 99 bytes, not 100")


def test_a_proposal_of_a_round_that_the_run_does_not_have_hurries_nobody_and_is_refused() -> None:
    alice = machine(ALICE, BOB)
    alice.handle(InnerDone(8, 400), 8.0)
    alice.handle(SnapshotDone(Round(0), 0, payload("a"), 100), 8.0)
    assert alice.handle(Received(BOB, propose("b", round=9)), 15.0) == [
        Blame(BOB, "a payload of round 9, the run has 9"),
        Send(BOB, Refuse(payload("b"), "failed", 0.0)),
    ]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (accept(round=9), "a payload of round 9, the run has 9"),
        (accept("a"), "our own payload offered as its own"),
    ],
)
def test_an_acceptance_with_what_no_honest_peer_has_is_blamed_and_not_fetched(
    answer: Accept, fault: str
) -> None:
    alice = searching(ALICE, BOB)
    effects = [Blame(BOB, fault), Send(BOB, Abort(payload("a")))]
    assert but_waits(alice.handle(Received(BOB, answer), 9.0)) == effects
    assert alice.handle(TimerFired(SearchDeadline(payload("a"))), 28.0) == [alone()]


@pytest.mark.parametrize(
    "receipt", [exchange(ALICE, BOB, "ab", theirs=9), exchange(ALICE, BOB, "aa")]
)
def test_a_receipt_does_not_stand_for_such_an_acceptance(receipt: Exchange) -> None:
    effects = but_waits(searching(ALICE, BOB).handle(Received(BOB, Have(receipt)), 9.0))
    assert [type(effect) for effect in effects] == [Blame, Send, Send]
    assert effects[1:] == [Send(BOB, Abort(payload("a")))] * 2


def test_a_proposal_of_our_own_payload_is_blamed_and_not_fetched() -> None:
    alice = searching(ALICE)
    assert but_waits(alice.handle(Received(BOB, propose("a")), 9.0)) == [
        Blame(BOB, "our own payload offered as its own"),
        Send(BOB, Refuse(payload("a"), "failed", 0.0)),
    ]


def test_a_receipt_for_another_payload_ends_the_exchange() -> None:
    """An honest partner whose worker died may have accepted a doubled proposal anew."""
    other = exchange(ALICE, BOB, "ac")
    assert but_waits(proposer().handle(Received(BOB, Have(other)), 10.0)) == [
        Release(payload("b")),
        Send(BOB, Abort(payload("a"))),
    ]


def test_a_receipt_stands_for_an_acceptance_that_was_lost() -> None:
    effects = searching(ALICE, BOB).handle(Received(BOB, Have(BOTH)), 10.0)
    assert effects[0] == Fetch(payload("b"), 100, BOB)


def test_a_receipt_of_a_peer_that_it_no_longer_waits_for_is_answered_with_abort() -> None:
    alice = searching(ALICE, BOB)
    alice.handle(TimerFired(ProposalDeadline(payload("a"), BOB)), 13.0)
    assert alice.handle(Received(BOB, Have(BOTH)), 14.0) == [Send(BOB, Abort(payload("a")))]
    alice.handle(TimerFired(SearchDeadline(payload("a"))), 28.0)
    alice.handle(OuterDone(Round(1), WEIGHTS), 28.5)
    assert alice.handle(Received(BOB, Have(BOTH)), 30.0) == [Send(BOB, Abort(payload("a")))]


def test_who_has_promised_keeps_to_it_whatever_became_of_its_acceptance() -> None:
    alice = partner()
    lost = Accept(payload("b"), Round(0), payload("a"), 100, 400)
    assert alice.handle(SendFailed(BOB, lost), 10.0) == []
    assert alice.handle(Received(BOB, Commit(THEIRS)), 11.0) == [averaged(THEIRS)]


def test_a_pair_that_fails_after_the_search_deadline_is_the_last() -> None:
    alice = machine(ALICE, BOB, CAROL)
    alice.handle(InnerDone(8, 400), 8.0)
    alice.handle(Received(BOB, propose("b")), 8.0)
    alice.handle(SnapshotDone(Round(0), 0, payload("a"), 100), 8.0)
    assert alice.handle(TimerFired(SearchDeadline(payload("a"))), 28.0) == []
    assert alice.handle(FetchFailed(payload("b"), "gone"), 29.0) == [
        Release(payload("b")),
        Send(BOB, Refuse(payload("b"), "failed", 0.0)),
        alone(),
    ]


def test_says_later_while_it_trains_and_asks_that_peer_first_when_it_is_ready() -> None:
    others = sorted((BOB, CAROL, DAVE), key=lambda peer: edge_key(RUN, Round(0), 0, ALICE, peer))
    alice = machine(ALICE, *others)
    effects = alice.handle(Received(others[2], propose("b")), 1.0)
    assert effects == [Send(others[2], Refuse(payload("b"), "later", 0.0))]
    alice.handle(InnerDone(8, 400), 8.0)
    effects = alice.handle(SnapshotDone(Round(0), 0, payload("a"), 100), 8.0)
    assert Send(others[2], propose("a")) in effects


def test_says_how_much_later_once_it_knows_its_speed() -> None:
    alice = machine(ALICE, BOB)
    alice.handle(InnerDone(8, 400), 80.0)  # ten seconds a step
    alice.handle(SnapshotDone(Round(0), 0, payload("a"), 100), 80.0)
    alice.handle(TimerFired(SearchDeadline(payload("a"))), 100.0)
    alice.handle(OuterDone(Round(1), WEIGHTS), 100.0)
    effects = alice.handle(Received(BOB, propose("b", round=1)), 110.0)
    assert effects == [Send(BOB, Refuse(payload("b"), "later", 50.0))]


def test_closes_its_inner_phase_early_for_a_peer_that_is_ahead() -> None:
    alice = machine(ALICE, BOB)
    alice.handle(InnerDone(8, 400), 80.0)
    alice.handle(SnapshotDone(Round(0), 0, payload("a"), 100), 80.0)
    alice.handle(TimerFired(SearchDeadline(payload("a"))), 100.0)
    alice.handle(OuterDone(Round(1), WEIGHTS), 100.0)
    assert alice.handle(Received(BOB, propose("b", round=5)), 110.0) == [CloseInner()]
    assert alice.handle(InnerDone(3, 150), 111.0) == [Snapshot(Round(1), 0)]
    effects = alice.handle(SnapshotDone(Round(1), 0, payload("c"), 100), 111.0)
    assert Send(BOB, Accept(payload("b"), Round(1), payload("c"), 100, 150)) in effects


def test_the_last_round_ends_without_more_training() -> None:
    alice = searching(ALICE, BOB, rounds=1)
    alice.handle(TimerFired(ProposalDeadline(payload("a"), BOB)), 13.0)
    alice.handle(TimerFired(SearchDeadline(payload("a"))), 28.0)
    assert alice.handle(OuterDone(Round(1), WEIGHTS), 28.5) == [
        Publish((Decision(payload("a"), None),)),
        Release(payload("a")),
        Closed(Round(0), 400, None, False, "no partner by the deadline"),
        Finished(Round(1)),
    ]
    assert alice.handle(Received(BOB, propose("b")), 29.0) == [
        Send(BOB, Refuse(payload("b"), "finished", 0.0))
    ]


def test_a_peer_that_had_finished_trains_again_if_its_snapshot_is_older() -> None:
    alice = searching(ALICE, rounds=1)
    alice.handle(TimerFired(SearchDeadline(payload("a"))), 28.0)
    alice.handle(OuterDone(Round(1), WEIGHTS), 28.5)
    assert alice.handle(Resumed(Round(0), WEIGHTS), 40.0) == [RunInner(Round(0), 8)]
    assert alice.handle(InnerDone(8, 400), 48.0) == [Snapshot(Round(0), 0)]
    assert not alice.finished


def test_the_last_round_does_not_wait_for_a_partner_when_nobody_else_trains() -> None:
    alice = searching(ALICE, BOB, rounds=1)
    alice.handle(Received(BOB, Refuse(payload("a"), "taken", 0.0)), 9.0)
    assert alice.handle(MembersChanged(()), 10.0) == [alone()]


def test_a_dead_worker_withdraws_and_training_goes_on_when_it_is_back() -> None:
    alice = proposer()
    assert alice.handle(InnerFailed("killed"), 10.0) == [
        Release(payload("b")),
        Send(BOB, Abort(payload("a"))),
        Publish((Decision(payload("a"), None),)),
        Release(payload("a")),
    ]
    assert alice.handle(Resumed(Round(0), WEIGHTS), 15.0) == [RunInner(Round(0), 8)]


def test_a_payload_that_a_new_worker_made_again_is_open_again() -> None:
    alice = proposer()
    alice.handle(InnerFailed("killed"), 10.0)
    alice.handle(Resumed(Round(0), WEIGHTS), 15.0)
    alice.handle(InnerDone(8, 400), 23.0)
    effects = alice.handle(SnapshotDone(Round(0), 0, payload("a"), 100), 23.0)
    assert effects[1] == Publish(())
    assert Send(BOB, propose("a")) in effects


def test_two_refuse_to_take_a_third() -> None:
    alice = proposer()
    assert alice.handle(Received(CAROL, propose("c")), 10.0) == [
        Send(CAROL, Refuse(payload("c"), "taken", 0.0))
    ]


def test_a_proposal_kept_while_looking_is_refused_once_paired() -> None:
    asked, other = sorted((BOB, CAROL), key=lambda peer: edge_key(RUN, Round(0), 0, ALICE, peer))
    alice = searching(ALICE, asked)  # her proposal is open
    assert alice.handle(Received(other, propose("c")), 8.5) == []
    effects = alice.handle(Received(asked, accept()), 9.0)
    assert effects[0] == Send(other, Refuse(payload("c"), "taken", 0.0))


def test_a_proposal_with_a_lower_key_is_accepted_instead_of_waiting() -> None:
    """Three who ask first who asked them could wait for each other in a circle."""
    better, asked = sorted((BOB, CAROL), key=lambda peer: edge_key(RUN, Round(0), 0, ALICE, peer))
    alice = searching(ALICE, asked)
    effects = alice.handle(Received(better, propose("c")), 9.0)
    assert effects[0] == Send(better, Accept(payload("c"), Round(0), payload("a"), 100, 400))
    assert alice.handle(Received(asked, accept()), 9.1) == [Send(asked, Abort(payload("a")))]


def test_a_new_worker_starts_without_the_pair_of_the_old_one() -> None:
    alice = partner()
    assert alice.handle(Resumed(Round(0), WEIGHTS), 10.0) == [
        Release(payload("b")),
        Send(BOB, Refuse(payload("b"), "failed", 0.0)),
        Publish((Decision(payload("a"), None),)),
        Release(payload("a")),
        RunInner(Round(0), 8),
    ]
    assert alice.handle(Received(BOB, Commit(THEIRS)), 11.0) == []


def test_a_snapshot_of_a_worker_that_is_gone_is_released() -> None:
    alice = machine(ALICE, BOB)
    effects = alice.handle(SnapshotDone(Round(0), 0, payload("a"), 100), 8.0)
    assert effects == [Release(payload("a"))]


@pytest.mark.parametrize("stale", [Fetched(payload("x")), OuterDone(Round(7), WEIGHTS)])
def test_answers_to_what_is_over_change_nothing(stale: Fetched | OuterDone) -> None:
    alice = searching(ALICE)
    assert [e for e in alice.handle(stale, 9.0) if not isinstance(e, Release)] == []
    assert alice.round == 0


# --- fragments --------------------------------------------------------------------------


def in_parts(*members: PeerId, fragments: int = 3) -> Noloco:
    """Alice, training in round 0 of a model in fragments."""
    trainer = Noloco(
        ALICE,
        CONFIG,
        run=RUN,
        rounds=9,
        fragments=fragments,
        max_tokens=TOKENS,
        most_claimed=TOKENS,
    )
    trainer.handle(MembersChanged(tuple(sorted(members))), 0.0)
    assert trainer.handle(Resumed(Round(0), WEIGHTS), 0.0) == [RunInner(Round(0), 2)]
    return trainer


def of_fragment(fragment: int, name: str = "b", round: int = 0) -> Propose:
    return replace(propose(name, round), fragment=fragment)


def test_every_fragment_has_its_turn_once_a_cycle_in_an_order_that_changes() -> None:
    cycles = [
        [fragment_in_turn(RUN, Round(4 * cycle + turn), 4) for turn in range(4)]
        for cycle in range(12)
    ]
    assert all(sorted(cycle) == [0, 1, 2, 3] for cycle in cycles)
    assert len({tuple(cycle) for cycle in cycles}) > 4


def test_a_round_has_its_share_of_the_steps_and_exchanges_the_fragment_in_turn() -> None:
    alice = in_parts(BOB)
    turn = fragment_in_turn(RUN, Round(0), 3)
    assert alice.handle(InnerDone(2, 400), 2.0) == [Snapshot(Round(0), turn)]
    effects = alice.handle(SnapshotDone(Round(0), turn, payload("a"), 100), 2.0)
    assert effects[0] == RunInner(Round(1), 3)
    assert Send(BOB, of_fragment(turn, "a")) in effects


def test_a_peer_that_is_ahead_has_its_fragment_exchanged() -> None:
    alice = in_parts(BOB)
    other = (fragment_in_turn(RUN, Round(0), 3) + 1) % 3
    alice.handle(Received(BOB, of_fragment(other, round=4)), 1.0)
    assert alice.handle(InnerDone(2, 400), 2.0) == [Snapshot(Round(0), other)]
    effects = alice.handle(SnapshotDone(Round(0), other, payload("a"), 100), 2.0)
    assert Send(BOB, Accept(payload("b"), Round(0), payload("a"), 100, 400)) in effects


def test_pairs_exchange_one_fragment_and_another_is_refused() -> None:
    alice = in_parts(BOB)
    turn = fragment_in_turn(RUN, Round(0), 3)
    other = (turn + 1) % 3
    alice.handle(InnerDone(2, 400), 2.0)
    alice.handle(Received(BOB, of_fragment(other, "b")), 2.0)  # while the snapshot is made
    effects = alice.handle(SnapshotDone(Round(0), turn, payload("a"), 100), 2.0)
    assert Send(BOB, Refuse(payload("b"), "fragment", 0.0)) in effects
    refused = [Send(CAROL, Refuse(payload("c"), "fragment", 0.0))]
    assert alice.handle(Received(CAROL, of_fragment(other, "c")), 3.0) == refused


def test_a_fragment_that_the_run_does_not_have_is_blamed() -> None:
    alice = in_parts(BOB)
    assert alice.handle(Received(BOB, of_fragment(3, "b", round=4)), 1.0) == [
        Blame(BOB, "a payload of fragment 3, the run has 3"),
        Send(BOB, Refuse(payload("b"), "failed", 0.0)),
    ]


def test_a_pair_averages_payloads_of_its_fragment_and_of_its_rounds() -> None:
    alice = in_parts(BOB)
    turn = fragment_in_turn(RUN, Round(0), 3)
    alice.handle(InnerDone(2, 400), 2.0)
    alice.handle(SnapshotDone(Round(0), turn, payload("a"), 100), 2.0)
    alice.handle(Received(BOB, accept("b", round=5)), 3.0)
    alice.handle(Fetched(payload("b")), 4.0)
    both = replace(exchange(ALICE, BOB, "ab", theirs=5), fragment=turn)
    assert averaged(both) in alice.handle(Received(BOB, Have(both)), 4.0)


def test_alone_the_fragment_in_turn_takes_its_own_step() -> None:
    alice = in_parts(BOB)
    turn = fragment_in_turn(RUN, Round(0), 3)
    alice.handle(InnerDone(2, 400), 2.0)
    alice.handle(SnapshotDone(Round(0), turn, payload("a"), 100), 2.0)
    assert alone(1, turn) in alice.handle(InnerDone(3, 600), 5.0)


# --- rounds that are far apart ------------------------------------------------------------


FAR = CONFIG.reanchor_rounds


@pytest.mark.parametrize("ahead", [FAR, FAR + 3])
def test_a_proposal_from_far_ahead_is_refused_and_hurries_nobody(ahead: int) -> None:
    alice = machine(ALICE, BOB, rounds=99)
    effects = alice.handle(Received(BOB, propose("b", round=ahead)), 4.0)
    assert effects == [Send(BOB, Refuse(payload("b"), "far", 0.0))]


def test_a_proposal_from_just_within_reach_is_answered() -> None:
    alice = searching(ALICE, BOB, rounds=99)
    alice.handle(Received(BOB, Refuse(payload("a"), "taken", 0.0)), 8.5)
    effects = alice.handle(Received(BOB, propose("b", round=FAR - 1)), 9.0)
    assert Send(BOB, Accept(payload("b"), Round(0), payload("a"), 100, 400)) in effects


def test_a_proposal_from_far_behind_is_refused() -> None:
    alice = machine(ALICE, BOB, rounds=99)
    alice.handle(Resumed(Round(FAR), WEIGHTS), 1.0)
    effects = alice.handle(Received(BOB, propose("b")), 2.0)
    assert effects == [Send(BOB, Refuse(payload("b"), "far", 0.0))]


def test_an_acceptance_from_far_away_is_answered_with_abort_and_blames_nobody() -> None:
    alice = searching(ALICE, BOB, rounds=99)
    effects = alice.handle(Received(BOB, accept(round=FAR)), 9.0)
    assert but_waits(effects) == [Send(BOB, Abort(payload("a")))]


def test_who_is_left_behind_closes_its_round_alone_then_takes_over_weights() -> None:
    alice = searching(ALICE, BOB, rounds=99)
    assert alice.handle(LeftBehind(CAROL), 9.0) == [alone()]
    effects = alice.handle(OuterDone(Round(1), WEIGHTS), 9.5)
    assert effects[-2:] == [
        Closed(Round(0), 400, None, False, "left behind by the others"),
        CatchUp(CAROL),
    ]
    refused = alice.handle(Received(BOB, propose("b")), 9.6)
    assert refused == [Send(BOB, Refuse(payload("b"), "far", 0.0))]
    assert alice.handle(LeftBehind(BOB), 9.7) == []  # one at a time
    assert alice.handle(InnerDone(8, 400), 9.8) == []  # no snapshot of weights that will go
    assert alice.handle(Resumed(Round(40), WEIGHTS), 11.0) == [RunInner(Round(40), 8)]
    assert alice.round == 40


def test_who_is_left_behind_while_it_trains_takes_over_weights_at_once() -> None:
    alice = machine(ALICE, BOB, rounds=99)
    assert alice.handle(LeftBehind(BOB), 4.0) == [CatchUp(BOB)]


def test_a_promise_is_kept_before_weights_are_taken_over() -> None:
    alice = partner()
    assert alice.handle(LeftBehind(CAROL), 9.5) == []
    assert alice.handle(Received(BOB, Commit(THEIRS)), 10.0) == [averaged(THEIRS)]
    assert alice.handle(OuterDone(Round(1), WEIGHTS), 10.5)[-1] == CatchUp(CAROL)


def test_training_goes_on_when_weights_cannot_be_had() -> None:
    alice = machine(ALICE, BOB, rounds=99)
    alice.handle(LeftBehind(BOB), 4.0)
    assert alice.handle(InnerDone(8, 400), 8.0) == []
    assert alice.handle(CatchUpFailed("gone"), 9.0) == [Snapshot(Round(0), 0)]


def test_who_has_finished_takes_over_nothing() -> None:
    alice = machine(ALICE, BOB)
    alice.handle(Resumed(Round(9), WEIGHTS), 1.0)
    assert alice.handle(LeftBehind(BOB), 2.0) == []


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({}, None),
        ({BOB: FAR - 1}, None),
        ({BOB: FAR}, BOB),
        ({BOB: FAR, CAROL: 0}, None),  # one of two is not enough
        ({BOB: FAR, CAROL: FAR}, max(BOB, CAROL)),
        ({BOB: FAR + 9, CAROL: FAR + 1, DAVE: 10**6}, BOB),  # the furthest may claim anything
    ],
)
def test_weights_are_taken_of_the_one_in_the_middle_of_two_or_more_far_ahead(
    others: dict[PeerId, int], expected: PeerId | None
) -> None:
    rounds = {peer: Round(round) for peer, round in others.items()}
    assert source(Round(0), rounds, FAR) == expected
