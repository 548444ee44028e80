"""Spsa by hand, and several of them in a world without order."""

from __future__ import annotations

import random

import pytest
from spsa_pump import PEERS, RUN, SIGNERS, PlainSum, Pump, machine

from protocol import codec
from protocol.algorithms import SpsaConfig
from protocol.envelope import Domain
from protocol.ids import PeerId, Round, digest_of
from protocol.messages import Message
from protocol.spsa import (
    Base,
    Behind,
    Frame,
    Frames,
    LogId,
    SignedBase,
    SignedFrame,
    Want,
    log_id,
    packed,
)
from trainers import spsa
from trainers.bases import NO_BASE, TERM_S
from trainers.effects import (
    AddScalars,
    Blame,
    CatchUp,
    Closed,
    CloseInner,
    Effect,
    Finished,
    Gathered,
    NameSum,
    Sample,
    Send,
    SetTimer,
    Wait,
)
from trainers.events import (
    Added,
    CatchUpFailed,
    InnerFailed,
    MembersChanged,
    OuterFailed,
    Received,
    Resumed,
    Sampled,
    SumNamed,
    TimerFired,
)
from trainers.pulls import AGAIN_S, BEHIND_ASKS, GIVEN_PER_S, GIVEN_S, PULL_S
from trainers.spsa import FRAME_S, MAX_WAITING, Spsa
from trainers.timers import BaseIsDue, FrameEnds, PullAgain

ALICE, BOB, CAROL, DAVE = PEERS[:4]
CONFIG = SpsaConfig(inner_steps=8, base_scalars=100, expected_peers=2)
BOOT = b"boot----"
WEIGHTS = digest_of(b"sum")


def name(author: PeerId, boot: bytes = BOOT) -> LogId:
    return log_id(RUN, author, boot)


def frame(author: PeerId = BOB, first: int = 0, scalars: bytes = b"\x01\x02", **more: int) -> Frame:
    return Frame(
        author=author,
        boot=BOOT,
        first=first,
        step=more.get("step", first),
        base=NO_BASE,
        authors=more.get("authors", 2),
        scalars=scalars,
    )


def signed(one: Frame, by: PeerId | None = None) -> SignedFrame:
    body = codec.encode(one)
    return SignedFrame(body, SIGNERS[by or one.author].sign(Domain.FRAME, RUN, body))


def frames(*some: Frame, more: bool = False) -> Frames:
    return Frames(tuple(signed(one) for one in some), more)


def signed_base(
    leader: PeerId, horizon: dict[LogId, int], *, index: int = 1, authors: int = 1, sum: bytes = b""
) -> SignedBase:
    base = Base(
        index=index, leader=leader, horizon=packed(horizon), authors=authors, sum=digest_of(sum)
    )
    body = codec.encode(base)
    return SignedBase(body, SIGNERS[leader].sign(Domain.BASE, RUN, body))


def peer(*members: PeerId, rounds: int = 40, config: SpsaConfig = CONFIG) -> Spsa:
    """Alice, who samples since 0.0."""
    alice = machine(0, config, rounds=rounds)
    alice.handle(MembersChanged(tuple(sorted(members))), 0.0)
    alice.handle(Resumed(Round(0), WEIGHTS), 0.0)
    return alice


def tell(one: Spsa, sender: PeerId, message: Message, now: float = 1.0) -> list[Effect]:
    return one.handle(Received(sender, message), now)


def of(kind: type[Effect], effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, kind)]


# --- one peer ---------------------------------------------------------------------------------


def test_samples_at_once_and_asks_a_member_for_what_it_lacks() -> None:
    alice = machine(0, CONFIG, rounds=2)
    assert alice.handle(MembersChanged((BOB,)), 0.0) == []
    assert alice.handle(Resumed(Round(0), WEIGHTS), 0.0) == [
        SetTimer(PULL_S, PullAgain(1)),
        Send(BOB, Want(b"", 0)),
        Sample(BOOT, 0, 8),
        SetTimer(FRAME_S, FrameEnds(0)),
    ]
    assert alice.handle(TimerFired(FrameEnds(0)), 0.5) == [CloseInner()]


