"""Averaging by rosters by hand: tell it one thing, look at what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import count

import pytest
from group_pump import PEERS, SIGNERS, START, Pump

from protocol.algorithms import DilocoConfig, GroupConfig, StreamingConfig, SyncConfig
from protocol.ids import Digest, PeerId, Round, RunId, digest_of
from protocol.messages import Message
from protocol.rosters import (
    Contribution,
    Entry,
    Later,
    Roster,
    SignedRoster,
    sign_roster,
)
from trainers.agreement import FULL, MAX_ROSTERS_SEEN
from trainers.effects import (
    Agreed,
    ApplyOuter,
    Blame,
    CatchUp,
    Closed,
    CloseInner,
    Effect,
    Fetch,
    Finished,
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
    Event,
    Fetched,
    FetchFailed,
    InnerDone,
    InnerFailed,
    MembersChanged,
    OuterDone,
    OuterRefused,
    Received,
    Resumed,
    SnapshotDone,
    TimerFired,
)
from trainers.roster import leader_of
from trainers.straying import FAREWELLS
from trainers.streaming import Streaming
from trainers.timers import RepeatDue, TermEnds

ALICE, BOB, CAROL, DAVE = PEERS[:4]


def leads(leader: PeerId, run: RunId, term: int, *candidates: PeerId) -> bool:
    return leader_of(candidates, run, Round(0), 0, term) == leader


RUN = next(
    run
    for run in (RunId(digest_of(f"{n}".encode())) for n in count())
    if leads(ALICE, run, 0, *PEERS)
    and leads(BOB, run, 0, BOB, CAROL)
    and leads(ALICE, run, 1, ALICE, BOB, CAROL)
    and leads(BOB, run, 1, BOB, CAROL)
    and leads(DAVE, run, 1, BOB, CAROL, DAVE)
)
"""In round 0 Alice leads two terms; without her Bob does, before Carol, and in the second Dave."""
CONFIG = DilocoConfig(inner_steps=80, round_deadline_s=80.0)
TOKENS = 800
SIZE = 100


def payload(name: str) -> Digest:
    return digest_of(name.encode())


def weights(round: int) -> Digest:
    """Slow weights at the start of a round, in the history of most tests."""
    return payload(f"weights {round}") if round else START


class Told:
    """A machine, and what it asked for last."""

    def __init__(
        self, me: PeerId, *members: PeerId, config: GroupConfig = CONFIG, **settings: int
    ) -> None:
        known = {"rounds": 9, "fragments": 1, "max_tokens": TOKENS} | settings
        self.machine = Streaming(
            me,
            config,
            run=RUN,
            signer=SIGNERS[me],
            rounds=known["rounds"],
            fragments=known["fragments"],
            max_tokens=known["max_tokens"],
            most_claimed=known["max_tokens"],
        )
        self.effects: list[Effect] = []
        self.tell(0.0, MembersChanged(tuple(sorted(members))), Resumed(Round(0), START))

    def tell(self, now: float, *events: Event) -> list[Effect]:
        """What it asks for, all together."""
        self.effects = [e for event in events for e in self.machine.handle(event, now)]
        return self.effects

    def hear(self, now: float, sender: PeerId, *messages: Message) -> list[Effect]:
        """A member says something."""
        return self.tell(now, *(Received(sender, message) for message in messages))

    def of(self, *kinds: type[Effect]) -> list[Effect]:
        """Those of these kinds."""
        return [effect for effect in self.effects if isinstance(effect, kinds)]

    def contribute(self, now: float, name: str = "a", tokens: int = 800) -> list[Effect]:
        """Its inner phase ends, and its snapshot is made."""
        self.tell(now, InnerDone(80, tokens))
        [snapshot] = self.of(Snapshot)
        assert isinstance(snapshot, Snapshot)
        done = SnapshotDone(snapshot.round, snapshot.fragment, payload(name), SIZE)
        return self.tell(now, done)


def offer(name: str, round: int = 0, **changes: object) -> Contribution:
    said = Contribution(
        round=Round(round),
        fragment=0,
        anchor=weights(round),
        anchor_tokens=1600 if round else 0,
        digest=payload(name),
        size_bytes=SIZE,
        tokens=800,
    )
    return replace(said, **changes)  # type: ignore[arg-type]


def later(
    round: int = 0,
    anchor: Digest | None = None,
    tokens: int | None = None,
    *,
    is_coming: bool = False,
) -> Later:
    led = (1600 if round else 0) if tokens is None else tokens
    return Later(
        round=Round(round),
        anchor=anchor or weights(round),
        anchor_tokens=led,
        is_coming=is_coming,
    )


def roster(
    names: Mapping[PeerId, str], leader: PeerId = ALICE, size: int = SIZE, **changes: object
) -> Roster:
    made = Roster(
        round=Round(0),
        fragment=0,
        term=0,
        leader=leader,
        anchor=START,
        entries=tuple(
            Entry(peer, payload(name), size, 800) for peer, name in sorted(names.items())
        ),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def signed(roster: Roster) -> SignedRoster:
    return sign_roster(roster, RUN, SIGNERS[roster.leader])


def half(*names: str, round: int = 0) -> tuple[Share, ...]:
    return tuple(Share(payload(name), Round(round), 1 / len(names)) for name in names)


BOTH = {ALICE: "a", BOB: "b"}
THREE = {ALICE: "a", BOB: "b", CAROL: "c"}


def closing(*members: PeerId, config: GroupConfig = CONFIG) -> Told:
    """Bob, who contributed "b" at 80.0; Alice leads."""
    bob = Told(BOB, ALICE, *members, config=config)
    bob.contribute(80.0, "b")
    return bob


def second_round(rounds: int = 9) -> Told:
    """Bob at the start of round 1, which he came to with Alice and Carol."""
    bob = Told(BOB, ALICE, CAROL, rounds=rounds)
    bob.contribute(80.0, "b")
    bob.hear(80.0, ALICE, offer("a"))
    bob.hear(80.0, CAROL, offer("c"))
    bob.tell(81.0, Fetched(payload("a")), Fetched(payload("c")))
    bob.hear(82.0, ALICE, signed(roster(THREE)))
    bob.tell(83.0, OuterDone(Round(1), weights(1)))
    return bob


def repeat(bob: Told, *at: float) -> list[Effect]:
    """These repeats are due; what it asks for at the last."""
    for now in at:
        bob.tell(now, TimerFired(RepeatDue(1)))
    return bob.effects


# --- a round ------------------------------------------------------------------------------------


def test_trains_takes_a_snapshot_and_tells_all() -> None:
    bob = Told(BOB, ALICE, CAROL)
    assert bob.of(RunInner) == [RunInner(Round(0), 80)]
    assert bob.tell(80.0, InnerDone(80, 800)) == [Snapshot(Round(0), 0)]
    assert bob.tell(80.0, SnapshotDone(Round(0), 0, payload("b"), SIZE)) == [
        Send(ALICE, offer("b")),
        Send(CAROL, offer("b")),
        SetTimer(140.0, TermEnds(Round(0), 0)),
        SetTimer(160.0, TermEnds(Round(0), 0)),
        Wait("the roster of round 0", ALICE, 160.0),
    ]


def test_the_leader_closes_the_roster_when_all_have_contributed_and_are_fetched() -> None:
    alice = Told(ALICE, BOB, CAROL)
    alice.contribute(80.0, "a")
    assert alice.of(Wait) == [Wait("contributions to round 0", None, 140.0)]
    assert alice.hear(81.0, BOB, offer("b")) == [Fetch(payload("b"), SIZE, BOB)]
    assert alice.hear(81.0, CAROL, offer("c")) == [Fetch(payload("c"), SIZE, CAROL)]
    assert alice.tell(82.0, Fetched(payload("b"))) == []
    assert alice.tell(82.0, Fetched(payload("c"))) == [
        Send(BOB, signed(roster(THREE))),
        Send(CAROL, signed(roster(THREE))),
        ApplyOuter(Round(1), 0, payload("a"), half("a", "b", "c")),
    ]


def test_a_member_averages_what_the_leader_signed_and_trains_on() -> None:
    bob = closing()
    assert bob.hear(81.0, ALICE, offer("a")) == [Fetch(payload("a"), SIZE, ALICE)]
    bob.tell(82.0, Fetched(payload("a")))
    assert bob.hear(83.0, ALICE, signed(roster(BOTH))) == [
        ApplyOuter(Round(1), 0, payload("b"), half("a", "b"))
    ]
    assert bob.tell(84.0, OuterDone(Round(1), weights(1))) == [
        Closed(Round(0), 800, Agreed(roster(BOTH), signed(roster(BOTH)).digest), False, ""),
        RunInner(Round(1), 80),
    ]


def test_the_next_contribution_names_the_new_anchor_and_the_tokens_that_led_there() -> None:
    bob = second_round()
    bob.contribute(160.0, "b1")
    assert bob.of(Send)[0] == Send(ALICE, offer("b1", 1, anchor_tokens=2400))


def test_what_a_roster_names_is_fetched_from_its_maker_then_from_whoever_should_have_it() -> None:
    bob = closing(CAROL, DAVE)
    assert bob.hear(81.0, ALICE, signed(roster(THREE))) == [
        SetTimer(161.0, TermEnds(Round(0), 0)),
        Fetch(payload("a"), SIZE, ALICE),
        Fetch(payload("c"), SIZE, CAROL),
        Wait("the payloads of round 0", None, 161.0),
    ]
    assert bob.tell(82.0, FetchFailed(payload("c"), "")) == [Fetch(payload("c"), SIZE, ALICE)]
    assert bob.tell(82.0, FetchFailed(payload("c"), "")) == [Fetch(payload("c"), SIZE, DAVE)]
    assert bob.tell(82.0, FetchFailed(payload("c"), "")) == []
    assert repeat(bob, 90.0)[1:] == [Fetch(payload("c"), SIZE, CAROL)]


def test_alone_it_neither_waits_nor_signs() -> None:
    bob = Told(BOB, rounds=2)
    assert bob.contribute(80.0, "b")[-1] == ApplyOuter(Round(1), 0, payload("b"), ())
    assert bob.of(Wait, Send) == []
    assert bob.tell(81.0, OuterDone(Round(1), weights(1))) == [
        Closed(Round(0), 800, None, False, "nobody else trains"),
        RunInner(Round(1), 80),
        Release(payload("b")),
    ]
    bob.contribute(160.0, "b1")
    assert bob.tell(161.0, OuterDone(Round(2), weights(2))) == [
        Closed(Round(1), 800, None, False, "nobody else trains"),
        Finished(Round(2)),
        Release(payload("b1")),
    ]


def test_payloads_are_kept_for_two_rounds_after_they_were_averaged() -> None:
    bob = second_round()
    assert bob.of(Release) == []
    for round in (1, 2):
        bob.contribute(80.0 * (round + 1), f"b{round}")
        names = {ALICE: f"a{round}", BOB: f"b{round}"}
        told = roster(names, round=Round(round), anchor=weights(round))
        bob.hear(90.0 * (round + 1), ALICE, offer(f"a{round}", round), signed(told))
        bob.tell(90.0 * (round + 1), Fetched(payload(f"a{round}")))
        if round == 1:
            bob.tell(200.0, OuterDone(Round(2), weights(2)))
            assert bob.of(Release) == []
    bob.tell(300.0, OuterDone(Round(3), weights(3)))
    released = {release.digest for release in bob.of(Release) if isinstance(release, Release)}
    assert released == {payload("a"), payload("b"), payload("c")}


# --- fast and slow ------------------------------------------------------------------------------


def training(made: int) -> Told:
    """Bob, who has made so many of 80 steps of round 1 when Alice contributes to it."""
    bob = second_round()
    bob.hear(83.0 + made, ALICE, offer("a1", 1))
    return bob


def test_who_made_an_eighth_closes_its_inner_phase_when_the_first_contributes() -> None:
    bob = training(10)
    assert bob.effects == [CloseInner()]
    bob.contribute(94.0, "b1", tokens=100)
    assert bob.of(Send)[0] == Send(ALICE, offer("b1", 1, tokens=100, anchor_tokens=2400))


def test_who_made_less_says_later_and_keeps_training() -> None:
    bob = training(9)
    assert bob.effects == [Send(ALICE, later(1, tokens=2400))]
    assert bob.hear(110.0, ALICE, offer("a1", 1)) == [Send(ALICE, later(1, tokens=2400))]


def test_who_said_later_takes_over_the_average_under_its_inner_steps() -> None:
    bob = training(9)
    told = roster({ALICE: "a1", CAROL: "c1"}, round=Round(1), anchor=weights(1))
    bob.hear(95.0, ALICE, signed(told))
    assert bob.of(Fetch) == [
        Fetch(payload("a1"), SIZE, ALICE),
        Fetch(payload("c1"), SIZE, CAROL),
    ]
    bob.tell(96.0, Fetched(payload("a1")))
    assert bob.tell(96.0, Fetched(payload("c1"))) == [
        ApplyOuter(Round(2), 0, None, half("a1", "c1", round=1))
    ]
    closed = Closed(Round(1), 0, Agreed(told, signed(told).digest), False, "")
    assert bob.tell(97.0, OuterDone(Round(2), weights(2))) == [closed]
    bob.hear(98.0, ALICE, offer("a2", 2))
    assert bob.effects == [CloseInner()]  # 15 steps by now


def test_no_snapshot_is_taken_for_a_round_whose_roster_is_there() -> None:
    bob = Told(BOB, ALICE)
    bob.hear(79.0, ALICE, signed(roster({ALICE: "a"})))
    assert bob.tell(80.0, InnerDone(80, 800)) == []
    assert bob.tell(81.0, Fetched(payload("a"))) == [ApplyOuter(Round(1), 0, None, half("a"))]
    bob.tell(82.0, OuterDone(Round(1), weights(1)))
    assert bob.of(Snapshot, RunInner) == [Snapshot(Round(1), 0)]


def test_a_phase_that_was_closed_before_its_first_step_makes_one() -> None:
    bob = training(10)
    assert bob.tell(93.0, InnerDone(0, 0)) == [RunInner(Round(1), 1)]
    assert bob.tell(94.0, InnerDone(1, 10)) == [Snapshot(Round(1), 0)]


def test_the_leader_does_not_wait_for_who_said_later() -> None:
    alice = Told(ALICE, BOB, CAROL)
    alice.contribute(80.0, "a")
    alice.hear(80.0, BOB, offer("b"))
    alice.tell(81.0, Fetched(payload("b")))
    alice.hear(82.0, CAROL, later())
    assert alice.of(ApplyOuter) == [ApplyOuter(Round(1), 0, payload("a"), half("a", "b"))]
    assert Send(CAROL, signed(roster(BOTH))) in alice.effects


def test_nobody_else_contributed_is_no_receipt_but_all_can_follow() -> None:
    alice = Told(ALICE, BOB)
    alice.contribute(80.0, "a")
    alice.hear(82.0, BOB, later())
    alone = signed(roster({ALICE: "a"}))
    assert alice.effects == [Send(BOB, alone), ApplyOuter(Round(1), 0, payload("a"), half("a"))]
    alice.tell(83.0, OuterDone(Round(1), weights(1)))
    assert alice.of(Closed) == [Closed(Round(0), 800, None, False, "nobody else contributed")]
    assert alice.hear(84.0, BOB, later()) == [Send(BOB, alone)]


def test_the_leader_takes_what_it_has_at_three_quarters_of_the_deadline() -> None:
    alice = Told(ALICE, BOB, CAROL)
    alice.contribute(80.0, "a")
    alice.hear(80.0, BOB, offer("b"))
    alice.tell(81.0, Fetched(payload("b")))
    assert alice.tell(139.0, TimerFired(TermEnds(Round(0), 0))) == []
    alice.tell(140.0, TimerFired(TermEnds(Round(0), 0)))
    assert alice.of(ApplyOuter) == [ApplyOuter(Round(1), 0, payload("a"), half("a", "b"))]


def test_who_leaves_the_view_without_having_contributed_is_not_waited_for() -> None:
    alice = Told(ALICE, BOB, CAROL)
    alice.contribute(80.0, "a")
    alice.hear(80.0, BOB, offer("b"))
    alice.tell(81.0, Fetched(payload("b")))
    alice.tell(82.0, MembersChanged((BOB,)))
    assert alice.of(ApplyOuter) == [ApplyOuter(Round(1), 0, payload("a"), half("a", "b"))]


def test_a_payload_that_cannot_be_had_twice_is_left_out() -> None:
    alice = Told(ALICE, BOB)
    alice.contribute(80.0, "a")
    alice.hear(80.0, BOB, offer("b"))
    assert alice.tell(81.0, FetchFailed(payload("b"), "")) == []
    assert repeat(alice, 90.0)[-1:] == [Fetch(payload("b"), SIZE, BOB)]
    alice.tell(91.0, FetchFailed(payload("b"), ""))
    assert alice.of(ApplyOuter) == [ApplyOuter(Round(1), 0, payload("a"), half("a"))]


def test_who_was_left_out_keeps_its_steps_and_their_tokens_count_next_time() -> None:
    bob = closing(CAROL)
    bob.hear(81.0, ALICE, signed(roster({ALICE: "a"})))
    bob.tell(82.0, Fetched(payload("a")))
    assert bob.of(ApplyOuter) == [ApplyOuter(Round(1), 0, payload("b"), half("a"))]
    bob.tell(83.0, OuterDone(Round(1), weights(1)))
    assert [c.tokens for c in bob.of(Closed) if isinstance(c, Closed)] == [0]
    bob.hear(84.0, ALICE, offer("a1", 1))
    assert bob.effects == [CloseInner()]  # it has something to contribute at once
    bob.tell(85.0, InnerDone(1, 10))
    bob.tell(85.0, SnapshotDone(Round(1), 0, payload("b1"), SIZE))
    assert bob.of(Send)[0] == Send(ALICE, offer("b1", 1, tokens=800, anchor_tokens=800))


def test_a_step_that_is_a_round_is_waited_for() -> None:
    bob = Told(BOB, ALICE, config=SyncConfig(round_deadline_s=80.0))
    assert bob.of(RunInner) == [RunInner(Round(0), 1)]
    assert bob.hear(0.001, ALICE, offer("a")) == []


# --- overlap and stale --------------------------------------------------------------------------


def test_inner_steps_go_on_while_a_fragment_is_averaged_and_count_for_the_next_round() -> None:
    config = StreamingConfig(inner_steps=240, overlap_steps=5, round_deadline_s=80.0)
    bob = Told(BOB, ALICE, config=config, fragments=3)
    bob.contribute(80.0, "b")
    assert bob.of(RunInner) == [RunInner(Round(1), 5)]
    bob.hear(81.0, ALICE, offer("a"), signed(roster(BOTH)))
    assert bob.tell(82.0, Fetched(payload("a"))) == []  # ready, but the steps are not made
    assert bob.tell(85.0, InnerDone(5, 50)) == [
        ApplyOuter(Round(1), 0, payload("b"), half("a", "b"))
    ]
    assert bob.tell(86.0, OuterDone(Round(1), weights(1)))[-1] == RunInner(Round(1), 80)
    assert bob.tell(160.0, InnerDone(80, 800)) == [Snapshot(Round(1), 1)]


def test_the_overlap_waits_for_the_average_without_training_further() -> None:
    config = StreamingConfig(inner_steps=240, overlap_steps=5, round_deadline_s=80.0)
    bob = Told(BOB, ALICE, config=config, fragments=3)
    bob.contribute(80.0, "b")
    assert bob.tell(85.0, InnerDone(5, 50)) == []
    bob.hear(86.0, ALICE, offer("a"), signed(roster(BOTH)))
    assert bob.tell(87.0, Fetched(payload("a"))) == [
        ApplyOuter(Round(1), 0, payload("b"), half("a", "b"))
    ]


def test_the_overlap_is_no_longer_than_a_round() -> None:
    config = StreamingConfig(inner_steps=240, overlap_steps=100, round_deadline_s=80.0)
    bob = Told(BOB, ALICE, config=config, fragments=3)
    bob.contribute(80.0, "b")
    assert bob.of(RunInner) == [RunInner(Round(1), 80)]


def test_no_overlap_follows_the_last_round() -> None:
    config = StreamingConfig(inner_steps=240, overlap_steps=5, round_deadline_s=80.0)
    bob = Told(BOB, ALICE, config=config, fragments=3, rounds=1)
    bob.contribute(80.0, "b")
    assert bob.of(RunInner) == []


def test_a_stale_average_is_applied_after_the_next_snapshot() -> None:
    config = DilocoConfig(inner_steps=80, round_deadline_s=80.0, stale=True)
    bob = Told(BOB, ALICE, config=config)
    bob.contribute(80.0, "b")
    assert bob.of(RunInner) == [RunInner(Round(1), 80)]
    bob.hear(81.0, ALICE, offer("a"), signed(roster(BOTH)))
    assert bob.tell(82.0, Fetched(payload("a"))) == []
    assert bob.tell(160.0, InnerDone(80, 800)) == [Snapshot(Round(1), 0)]
    assert bob.tell(161.0, SnapshotDone(Round(1), 0, payload("b1"), SIZE)) == [
        ApplyOuter(Round(1), 0, payload("b"), half("a", "b"))
    ]
    bob.tell(162.0, OuterDone(Round(1), weights(1)))
    assert bob.of(RunInner, Send) == [
        Send(ALICE, offer("b1", 1)),
        RunInner(Round(2), 80),
    ]


def test_who_is_too_slow_for_a_whole_stale_round_applies_under_its_steps_when_overtaken() -> None:
    config = DilocoConfig(inner_steps=80, round_deadline_s=80.0, stale=True)
    bob = Told(BOB, ALICE, config=config)
    bob.contribute(80.0, "b")
    bob.hear(81.0, ALICE, offer("a"), signed(roster(BOTH)))
    bob.tell(82.0, Fetched(payload("a")))
    assert bob.hear(85.0, ALICE, offer("a1", 1)) == [
        Send(ALICE, later()),
        ApplyOuter(Round(1), 0, payload("b"), half("a", "b")),
    ]
    assert bob.tell(86.0, OuterDone(Round(1), weights(1)))[1:] == [Send(ALICE, later(1))]


def test_who_is_far_enough_in_a_stale_round_closes_it_when_overtaken() -> None:
    config = DilocoConfig(inner_steps=80, round_deadline_s=80.0, stale=True)
    bob = Told(BOB, ALICE, config=config)
    bob.contribute(80.0, "b")
    bob.hear(81.0, ALICE, offer("a"), signed(roster(BOTH)))
    bob.tell(82.0, Fetched(payload("a")))
    assert bob.hear(90.0, ALICE, offer("a1", 1)) == [
        CloseInner(),
        Send(ALICE, later(is_coming=True)),
    ]


# --- terms --------------------------------------------------------------------------------------


def test_what_may_be_lost_is_said_again_while_there_is_no_roster() -> None:
    bob = closing()
    again = [SetTimer(100.0, RepeatDue(1)), Send(ALICE, offer("b"))]
    assert repeat(bob, 90.0) == again
    bob.hear(91.0, ALICE, offer("a"), signed(roster(BOTH)))
    assert repeat(bob, 100.0) == [SetTimer(110.0, RepeatDue(1))]


def test_whoever_has_the_roster_answers_with_it() -> None:
    bob = second_round()
    assert bob.hear(90.0, CAROL, offer("c")) == [Send(CAROL, signed(roster(THREE)))]
    assert bob.hear(90.0, CAROL, later()) == [Send(CAROL, signed(roster(THREE)))]


def test_who_is_two_rounds_behind_is_sent_both_rosters() -> None:
    bob = second_round()
    ahead = roster({ALICE: "a1"}, round=Round(1), anchor=weights(1))
    bob.hear(90.0, ALICE, signed(ahead))
    bob.tell(91.0, Fetched(payload("a1")))
    bob.tell(92.0, OuterDone(Round(2), weights(2)))
    assert bob.hear(93.0, CAROL, later()) == [
        Send(CAROL, signed(roster(THREE))),
        Send(CAROL, signed(ahead)),
    ]


def test_a_chosen_roster_is_passed_on_before_it_is_applied() -> None:
    bob = closing(CAROL)
    bob.hear(81.0, ALICE, signed(roster(THREE)))
    assert Send(CAROL, signed(roster(THREE))) in bob.hear(82.0, CAROL, offer("c"))


def test_without_a_roster_by_the_deadline_another_contributor_leads_the_next_term() -> None:
    bob = closing(CAROL, DAVE)
    bob.hear(81.0, ALICE, offer("a"))
    bob.hear(81.0, CAROL, offer("c"))
    bob.tell(82.0, Fetched(payload("a")), Fetched(payload("c")))
    # Neither Alice again, nor Dave, who is silent.
    assert bob.tell(160.0, TimerFired(TermEnds(Round(0), 0))) == [
        SetTimer(180.0, TermEnds(Round(0), 1)),
        SetTimer(240.0, TermEnds(Round(0), 1)),
        Send(ALICE, offer("b")),
        Send(CAROL, offer("b")),
        Send(DAVE, offer("b")),
        Wait("contributions to round 0", None, 180.0),
    ]
    bob.tell(180.0, TimerFired(TermEnds(Round(0), 1)))
    told = roster(THREE, leader=BOB, term=1)
    assert bob.effects == [
        Send(ALICE, signed(told)),
        Send(CAROL, signed(told)),
        Send(DAVE, signed(told)),
        ApplyOuter(Round(1), 0, payload("b"), half("a", "b", "c")),
    ]


def test_the_leader_of_a_later_term_closes_no_roster_before_others_can_have_answered() -> None:
    bob = closing(CAROL)
    bob.hear(81.0, ALICE, offer("a"))
    bob.hear(81.0, CAROL, offer("c"))
    bob.tell(82.0, Fetched(payload("a")), Fetched(payload("c")))
    bob.tell(160.0, TimerFired(TermEnds(Round(0), 0)))
    assert bob.of(Wait) == [Wait("contributions to round 0", None, 180.0)]
    assert bob.of(ApplyOuter) == []


def test_the_leader_of_a_later_term_takes_a_roster_that_somebody_had() -> None:
    bob = closing(CAROL, DAVE)
    bob.hear(81.0, ALICE, offer("a"))
    bob.hear(81.0, CAROL, offer("c"))
    bob.tell(82.0, Fetched(payload("a")), Fetched(payload("c")))
    bob.tell(160.0, TimerFired(TermEnds(Round(0), 0)))
    bob.hear(161.0, DAVE, signed(roster(BOTH)))
    assert bob.effects == [ApplyOuter(Round(1), 0, payload("b"), half("a", "b"))]


def test_a_leader_that_leaves_the_view_is_replaced_at_once() -> None:
    bob = closing(CAROL)
    bob.hear(81.0, CAROL, offer("c"))
    bob.tell(81.0, Fetched(payload("c")))
    bob.tell(82.0, MembersChanged((CAROL,)))
    assert bob.of(ApplyOuter) == [ApplyOuter(Round(1), 0, payload("b"), half("b", "c"))]


def test_who_contributed_and_left_may_have_finished_so_its_roster_is_asked_for_first() -> None:
    bob = closing()
    bob.hear(81.0, ALICE, offer("a"))
    bob.tell(82.0, Fetched(payload("a")))
    assert bob.tell(83.0, MembersChanged(())) == [Wait("contributions to round 0", None, 140.0)]
    assert repeat(bob, 90.0)[1:] == [Send(ALICE, offer("b"))]
    bob.hear(91.0, ALICE, signed(roster(BOTH)))
    assert bob.of(ApplyOuter) == [ApplyOuter(Round(1), 0, payload("b"), half("a", "b"))]


# --- two rosters --------------------------------------------------------------------------------


def test_a_roster_that_is_not_applied_gives_way_to_one_with_more_tokens() -> None:
    bob = closing(CAROL)
    bob.hear(81.0, ALICE, offer("a"), signed(roster(BOTH)))
    more = signed(roster(THREE, leader=CAROL))
    bob.hear(82.0, CAROL, offer("c"), more)
    bob.tell(83.0, Fetched(payload("a")))
    assert bob.tell(83.0, Fetched(payload("c"))) == [
        ApplyOuter(Round(1), 0, payload("b"), half("a", "b", "c"))
    ]
    bob.hear(83.5, ALICE, signed(roster({**THREE, DAVE: "d"}, leader=ALICE)))
    bob.tell(84.0, OuterDone(Round(1), weights(1)))
    assert bob.of(Closed) == [
        Closed(Round(0), 800, Agreed(roster(THREE, leader=CAROL), more.digest), False, "")
    ]  # what is being applied stays


def test_a_roster_of_the_same_payloads_changes_nothing() -> None:
    one = signed(roster(BOTH))
    lower = next(
        other
        for other in (signed(roster(BOTH, leader=CAROL, term=n)) for n in count())
        if other.digest < one.digest
    )
    bob = closing(CAROL)
    bob.hear(81.0, ALICE, offer("a"), one)
    bob.hear(82.0, CAROL, lower)
    bob.tell(83.0, Fetched(payload("a")))
    bob.tell(84.0, OuterDone(Round(1), weights(1)))
    assert bob.of(Closed) == [Closed(Round(0), 800, Agreed(roster(BOTH), one.digest), False, "")]


def test_a_member_that_does_not_lead_cannot_close_a_roster_of_itself_before_the_leader() -> None:
    bob = closing(CAROL)
    bob.hear(81.0, CAROL, offer("c"))
    assert bob.hear(82.0, CAROL, signed(roster({CAROL: "c"}, leader=CAROL))) == []
    bob.hear(83.0, ALICE, offer("a"), signed(roster(THREE)))
    bob.tell(84.0, Fetched(payload("a")), Fetched(payload("c")))
    assert bob.of(ApplyOuter) == [ApplyOuter(Round(1), 0, payload("b"), half("a", "b", "c"))]


def test_a_roster_that_leaves_us_out_is_taken_if_the_term_brings_no_other_or_another_has_it() -> (
    None
):
    alone = signed(roster({CAROL: "c"}, leader=CAROL))
    apply = ApplyOuter(Round(1), 0, payload("b"), half("c"))
    for decide in ("the term ends", "another has it"):
        bob = closing(CAROL, DAVE)
        bob.hear(81.0, CAROL, offer("c"))
        bob.tell(81.0, Fetched(payload("c")))
        if decide == "the term ends":
            assert bob.hear(82.0, CAROL, alone) == []
            bob.tell(160.0, TimerFired(TermEnds(Round(0), 0)))
        else:
            bob.hear(82.0, DAVE, alone)
        assert bob.of(ApplyOuter) == [apply], decide


def test_a_roster_of_the_next_round_is_kept_until_then() -> None:
    bob = closing(CAROL)
    bob.hear(81.0, ALICE, offer("a"), signed(roster(BOTH)))
    ahead = roster({ALICE: "a1"}, round=Round(1), anchor=weights(1))
    bob.hear(81.0, ALICE, signed(ahead))
    bob.tell(82.0, Fetched(payload("a")))
    bob.tell(83.0, OuterDone(Round(1), weights(1)))
    assert bob.of(Fetch) == [Fetch(payload("a1"), SIZE, ALICE)]


# --- elsewhere ----------------------------------------------------------------------------------


def test_whoever_is_elsewhere_is_told_where_we_are() -> None:
    bob = second_round()
    stranger = offer("x", 7)
    assert bob.hear(90.0, ALICE, stranger) == [Send(ALICE, later(1, tokens=2400))]
    assert bob.hear(90.0, ALICE, later(7)) == []  # statements are not answered for ever


def test_who_is_far_behind_takes_over_weights_on_the_word_of_two_after_two_repeats() -> None:
    bob = second_round()
    bob.hear(90.0, ALICE, later(7))
    repeat(bob, 100.0, 110.0, 120.0)
    assert bob.of(CatchUp) == []
    bob.hear(121.0, CAROL, later(7))
    repeat(bob, 130.0)
    assert bob.of(CatchUp) == []
    repeat(bob, 140.0)
    assert bob.of(CatchUp, Wait) == [
        Wait("the weights of a member that is elsewhere", ALICE, 220.0),
        CatchUp(ALICE),
    ]
    assert bob.tell(163.0, InnerDone(80, 800)) == []  # the snapshot would be of no use
    bob.tell(170.0, Resumed(Round(7), weights(7)))
    assert bob.of(RunInner) == [RunInner(Round(7), 80)]
    bob.contribute(250.0, "b7")
    assert bob.of(Send)[0] == Send(ALICE, offer("b7", 7))


def test_the_word_of_one_is_enough_if_there_is_no_other_and_one_repeat_after_a_start() -> None:
    bob = Told(BOB, ALICE)
    bob.hear(1.0, ALICE, later(7))
    repeat(bob, 10.0)
    assert bob.of(CatchUp) == [CatchUp(ALICE)]


def test_weights_that_cannot_be_had_are_asked_of_another() -> None:
    bob = Told(BOB, ALICE, CAROL)
    bob.hear(1.0, ALICE, later(7))
    bob.hear(1.0, CAROL, later(7))
    repeat(bob, 10.0)
    assert bob.of(CatchUp) == [CatchUp(ALICE)]
    bob.tell(30.0, CatchUpFailed("gone"))
    repeat(bob, 30.0)
    assert bob.of(CatchUp) == [CatchUp(CAROL)]
    bob.tell(31.0, CatchUpFailed("gone"))
    repeat(bob, 40.0, 50.0, 60.0)
    assert bob.of(CatchUp) == [CatchUp(ALICE)]  # it may be there again


def test_who_follows_a_roster_takes_over_nothing_unless_its_payloads_cannot_be_had() -> None:
    bob = closing(CAROL, DAVE)
    bob.hear(81.0, ALICE, signed(roster({ALICE: "a"})), later(7))
    bob.hear(81.0, CAROL, later(7))
    repeat(bob, 90.0, 100.0, 110.0)
    assert bob.of(CatchUp) == []
    bob.tell(111.0, *([FetchFailed(payload("a"), "gone")] * 3))
    repeat(bob, 120.0)
    assert bob.of(CatchUp) == [CatchUp(ALICE)]


def test_a_restarted_worker_finds_its_contribution_made() -> None:
    bob = closing()
    bob.tell(81.0, InnerFailed("it died"))
    bob.hear(82.0, ALICE, offer("a"), signed(roster(BOTH)))
    assert bob.tell(83.0, Fetched(payload("a"))) == []
    bob.tell(84.0, Resumed(Round(0), START))
    assert bob.of(RunInner) == []
    assert bob.of(ApplyOuter) == [ApplyOuter(Round(1), 0, None, half("a", "b"))]


def test_a_worker_that_fell_back_is_led_on_by_the_rosters_that_are_kept() -> None:
    bob = second_round()
    bob.tell(90.0, Resumed(Round(0), START))
    assert bob.of(ApplyOuter) == [ApplyOuter(Round(1), 0, None, half("a", "b", "c"))]


def test_a_late_answer_of_a_former_worker_is_let_go() -> None:
    bob = Told(BOB, ALICE)
    bob.tell(80.0, InnerDone(80, 800), Resumed(Round(0), START))
    done = SnapshotDone(Round(0), 0, payload("b"), SIZE)
    assert bob.tell(81.0, done) == [Release(payload("b"))]
    assert bob.tell(82.0, OuterDone(Round(1), weights(1))) == []


def test_the_repeats_of_a_former_start_end() -> None:
    bob = Told(BOB, ALICE)
    bob.tell(5.0, Resumed(Round(0), START))
    assert bob.tell(10.0, TimerFired(RepeatDue(1))) == []
    assert bob.tell(15.0, TimerFired(RepeatDue(2))) == [SetTimer(25.0, RepeatDue(2))]


# --- the last round -----------------------------------------------------------------------------


def finished() -> Told:
    """Bob, who finished the one round of the run with Alice and Carol."""
    return second_round(rounds=1)


def test_who_finished_says_where_it_is_and_serves_the_last_rosters() -> None:
    bob = finished()
    assert bob.of(Finished, Send, Release) == [
        Finished(Round(1)),
        Send(ALICE, later(1, tokens=2400)),
        Send(CAROL, later(1, tokens=2400)),
    ]
    assert bob.hear(90.0, CAROL, offer("c")) == [Send(CAROL, signed(roster(THREE)))]
    said = [bool(Send(ALICE, later(1, tokens=2400)) in repeat(bob, 90.0)) for _ in range(16)]
    assert said == [n < FAREWELLS - 1 or n in (6, 14) for n in range(16)]


def test_who_finished_says_so_again_when_somebody_is_elsewhere() -> None:
    bob = finished()
    for _ in range(8):
        repeat(bob, 90.0)
    assert bob.of(Send) == []
    bob.hear(91.0, CAROL, later(1, payload("other"), 1))
    assert Send(CAROL, later(1, tokens=2400)) in repeat(bob, 100.0)


def test_who_finished_elsewhere_takes_over_the_right_weights() -> None:
    bob = finished()
    for peer in (ALICE, CAROL):
        bob.hear(90.0, peer, later(1, payload("other"), 2401))
    repeat(bob, 100.0)
    assert bob.of(CatchUp) == [CatchUp(ALICE)]
    bob.tell(111.0, Resumed(Round(1), payload("other")))
    assert bob.of(Finished, RunInner) == [Finished(Round(1))]


# --- the seventeenth ----------------------------------------------------------------------------


def test_the_seventeenth_is_told_so_and_follows_until_a_place_is_free() -> None:
    me, *others = PEERS[:17][::-1]  # the last by id
    late = Told(me, *others)
    late.contribute(80.0, "late")
    names = {peer: peer for peer in others}
    for peer in others:
        late.hear(80.0, peer, offer(peer))
    late.tell(81.0, *(Fetched(payload(peer)) for peer in others))
    leader = leader_of(PEERS[:17], RUN, Round(0), 0, 0)
    late.hear(82.0, leader, signed(roster(names, leader=leader)))
    late.tell(83.0, OuterDone(Round(1), weights(1)))
    assert late.of(Wait) == [Wait(FULL, None, 163.0)]
    assert late.hear(90.0, ALICE, offer("a1", 1)) == [Send(ALICE, later(1, tokens=16 * 800))]
    assert late.tell(163.0, InnerDone(80, 800)) == []
    assert late.tell(170.0, MembersChanged(tuple(sorted(others[1:])))) == [Snapshot(Round(1), 0)]


# --- hostile members ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (offer("x", fragment=1), "a contribution of fragment 1 in round 0"),
        (offer("x", size_bytes=99), "a payload of 99 bytes, not 100"),
        (offer("b"), "our own payload offered as its own"),
        (offer("x", 9), "a contribution to round 9, the run has 9"),
        (later(10), "at round 10, the run has 9"),
        (SignedRoster(b"x", bytes(64)), "TypeError: int, not an array"),
        (
            SignedRoster(signed(roster(BOTH)).body, bytes(64)),
            f"not signed by {ALICE} as roster",
        ),
        (signed(roster(BOTH, fragment=1)), "a roster of fragment 1 in round 0"),
        (signed(roster(BOTH, size=99)), "a roster of payloads of 99 bytes, not 100"),
    ],
)
def test_who_breaks_the_protocol_is_blamed_and_changes_nothing(
    message: Message, reason: str
) -> None:
    bob = closing()
    assert bob.hear(81.0, ALICE, message) == [Blame(ALICE, reason)]
    assert bob.hear(82.0, ALICE, signed(roster(BOTH)))[-1] == Wait(
        "the payloads of round 0", None, 162.0
    )


def test_a_contribution_of_ours_that_we_never_made_convicts_the_leader() -> None:
    bob = second_round()
    for round in (1, 2):
        names = {ALICE: f"a{round}"}
        told = roster(names, round=Round(round), anchor=weights(round))
        bob.hear(90.0 * round, ALICE, signed(told))
        bob.tell(90.0 * round, Fetched(payload(f"a{round}")))
        bob.tell(90.0 * round, OuterDone(Round(round + 1), weights(round + 1)))
    forged = roster({BOB: "x"}, round=Round(3), anchor=weights(3))
    assert bob.hear(300.0, CAROL, signed(forged)) == [
        Blame(ALICE, "a contribution of ours that we never made")
    ]


def test_a_refused_payload_convicts_its_maker_and_the_others_are_averaged() -> None:
    bob = closing(CAROL)
    bob.hear(81.0, ALICE, signed(roster(THREE)))
    bob.tell(82.0, Fetched(payload("a")), Fetched(payload("c")))
    assert bob.tell(83.0, OuterRefused(payload("c"), "not finite")) == [
        Blame(CAROL, "not finite"),
        ApplyOuter(Round(1), 0, payload("b"), half("a", "b")),
    ]


def test_a_refused_payload_that_its_maker_did_not_offer_convicts_the_leader() -> None:
    bob = closing(CAROL)
    bob.hear(81.0, CAROL, offer("other"))
    bob.hear(81.0, ALICE, offer("a"), signed(roster(THREE)))
    bob.tell(82.0, Fetched(payload("a")), Fetched(payload("c")))
    bob.tell(83.0, OuterRefused(payload("c"), "not finite"))
    assert bob.of(Blame) == [Blame(ALICE, "not finite")]


def test_a_roster_of_refused_payloads_alone_is_no_roster() -> None:
    bob = closing(CAROL)
    bob.hear(81.0, ALICE, offer("a"), signed(roster({ALICE: "a"})))
    bob.tell(82.0, Fetched(payload("a")))
    bob.tell(83.0, OuterRefused(payload("a"), "not finite"))
    assert bob.of(ApplyOuter, Blame) == [Blame(ALICE, "not finite")]
    bob.tell(83.0, TimerFired(TermEnds(Round(0), 0)))
    assert bob.of(Wait) == [Wait("contributions to round 0", None, 103.0)]
    bob.tell(103.0, TimerFired(TermEnds(Round(0), 1)))
    assert bob.of(ApplyOuter) == [ApplyOuter(Round(1), 0, payload("b"), half("b"))]


@pytest.mark.parametrize("is_guilty", [True, False])
def test_a_leader_is_blamed_for_payloads_that_nobody_has_if_it_does_not_go_on_itself(
    is_guilty: bool,
) -> None:
    bob = closing(CAROL)
    bob.hear(81.0, ALICE, signed(roster({ALICE: "nothing"})))
    bob.hear(82.0, ALICE, offer("a") if is_guilty else offer("a1", 1))
    for now in (90.0, 100.0):
        bob.tell(now, *([FetchFailed(payload("nothing"), "")] * 2))
        repeat(bob, now)
    bob.tell(161.0, TimerFired(TermEnds(Round(0), 0)))
    blame = Blame(ALICE, "a roster with 1 payloads that nobody has")
    assert bob.of(Blame) == ([blame] if is_guilty else [])
    bob.tell(181.0, TimerFired(TermEnds(Round(0), 1)))
    assert bob.of(ApplyOuter) == [ApplyOuter(Round(1), 0, payload("b"), half("b"))]


def test_a_payload_that_is_not_offered_any_more_is_given_up() -> None:
    bob = closing(CAROL)
    bob.hear(81.0, CAROL, offer("c"))
    assert bob.hear(82.0, CAROL, offer("c again")) == [
        Fetch(payload("c again"), SIZE, CAROL),
        Release(payload("c")),
    ]


def test_rosters_of_one_round_are_looked_at_up_to_a_number() -> None:
    bob = closing(CAROL)
    for n in range(MAX_ROSTERS_SEEN):
        bob.hear(81.0, CAROL, signed(roster({CAROL: f"{n}"}, leader=CAROL)))
    assert bob.hear(82.0, ALICE, signed(roster(BOTH))) == []


def test_rosters_of_strangers_are_not_looked_at() -> None:
    bob = closing()
    assert bob.hear(81.0, CAROL, SignedRoster(b"x", bytes(64))) == []


# --- all together -------------------------------------------------------------------------------


ANY = [
    DilocoConfig(inner_steps=8),
    StreamingConfig(inner_steps=24),
    DilocoConfig(inner_steps=8, stale=True),
    SyncConfig(),
]
"""With rounds so short that nobody is too early to close them."""


def group(size: int, config: GroupConfig, fragments: int = 1) -> list[Streaming]:
    return [
        Streaming(
            peer,
            config,
            run=RUN,
            signer=SIGNERS[peer],
            rounds=6,
            fragments=fragments,
            max_tokens=TOKENS,
            most_claimed=TOKENS,
        )
        for peer in PEERS[:size]
    ]


@pytest.mark.parametrize("config", ANY)
@pytest.mark.parametrize(("size", "loss"), [(1, 0.0), (2, 0.0), (2, 0.2), (4, 0.0), (4, 0.2)])
def test_in_whatever_order_things_arrive_all_end_with_equal_weights(
    config: GroupConfig, size: int, loss: float
) -> None:
    fragments = 3 if config.KIND == "streaming" else 1
    for seed in range(2):
        pump = Pump(group(size, config, fragments), seed=seed, loss=loss)
        pump.run()
        nodes = pump.nodes.values()
        assert len({node.weights for node in nodes}) == 1, seed
        assert [e for node in nodes for e in node.said if isinstance(e, Blame)] == [], seed
        closed = [e for node in nodes for e in node.said if isinstance(e, Closed)]
        if size > 1 and not loss:
            assert [one for one in closed if one.receipt is None] == [], seed
