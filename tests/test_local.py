"""local by hand: rounds that are only counted."""

from __future__ import annotations

import pytest
from samples import OTHER

from protocol.algorithms import LocalConfig
from protocol.ids import Round, digest_of
from protocol.messages import Abort
from trainers.effects import ApplyOuter, Closed, Finished, RunInner
from trainers.events import (
    Event,
    InnerDone,
    InnerFailed,
    MembersChanged,
    OuterDone,
    OuterFailed,
    Received,
    Resumed,
)
from trainers.local import NOBODY, Local

WEIGHTS = digest_of(b"weights")
R0, R1 = Round(0), Round(1)
STEP = ApplyOuter(R1, 0, None, ())


def machine(rounds: int = 2) -> Local:
    """In round 0, training."""
    trainer = Local(LocalConfig(inner_steps=3), rounds=rounds)
    assert trainer.handle(Resumed(R0, WEIGHTS), 0.0) == [RunInner(R0, 3)]
    return trainer


def test_rounds_follow_each_other_to_the_last_one_and_nothing_is_sent() -> None:
    me = machine()
    assert me.handle(InnerDone(3, 96), 1.0) == [STEP]
    closed = Closed(R0, 96, None, False, NOBODY)
    assert me.handle(OuterDone(R1, WEIGHTS), 1.0) == [closed, RunInner(R1, 3)]
    assert me.handle(InnerDone(3, 96), 2.0) == [ApplyOuter(Round(2), 0, None, ())]
    closed = Closed(R1, 96, None, False, NOBODY)
    assert me.handle(OuterDone(Round(2), WEIGHTS), 2.0) == [closed, Finished(Round(2))]


@pytest.mark.parametrize("lost", [InnerFailed("killed"), OuterFailed("killed")])
def test_a_new_worker_goes_on_where_its_snapshot_is(lost: Event) -> None:
    me = machine()
    me.handle(InnerDone(3, 96), 1.0)
    assert me.handle(lost, 1.0) == []
    assert me.handle(OuterDone(R1, WEIGHTS), 1.0) == []  # of the worker that is gone
    assert me.handle(Resumed(R1, WEIGHTS), 5.0) == [RunInner(R1, 3)]


def test_nobody_is_listened_to() -> None:
    me = machine()
    others = MembersChanged((OTHER.peer,)), Received(OTHER.peer, Abort(WEIGHTS))
    assert [me.handle(event, 1.0) for event in others] == [[], []]