def test_what_was_measured_is_signed_added_pushed_and_the_next_is_measured() -> None:
    alice = peer(BOB, CAROL)
    one = frame(ALICE, scalars=b"\x05\x06\x07")
    assert alice.handle(Sampled(0, b"\x05\x06\x07", 12), 1.0) == [
        AddScalars((one,)),
        Send(BOB, frames(one)),
        Send(CAROL, frames(one)),
        Sample(BOOT, 3, 5),
        SetTimer(1.5, FrameEnds(3)),
    ]
    assert alice.handle(Sampled(0, b"\x05\x06\x07", 12), 1.1) == []  # said twice


def test_rounds_close_with_what_came_from_others_and_the_last_one_ends_the_run() -> None:
    alice = peer(BOB, rounds=2)
    alice.handle(Sampled(0, bytes(8), 80), 1.0)
    tell(alice, BOB, frames(frame()))
    effects = alice.handle(Sampled(8, bytes(8), 80), 2.0)
    horizon = digest_of(packed({name(ALICE): 16, name(BOB): 2}))
    assert of(Closed, effects) == [
        Closed(Round(1), 80, Gathered(Round(1), 2, 1, horizon), False, ""),
    ]
    assert effects[-1] == Finished(Round(2))
    late = frame(BOB, 2)
    assert tell(alice, BOB, frames(late)) == []  # the worker has the others still to add
    assert alice.handle(Added(), 3.0) == []
    assert alice.handle(Added(), 3.0) == [AddScalars((late,))]


def test_a_round_without_others_is_closed_alone() -> None:
    effects = peer().handle(Sampled(0, bytes(8), 80), 1.0)
    assert of(Closed, effects) == [
        Closed(Round(0), 80, None, False, "no scalars of others came"),
    ]


def test_a_frame_is_open_for_longer_where_there_are_many_authors() -> None:
    crowd = SpsaConfig(inner_steps=8, base_scalars=100, expected_peers=640)
    alice = machine(0, crowd, rounds=2)
    effects = alice.handle(Resumed(Round(0), WEIGHTS), 0.0)
    assert effects[-1] == SetTimer(640 / spsa.FRAMES_PER_S, FrameEnds(0))


def test_several_samples_a_step_are_as_many_scalars() -> None:
    config = SpsaConfig(inner_steps=8, samples=16)
    alice = machine(0, config, rounds=2)
    assert Sample(BOOT, 0, 4) in alice.handle(Resumed(Round(0), WEIGHTS), 0.0)
    effects = alice.handle(Sampled(0, bytes(32), 8), 1.0)
    assert Sample(BOOT, 2, 4) in effects
    assert of(Blame, tell(alice, BOB, frames(frame(scalars=bytes(16))))) == []
    assert of(Blame, tell(alice, BOB, frames(frame(first=16, scalars=bytes(8), step=1)))) != []


# --- what others send -------------------------------------------------------------------------


def test_frames_of_others_are_added_once_in_the_order_of_their_log() -> None:
    alice = peer(BOB)
    one, two, three = frame(), frame(BOB, 2), frame(BOB, 4)
    assert tell(alice, BOB, frames(one)) == [AddScalars((one,))]
    assert tell(alice, CAROL, frames(one, three)) == []  # known, and after a gap
    assert tell(alice, CAROL, frames(two, three)) == []  # the worker is busy
    assert alice.handle(Added(), 1.0) == [AddScalars((two, three))]
    assert alice.logs.horizon == {name(BOB): 6}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (SignedFrame(b"\xff", bytes(64)), "not an array"),
        (SignedFrame(codec.encode(frame()), bytes(64)), "not signed by"),
        (signed(frame(), by=CAROL), "not signed by"),
        (signed(frame(ALICE), by=BOB), "not signed by"),
        (signed(frame(step=319)), "a frame of 2 scalars from step 319 on, in a run of 320 steps"),
        (signed(frame(first=9, step=8)), "a frame of step 8 after 9 scalars"),
    ],
)
def test_who_passes_on_a_frame_that_is_none_is_blamed(bad: SignedFrame, reason: str) -> None:
    alice = peer(BOB)
    effects = tell(alice, BOB, Frames((bad, signed(frame(CAROL))), True))
    (blame,) = of(Blame, effects)
    assert isinstance(blame, Blame)
    assert blame.peer == BOB
    assert reason in blame.reason
    assert alice.logs.horizon == {}


