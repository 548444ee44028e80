from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spsa_pump import PEERS, RUN

from protocol.ids import Digest, PeerId
from protocol.spsa import MAX_FRAMES, MAX_LOGS, Frame, Frames, LogId, SignedFrame, log_id
from trainers.logs import Logs

ALICE, BOB, CAROL = PEERS[:3]


def frame(author: PeerId, first: int, count: int = 2) -> Frame:
    return Frame(
        author=author,
        boot=b"boot----",
        first=first,
        step=first,
        base=Digest(bytes(32)),
        authors=1,
        scalars=bytes(count),
    )


def signed(one: Frame) -> SignedFrame:
    """A name for it: nobody looks inside here."""
    return SignedFrame(f"{one.author}|{one.first}".encode(), bytes(64))


def name(author: PeerId) -> LogId:
    return log_id(RUN, author, b"boot----")


def logs(*some: Frame) -> Logs:
    """With these frames, which the worker was told."""
    found = Logs(RUN)
    for one in some:
        found.add(found.name(one), one, signed(one))
    found.tell(len(some))
    return found


def run_of(author: PeerId, *, until: int, first: int = 0) -> list[Frame]:
    return [frame(author, n) for n in range(first, until, 2)]


def answered(some: Logs, horizon: dict[LogId, int]) -> list[bytes]:
    return [each.body for each in some.answer(horizon).frames]


def bodies(*some: Frame) -> list[bytes]:
    in_order = sorted(some, key=lambda f: (name(f.author), f.first))
    return [signed(each).body for each in in_order]


ALL = run_of(ALICE, until=10) + run_of(BOB, until=6)


def test_the_horizon_says_how_many_of_each_log_are_here() -> None:
    some = logs(*ALL)
    assert some.horizon == {name(ALICE): 10, name(BOB): 6}
    assert (some.scalars, some.count(name(BOB)), some.count(name(CAROL))) == (16, 6, 0)
    assert some.kept(name(BOB), 4) == signed(frame(BOB, 4))
    assert (some.kept(name(BOB), 5), some.kept(name(CAROL), 0)) == (None, None)


def test_the_worker_is_told_in_the_order_in_which_frames_came() -> None:
    some = Logs(RUN)
    for one in (frame(BOB, 0), frame(ALICE, 0), frame(BOB, 2)):
        some.add(some.name(one), one, signed(one))
    assert (some.told, some.scalars_told, some.waiting) == ({}, 0, 3)
    assert some.tell(2) == (frame(BOB, 0), frame(ALICE, 0))
    assert (some.told, some.scalars_told) == ({name(BOB): 2, name(ALICE): 2}, 4)
    assert some.has_told({name(BOB): 2})
    assert not some.has_told({name(BOB): 4})
    assert not some.has_told({name(CAROL): 1})
    assert some.told_beyond({name(ALICE): 2}) == (frame(BOB, 0),)
    assert some.tell(9) == (frame(BOB, 2),)


def test_what_somebody_lacks_is_given_log_by_log_without_gaps() -> None:
    some = logs(*ALL)
    assert answered(some, {}) == bodies(*ALL)
    later = [f for f in ALL if f.author == BOB or f.first >= 4]
    assert answered(some, {name(ALICE): 4}) == bodies(*later)
    assert answered(some, {name(ALICE): 11, name(BOB): 6, name(CAROL): 3}) == []
    some.cut({name(ALICE): 4})
    assert answered(some, {name(ALICE): 2}) == bodies(*run_of(BOB, until=6))


def test_a_long_answer_says_that_there_is_more() -> None:
    some = logs(*run_of(ALICE, until=2 * MAX_FRAMES + 2))
    assert some.answer({name(ALICE): 2}).more is False
    answer = some.answer({})
    assert (len(answer.frames), answer.more) == (MAX_FRAMES, True)


def test_who_lacks_what_was_dropped_is_behind_unless_it_has_more() -> None:
    some = logs(*ALL)
    some.cut({name(ALICE): 4})
    assert some.leaves_behind({})
    assert some.leaves_behind({name(ALICE): 2, name(BOB): 6})
    assert not some.leaves_behind({name(ALICE): 4})
    assert not some.leaves_behind({name(ALICE): 2, name(CAROL): 15})


@given(st.randoms(use_true_random=False))
def test_of_two_that_dropped_what_the_other_lacks_exactly_one_is_behind(
    chance: random.Random,
) -> None:
    one = logs(*run_of(ALICE, until=2 * chance.randint(1, 4)))
    other = logs(*run_of(BOB, until=2 * chance.randint(1, 4)))
    one.cut(one.horizon)
    other.cut(other.horizon)
    assert one.leaves_behind(other.horizon) != other.leaves_behind(one.horizon)


def test_a_worker_that_has_less_is_told_the_rest_again() -> None:
    some = logs(*ALL)
    some.resume({name(ALICE): 4}, forget=False)
    again = [f for f in ALL if f.author == BOB or f.first >= 4]
    assert some.horizon == {name(ALICE): 10, name(BOB): 6}
    assert [signed(f).body for f in some.tell(99)] == bodies(*again)
    assert some.told == some.horizon
    assert answered(some, {}) == bodies(*ALL)


def test_a_sum_that_has_more_is_where_its_logs_go_on() -> None:
    some = logs(*ALL)
    some.resume({name(ALICE): 12, name(BOB): 2}, forget=False)
    assert some.horizon == some.told | {name(BOB): 6}
    assert (some.scalars, some.scalars_told) == (18, 14)
    assert answered(some, {name(ALICE): 10}) == bodies(*run_of(BOB, until=6))
    assert some.tell(99) == (frame(BOB, 2), frame(BOB, 4))


def test_a_worker_that_lost_what_was_dropped_goes_on_from_what_it_has() -> None:
    some = logs(*ALL)
    some.cut({name(ALICE): 6, name(BOB): 2})
    some.resume({name(ALICE): 4}, forget=False)
    assert (some.horizon, some.waiting) == ({name(ALICE): 4}, 0)


def test_of_somebody_elses_sum_no_frame_is_kept() -> None:
    some = logs(*ALL)
    some.resume({name(ALICE): 4, name(BOB): 6}, forget=True)
    assert some.horizon == {name(ALICE): 10, name(BOB): 6}
    assert answered(some, {}) == []
    assert answered(some, {name(ALICE): 4}) == bodies(*run_of(ALICE, first=4, until=10))


def test_there_are_never_more_logs_than_fit_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_LOGS * 12 < 32 * 1024
    monkeypatch.setattr("trainers.logs.MAX_LOGS", 3)
    some = logs(*ALL)
    assert some.has_place(name(CAROL))
    theirs = {LogId(bytes([n]) * 8): 5 for n in (1, 2)}
    some.resume(theirs, forget=False)
    assert some.horizon.items() > theirs.items()
    assert len(some.horizon) == 3
    assert not some.has_place(name(CAROL))
    assert all(some.has_place(id) for id in some.horizon)


@pytest.mark.parametrize("had", [0, 2, 30])
def test_who_is_given_until_there_is_no_more_has_the_same(had: int) -> None:
    full = logs(*run_of(ALICE, until=60), *run_of(BOB, until=300), *run_of(CAROL, until=20))
    there = logs(*run_of(ALICE, until=2 * had))
    by_body = {signed(f).body: f for a in (ALICE, BOB, CAROL) for f in run_of(a, until=300)}
    answer = Frames((), True)
    while answer.more:
        answer = full.answer(there.horizon)
        for each in answer.frames:
            one = by_body[each.body]
            there.add(there.name(one), one, each)
    assert there.horizon == full.horizon