def test_who_signs_two_frames_of_one_place_is_blamed_once_and_the_first_counts() -> None:
    alice = peer(BOB, CAROL)
    tell(alice, BOB, frames(frame()))
    other = frame(scalars=b"\x03\x04")
    assert tell(alice, CAROL, frames(other)) == [Blame(BOB, "signed two frames of one place")]
    assert tell(alice, CAROL, frames(other)) == []
    forged = Frames((signed(frame(scalars=b"\x09\x09"), by=CAROL),), False)
    assert tell(peer_with(frame()), CAROL, forged) != [Blame(BOB, "signed two frames of one place")]
    assert alice.logs.answer({}) == frames(frame())


def peer_with(*some: Frame) -> Spsa:
    """Alice, who has these."""
    alice = peer(BOB, CAROL)
    tell(alice, BOB, frames(*some))
    return alice


def test_a_slow_worker_bounds_what_waits_for_it_and_the_rest_is_asked_for_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MAX_WAITING * 1000 < 8 << 20  # some MiB
    monkeypatch.setattr(spsa, "MAX_WAITING", 3)
    alice = peer(BOB)
    many = [frame(BOB, 2 * n) for n in range(10)]
    tell(alice, BOB, frames(*many[:1]))
    tell(alice, BOB, frames(*many[1:]))
    assert alice.logs.horizon == {name(BOB): 8}
    assert alice.handle(Added(), 2.0) == [AddScalars(tuple(many[1:4]))]
    tell(alice, BOB, frames(*many[4:]))
    assert alice.logs.horizon == {name(BOB): 14}


def test_a_log_that_has_no_place_is_left_out_and_ours_without_one_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainers.logs.MAX_LOGS", 2)
    alice = machine(0, CONFIG, rounds=40)
    full = {LogId(bytes([n]) * 8): 5 for n in (1, 2)}
    effects = alice.handle(Resumed(Round(0), WEIGHTS, packed(full)), 0.0)
    assert effects == [Wait(spsa.FULL, None, spsa.FULL_S), SetTimer(PULL_S, PullAgain(1))]
    assert tell(alice, BOB, frames(frame())) == []
    assert alice.logs.horizon == full


def test_a_log_that_found_its_place_taken_while_it_was_measured_adds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainers.logs.MAX_LOGS", 1)
    alice = peer(BOB)
    tell(alice, BOB, frames(frame()))
    assert of(AddScalars, alice.handle(Sampled(0, bytes(3), 1), 1.0)) == []
    assert alice.logs.horizon == {name(BOB): 2}


# --- asking and giving ------------------------------------------------------------------------


def test_asks_every_two_seconds_and_sooner_while_there_is_more_and_something_new() -> None:
    alice = peer(BOB)
    again = alice.handle(TimerFired(PullAgain(1)), 2.0)
    assert again == [SetTimer(4.0, PullAgain(1)), Send(BOB, Want(b"", 0))]
    assert alice.handle(TimerFired(PullAgain(0)), 2.0) == []  # of a former worker
    assert of(SetTimer, tell(alice, BOB, frames(frame()), 2.5)) == []
    assert of(SetTimer, tell(alice, BOB, frames(frame(), more=True), 2.5)) == []  # nothing new
    carols = frames(frame(CAROL), more=True)
    assert of(SetTimer, tell(alice, CAROL, carols, 2.5)) == []  # was not asked
    effects = tell(alice, BOB, frames(frame(BOB, 2), more=True), 2.5)
    assert of(SetTimer, effects) == [SetTimer(2.5 + AGAIN_S, PullAgain(2))]
    more = alice.handle(TimerFired(PullAgain(2)), 3.5)
    assert more == [
        SetTimer(5.5, PullAgain(2)),
        Send(BOB, Want(packed({name(BOB): 4, name(CAROL): 2}), 0)),
    ]
    assert alice.handle(TimerFired(PullAgain(1)), 4.0) == []


def test_gives_what_is_lacking_and_is_silent_if_nothing_is() -> None:
    alice = peer_with(frame(), frame(BOB, 2))
    assert tell(alice, CAROL, Want(b"", 0)) == [Send(CAROL, frames(frame(), frame(BOB, 2)))]
    some = Want(packed({name(BOB): 2}), 0)
    assert tell(alice, CAROL, some) == [Send(CAROL, frames(frame(BOB, 2)))]
    assert tell(alice, CAROL, Want(packed({name(BOB): 4}), 0)) == []
    assert tell(alice, CAROL, Want(packed({name(BOB): 9, name(DAVE): 1}), 0)) == []


def test_gives_two_messages_at_a_time_and_no_more_than_a_thin_line_bears() -> None:
    alice = peer(BOB, CAROL, rounds=80)
    for first in (0, 180, 360):
        tell(alice, BOB, frames(*(frame(BOB, first + 2 * n) for n in range(90))))
    one, two = (alice.logs.answer({}, after) for after in (0, 96))
    assert (len(one.frames), len(two.frames), two.more) == (96, 96, True)
    assert tell(alice, CAROL, Want(b"", 0), now=5.0) == [Send(CAROL, one), Send(CAROL, two)]
    gives_again_at = 5.0 + 192 / GIVEN_PER_S - GIVEN_S
    assert tell(alice, DAVE, Want(b"", 0), now=gives_again_at - 0.01) == []
    assert len(tell(alice, DAVE, Want(b"", 0), now=gives_again_at)) == 2


def test_who_lacks_what_was_dropped_and_has_less_is_told_and_who_has_more_is_not() -> None:
    alice = machine(0, CONFIG, rounds=40)
    alice.handle(Resumed(Round(0), WEIGHTS, packed({name(BOB): 50})), 0.0)
    tell(alice, BOB, frames(frame(BOB, 50), frame(CAROL)))
    assert tell(alice, DAVE, Want(packed({name(BOB): 48}), 0)) == [Send(DAVE, Behind())]
    assert tell(alice, DAVE, Want(packed({name(BOB): 50}), 0)) == [
        Send(DAVE, frames(*sorted([frame(BOB, 50), frame(CAROL)], key=lambda f: name(f.author))))
    ]
    more = packed({name(BOB): 48, name(DAVE): 60})
    assert tell(alice, DAVE, Want(more, 0)) == [Send(DAVE, frames(frame(CAROL)))]


def test_takes_over_a_sum_once_three_members_say_that_it_is_behind() -> None:
    alice = peer(BOB, CAROL, DAVE)
    asked: list[PeerId] = []
    effects: list[Effect] = []
    while not effects and len(asked) < 40:
        asked.append(ask_somebody(alice, 2.0 * len(asked)))
        assert tell(alice, PEERS[7], Behind(), 2.0 * len(asked)) == []  # was not asked
        effects = tell(alice, asked[-1], Behind(), 2.0 * len(asked))
    assert (set(asked), effects) == ({BOB, CAROL, DAVE}, [CatchUp(asked[-1])])


def test_one_sum_is_taken_over_at_a_time() -> None:
    alice = peer(BOB)
    assert tell(alice, ask_somebody(alice, 2.0), Behind()) == [CatchUp(BOB)]
    assert tell(alice, ask_somebody(alice, 4.0), Behind()) == []
    alice.handle(CatchUpFailed("gone"), 5.0)
    assert tell(alice, ask_somebody(alice, 6.0), Behind()) == [CatchUp(BOB)]


def ask_somebody(alice: Spsa, now: float) -> PeerId:
    """It is time for her to ask; whom she asks."""
    (ask,) = of(Send, alice.handle(TimerFired(PullAgain(1)), now))
    assert isinstance(ask, Send)
    return ask.to


def test_one_of_three_that_says_so_is_believed_if_nobody_helps_for_long() -> None:
    alice = peer(BOB, CAROL, DAVE)
    told = {}
    for n in range(1, 60):
        if ask_somebody(alice, 2.0 * n) == BOB:
            told[n] = tell(alice, BOB, Behind(), 2.0 * n)
    (believed, *_) = [n for n, effects in told.items() if effects]
    assert told[believed] == [CatchUp(BOB)]
    assert believed - min(told) > BEHIND_ASKS * 3


# --- the worker comes and goes ----------------------------------------------------------------


def test_a_worker_that_lost_some_is_told_it_again_and_measures_the_same_step_anew() -> None:
    alice = peer(BOB)
    mine, theirs = frame(ALICE, scalars=bytes(3)), frame()
    alice.handle(Sampled(0, bytes(3), 1), 1.0)
    tell(alice, BOB, frames(theirs))
    alice.handle(InnerFailed("died"), 1.0)
    assert alice.handle(TimerFired(FrameEnds(3)), 1.0) == [CloseInner()]
    assert of(Send, alice.handle(TimerFired(PullAgain(1)), 1.0)) == []
    effects = alice.handle(Resumed(Round(0), WEIGHTS), 2.0)
    both = tuple(sorted((mine, theirs), key=lambda f: name(f.author)))
    assert of(AddScalars, effects) == [AddScalars(both)]
    assert Sample(BOOT, 3, 5) in effects
    assert alice.handle(Sampled(0, bytes(3), 1), 2.0) == []


def test_a_worker_that_lost_more_than_is_kept_goes_on_with_a_new_log() -> None:
    """What it signed in the old one others may have: it would sign two frames of one place."""
    alice = after_two_bases()
    tell(alice, BOB, frames(frame()))
    alice.handle(OuterFailed("died"), 1.0)
    older = {name(ALICE): 48}
    effects = alice.handle(Resumed(Round(0), WEIGHTS, packed(older)), 2.0)
    assert of(AddScalars, effects) == [AddScalars((frame(),))]
    assert alice.logs.horizon == older | {name(BOB): 2}
    (sample,) = of(Sample, effects)
    assert isinstance(sample, Sample)
    assert (sample.boot != BOOT, sample.step) == (True, 208)
    (added, *_) = alice.handle(Sampled(208, bytes(2), 1), 3.0)
    assert isinstance(added, AddScalars)
    assert (added.frames[0].boot, added.frames[0].first) == (sample.boot, 0)


def test_who_says_that_our_log_has_more_than_we_made_does_not_stop_it() -> None:
    alice = machine(0, CONFIG, rounds=40)
    effects = alice.handle(Resumed(Round(0), WEIGHTS, packed({name(ALICE): 7})), 0.0)
    (sample,) = of(Sample, effects)
    assert isinstance(sample, Sample)
    assert sample.boot != BOOT


def test_after_a_sum_was_taken_over_what_it_lacks_is_added_and_its_frames_are_not_ours() -> None:
    alice = peer(BOB)
    tell(alice, BOB, frames(frame(), frame(CAROL), frame(CAROL, 2)))
    tell(alice, BOB, Behind())
    theirs = {name(BOB): 8, name(CAROL): 2}
    effects = alice.handle(Resumed(Round(3), WEIGHTS, packed(theirs)), 2.0)
    assert of(AddScalars, effects) == [AddScalars((frame(CAROL, 2),))]
    assert Sample(BOOT, 24, 8) in effects
    assert alice.logs.answer({name(BOB): 8}) == Frames((), False)
    assert alice.logs.answer(theirs) == frames(frame(CAROL, 2))


# --- bases ------------------------------------------------------------------------------------


def due(*members: PeerId) -> tuple[Spsa, list[Effect]]:
    """Alice, once a base is due; what she does about it."""
    alice = peer(*members)
    effects: list[Effect] = []
    for n in range(13):
        effects = alice.handle(Sampled(8 * n, bytes(8), 1), 1.0)
    return alice, effects


def test_alone_a_base_is_made_and_frames_build_on_it() -> None:
    alice, effects = due()
    assert of(NameSum, effects) == [NameSum(())]
    assert alice.bases.index == 0
    alice.handle(SumNamed(digest_of(b"that")), 1.0)
    made = signed_base(ALICE, {name(ALICE): 104}, sum=b"that")
    assert alice.bases.newest is not None
    assert alice.bases.newest.signed == made
    (added, *_) = alice.handle(Sampled(104, bytes(8), 1), 1.0)
    assert isinstance(added, AddScalars)
    assert (added.frames[0].base, added.frames[0].authors) == (made.digest, 1)


def test_a_leader_that_is_silent_is_replaced_by_the_next() -> None:
    alice, effects = due(*PEERS[1:5])
    made = of(NameSum, effects)
    timers = of(SetTimer, effects)
    assert SetTimer(1.0 + TERM_S, BaseIsDue(1, 1)) in timers
    for term in range(1, 60):
        effects = alice.handle(TimerFired(BaseIsDue(1, term)), 1.0 + TERM_S * term)
        assert SetTimer(1.0 + TERM_S * (term + 1), BaseIsDue(1, term + 1)) in effects
        if made := made or of(NameSum, effects):
            break
    assert made == [NameSum(())]
    told = alice.handle(SumNamed(digest_of(b"that")), 900.0)
    base = signed_base(ALICE, {name(ALICE): 104}, sum=b"that")
    assert told == [Send(member, base) for member in sorted(PEERS[1:5])]
    assert alice.handle(TimerFired(BaseIsDue(1, 70)), 1000.0) == []


def holder() -> tuple[Spsa, dict[LogId, int]]:
    """Alice, who has 100 scalars of Bob and two more; and a horizon without these."""
    config = SpsaConfig(inner_steps=8, base_scalars=100, expected_peers=2)
    alice = machine(0, config, rounds=40)
    alice.handle(MembersChanged((BOB, CAROL, DAVE)), 0.0)
    alice.handle(Resumed(Round(0), WEIGHTS), 0.0)
    for n in range(50):
        tell(alice, BOB, frames(frame(BOB, 2 * n, authors=1)))
    alice.handle(Added(), 1.0)
    alice.handle(Added(), 1.0)
    return alice, {name(BOB): 100}


def test_a_base_is_adopted_once_our_sum_less_what_is_newer_has_its_name() -> None:
    alice, horizon = holder()
    alice.bases.restart()  # perhaps it led this term itself
    tell(alice, BOB, frames(frame(CAROL)))
    alice.handle(Added(), 1.0)
    base = signed_base(CAROL, horizon, sum=b"right")
    assert tell(alice, CAROL, base) == [NameSum((frame(CAROL),))]
    assert tell(alice, DAVE, base) == []
    alice.handle(SumNamed(digest_of(b"right")), 1.0)
    assert (alice.bases.index, alice.bases.name, alice.bases.authors) == (1, base.digest, 1)
    assert Send(DAVE, base) in tell(alice, DAVE, Want(b"", 0))
    assert Send(DAVE, base) not in tell(alice, DAVE, Want(b"", 1))


def test_a_base_waits_for_its_last_scalars() -> None:
    alice, horizon = holder()
    alice.bases.restart()
    base = signed_base(CAROL, horizon | {name(CAROL): 2}, authors=2, sum=b"right")
    assert tell(alice, CAROL, base) == []
    assert tell(alice, CAROL, frames(frame(CAROL))) == [
        AddScalars((frame(CAROL),)),
        NameSum(()),
    ]


def test_a_base_with_another_sum_is_not_adopted_and_three_leaders_are_followed() -> None:
    alice, horizon = holder()
    alice.bases.restart()
    effects: list[Effect] = []
    for leader in (CAROL, BOB, DAVE):
        assert effects == []
        assert tell(alice, leader, signed_base(leader, horizon, sum=b"other")) == [NameSum(())]
        effects = alice.handle(SumNamed(digest_of(b"right")), 1.0)
    assert effects == [CatchUp(DAVE)]
    assert alice.bases.index == 0


def test_a_leader_whose_sum_is_ours_makes_up_for_those_that_lie() -> None:
    alice, horizon = holder()
    alice.bases.restart()
    effects: list[Effect] = []
    for leader, sum in ((CAROL, b"other"), (BOB, b"other"), (DAVE, b"right")):
        tell(alice, leader, signed_base(leader, horizon, sum=sum))
        effects += alice.handle(SumNamed(digest_of(b"right")), 1.0)
    assert alice.bases.index == 1
    for n in range(50, 100):
        tell(alice, BOB, frames(frame(BOB, 2 * n)))
    alice.handle(Added(), 1.0)
    alice.bases.restart()
    later = signed_base(DAVE, {name(BOB): 200}, index=2, sum=b"other")
    assert of(NameSum, tell(alice, DAVE, later)) == [NameSum(())]
    effects += alice.handle(SumNamed(digest_of(b"right")), 1.0)
    assert of(CatchUp, effects) == []


@pytest.mark.parametrize(
    ("index", "by", "reason"),
    [
        (2, CAROL, "the index is 2 after 100 scalars"),
        (1, BOB, "not signed by"),
    ],
)
def test_a_base_that_is_none_is_blamed_on_who_sent_it(index: int, by: PeerId, reason: str) -> None:
    alice, horizon = holder()
    base = signed_base(CAROL, horizon, index=index)
    if by != CAROL:
        base = SignedBase(base.body, SIGNERS[by].sign(Domain.BASE, RUN, base.body))
    (blame,) = tell(alice, DAVE, base)
    assert isinstance(blame, Blame)
    assert blame.peer == DAVE
    assert reason in blame.reason


def test_a_leader_cannot_make_us_believe_in_many_more_authors_than_there_are() -> None:
    alice, horizon = holder()
    alice.bases.restart()
    tell(alice, CAROL, frames(*(frame(p) for p in PEERS[2:8])))
    everybody = horizon | {name(p): 2 for p in PEERS[2:8]}
    alice.handle(Added(), 1.0)
    assert of(NameSum, tell(alice, CAROL, signed_base(CAROL, everybody, authors=1))) == []
    assert of(NameSum, tell(alice, CAROL, signed_base(CAROL, everybody, authors=7))) == [
        NameSum(())
    ]


def test_a_leader_cannot_do_so_by_leaving_out_an_index_either() -> None:
    alice, horizon = holder()
    alice.bases.restart()
    tell(alice, CAROL, signed_base(CAROL, horizon, sum=b"right"))
    alice.handle(SumNamed(digest_of(b"right")), 1.0)
    assert alice.bases.index == 1
    everybody = {name(BOB): 300} | {name(p): 2 for p in PEERS[2:11]}
    for n in range(50, 150):
        tell(alice, BOB, frames(frame(BOB, 2 * n)))
    tell(alice, CAROL, frames(*(frame(p) for p in PEERS[2:11])))
    while alice.handle(Added(), 1.0):
        alice.bases.restart()
    few, some = (signed_base(CAROL, everybody, index=3, authors=n) for n in (1, 3))
    assert of(NameSum, tell(alice, CAROL, few)) == []
    assert of(NameSum, tell(alice, CAROL, some)) == [NameSum(())]


def test_bases_nobody_can_ever_check_do_not_keep_others_out() -> None:
    alice, horizon = holder()
    alice.bases.restart()
    far = {LogId(bytes([n]) * 8): 10_000 for n in range(9)}
    for n in range(40):
        tell(alice, PEERS[4 + n % 20], signed_base(DAVE, far, index=n + 2))
    assert tell(alice, CAROL, signed_base(CAROL, horizon)) == [NameSum(())]


def test_a_joiner_takes_the_word_of_a_base_that_its_sum_has_more_than() -> None:
    """It could ask for another sum for ever: that has more than the base, too."""
    alice = machine(0, CONFIG, rounds=40)
    alice.handle(MembersChanged((BOB,)), 0.0)
    alice.handle(Resumed(Round(0), WEIGHTS, packed({name(BOB): 110, name(CAROL): 30})), 0.0)
    base = signed_base(BOB, {name(BOB): 90, name(CAROL): 20}, authors=2)
    assert tell(alice, BOB, base) == []
    assert (alice.bases.index, alice.bases.authors) == (1, 2)


@pytest.mark.parametrize("is_right", [True, False])
def test_a_joiner_that_began_at_a_base_checks_it_with_what_came_since(is_right: bool) -> None:
    alice = machine(0, CONFIG, rounds=40)
    alice.handle(MembersChanged((BOB,)), 0.0)
    horizon = {name(BOB): 90, name(CAROL): 20}
    alice.handle(Resumed(Round(0), WEIGHTS, packed(horizon)), 0.0)
    since = frame(BOB, 90)
    tell(alice, BOB, frames(since))
    base = signed_base(BOB, horizon, authors=2, sum=b"the sum")
    assert of(NameSum, tell(alice, BOB, base)) == [NameSum((since,))]
    alice.handle(SumNamed(digest_of(b"the sum" if is_right else b"another")), 1.0)
    assert alice.bases.index == is_right


def after_two_bases() -> Spsa:
    """Alice, alone: the frames of the first base are dropped."""
    alice, _ = due()
    alice.handle(SumNamed(digest_of(b"one")), 1.0)
    assert len(alice.logs.answer({}).frames) == 13
    for n in range(13, 26):
        alice.handle(Sampled(8 * n, bytes(8), 1), 1.0)
    alice.handle(SumNamed(digest_of(b"two")), 1.0)
    return alice


def test_logs_are_cut_at_the_base_before_the_newest() -> None:
    alice = after_two_bases()
    assert alice.bases.index == 2
    assert alice.logs.answer({}).frames == ()
    assert len(alice.logs.answer({name(ALICE): 104}).frames) == 13


# --- several peers ----------------------------------------------------------------------------

SMALL = SpsaConfig(inner_steps=64, base_scalars=100, expected_peers=4)


def world(seed: int, *, peers: int = 4, rounds: int = 3, loss: float = 0.3) -> Pump:
    return Pump([machine(n, SMALL, rounds=rounds) for n in range(peers)], seed=seed, loss=loss)


def check_equal(pump: Pump) -> None:
    """All have the same, each frame once, and nobody was blamed."""
    nodes = list(pump.nodes.values())
    assert len({node.sum.name(()) for node in nodes}) == 1
    assert [blame for node in nodes for blame in node.of(Blame)] == []


@pytest.mark.parametrize("seed", range(5))
def test_all_end_with_the_same_sum_whatever_is_lost_doubled_or_late(seed: int) -> None:
    pump = world(seed)
    pump.settle()
    check_equal(pump)
    (horizon,) = {packed(node.sum.horizon) for node in pump.nodes.values()}
    assert horizon == packed({name(p): 192 for p in PEERS[:4]})
    assert all(node.machine.bases.index >= 2 for node in pump.nodes.values())


@pytest.mark.parametrize("seed", range(5))
def test_workers_that_crash_and_lose_what_they_had_not_saved_end_equal(seed: int) -> None:
    pump = world(seed, rounds=4)
    chance = random.Random(seed)
    for _ in range(12):
        for _ in range(chance.randrange(400)):
            pump.step()
        pump.crash(chance.choice(PEERS[:4]))
    pump.settle()
    check_equal(pump)


@pytest.mark.parametrize("seed", range(3))
def test_a_joiner_within_the_first_base_needs_logs_alone(seed: int) -> None:
    pump = world(seed, peers=2, rounds=1)
    pump.run(lambda: all(node.finished for node in pump.nodes.values()))
    joiner = pump.add(machine(2, SMALL, rounds=1))
    pump.settle()
    check_equal(pump)
    assert joiner.of(CatchUp) == []


@pytest.mark.parametrize("from_sum", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_j7_who_joins_late_reaches_the_same_sum(seed: int, from_sum: bool) -> None:
    pump = world(seed, peers=3, rounds=4)
    pump.run(lambda: pump.nodes[ALICE].machine.bases.index >= 2)
    joiner = pump.add(machine(3, SMALL, rounds=4), donor=BOB if from_sum else None)
    pump.settle()
    check_equal(pump)
    assert len(joiner.of(CatchUp)) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_a_node_that_starts_again_and_one_that_is_killed_leave_the_others_equal(seed: int) -> None:
    pump = world(seed, rounds=4)
    pump.run(lambda: pump.nodes[BOB].machine.round >= 2)
    gone = pump.kill(BOB)
    for _ in range(500):
        pump.step()
    pump.kill(CAROL)
    again = pump.add(machine(1, SMALL, rounds=4, boot=b"later"))
    again.saved = gone.saved
    pump.crash(BOB)  # so that it begins from its own disk
    pump.settle()
    check_equal(pump)
    assert name(BOB, b"later---") in again.sum.horizon


@pytest.mark.parametrize("seed", range(2))
def test_halves_that_were_apart_for_many_bases_end_with_the_longer_history(seed: int) -> None:
    pump = world(seed, rounds=8, loss=0.1)
    pump.cut = lambda one, other: (one in PEERS[:2]) != (other in PEERS[:2])
    pump.see()
    pump.run(lambda: min(node.machine.bases.index for node in pump.nodes.values()) >= 3)
    pump.cut = lambda one, other: False
    pump.see()
    pump.settle()
    check_equal(pump)


@pytest.mark.parametrize("seed", range(2))
def test_peers_that_saw_different_frames_of_a_liar_end_equal(seed: int) -> None:
    pump = world(seed, rounds=10, loss=0.0)
    liar = PEERS[9]
    for id, scalars in zip(PEERS[:4], (b"\x01", b"\x01", b"\x01", b"\x02"), strict=True):
        lie = frame(liar, scalars=scalars)
        pump.nodes[id].inbox.append((Received(liar, frames(lie)), None))
    pump.settle()
    assert len({node.sum.name(()) for node in pump.nodes.values()}) == 1
    assert {b.peer for n in pump.nodes.values() for b in n.of(Blame) if isinstance(b, Blame)} <= {
        liar
    }


def test_a_plain_sum_depends_on_each_frame_once() -> None:
    one, other = PlainSum(ALICE, CONFIG), PlainSum(ALICE, CONFIG)
    one.add([frame(), frame(CAROL), frame(BOB, 2), frame()])
    other.add([frame(CAROL), frame(), frame(BOB, 2)])
    assert one.name([]) == other.name([])
    assert one.name([frame(CAROL)]) != other.name([])
