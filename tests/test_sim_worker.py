"""A simulated worker: what it answers, when, and from which weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from small_sim import Script, carry_out, digest, name

from node.sim.clock import Clock
from node.sim.peer import Conditions
from node.sim.toy import ToyLearner
from node.sim.worker import Speed
from node.sim.world import World
from protocol.algorithms import DilocoConfig, LocalConfig
from protocol.ids import Digest, Round
from trainers.effects import (
    ApplyOuter,
    CatchUp,
    CloseInner,
    Effect,
    RunInner,
    Share,
    Snapshot,
)
from trainers.events import (
    CatchUpFailed,
    Event,
    InnerDone,
    InnerFailed,
    OuterDone,
    OuterFailed,
    OuterRefused,
    Resumed,
    SnapshotDone,
)
from trainers.local import Local

CONFIG = DilocoConfig(inner_steps=10, outer_lr=1.0, outer_momentum=0.0, mix=0.5)
LATENCY_S = 0.1
SPEED = Speed(step_s=1.0, tokens_per_step=7, snapshot_s=0.5, outer_s=0.5, restart_s=5.0)


def world() -> World:
    return World(1, Conditions(latency_s=(LATENCY_S, LATENCY_S)))


def add(
    world: World, n: int, then: Callable[[Event], list[Effect]] = lambda _: []
) -> tuple[Script, ToyLearner]:
    script, learner = Script(then), ToyLearner(name(n), np.ones(4), CONFIG)
    world.add(name(n), script, learner, SPEED)
    return script, learner


def on(kind: type, *effects: Effect) -> Callable[[Event], list[Effect]]:
    return lambda event: list(effects) if isinstance(event, kind) else []


def ask(world: World, at: float, n: int, *effects: Effect) -> None:
    """The trainer of peer `n` asks for this, whatever it is told."""

    def carry_all_out() -> None:
        for effect in effects:
            carry_out(world, name(n), effect)

    world.clock.at(at, carry_all_out)


def test_inner_steps_take_their_time_and_count_since_the_last_snapshot() -> None:
    here = world()
    script, _ = add(here, 0, on(Resumed, RunInner(Round(0), 10)))
    ask(here, 12.0, 0, Snapshot(Round(0), 0), RunInner(Round(1), 3))
    here.run_until(30.0)
    ends = [(at, event) for at, event in script.heard(InnerDone)]
    assert ends == [(10.0, InnerDone(10, 70)), (15.0, InnerDone(3, 21))]


def test_closed_early_the_worker_stops_at_the_next_step_boundary() -> None:
    here = world()
    script, _ = add(here, 0, on(Resumed, RunInner(Round(0), 10)))
    ask(here, 4.3, 0, CloseInner())
    here.run_until(30.0)
    assert script.heard(InnerDone) == [(5.0, InnerDone(5, 35))]


def test_an_outer_step_may_come_while_inner_steps_run() -> None:
    here = world()
    script, learner = add(here, 0, on(Resumed, RunInner(Round(0), 10)))
    ask(here, 10.5, 0, Snapshot(Round(0), 0), RunInner(Round(1), 20))

    def apply() -> None:
        (mine,) = here.peers[name(0)].worker.held
        share = Share(mine, Round(0), 1.0)
        carry_out(here, name(0), ApplyOuter(Round(1), 0, mine, (share,)))

    here.clock.at(15.2, apply)
    here.run_until(40.0)
    assert script.heard(OuterDone) == [(15.7, OuterDone(Round(1), learner.weights()))]
    assert script.heard(InnerDone)[-1] == (30.5, InnerDone(20, 140))
    assert here.peers[name(0)].worker.round == 1
    twin = ToyLearner(name(0), np.ones(4), CONFIG)
    twin.train(Round(0), 10)
    mine, _, content = twin.snapshot(Round(0), 0)
    twin.train(Round(1), 5)
    twin.outer(ApplyOuter(Round(1), 0, mine, (Share(mine, Round(0), 1.0),)), {mine: content})
    twin.train(Round(1), 15)
    assert np.allclose(learner.theta_P, twin.theta_P, atol=1e-12)


def test_two_snapshots_may_be_open_and_the_older_one_is_applied_later() -> None:
    here = world()
    script, _ = add(here, 0, on(Resumed, RunInner(Round(0), 2)))
    ask(here, 2.1, 0, Snapshot(Round(0), 0), RunInner(Round(1), 2))
    ask(here, 4.2, 0, Snapshot(Round(1), 0))

    def apply() -> None:
        older, newer = here.peers[name(0)].worker.held
        carry_out(here, name(0), ApplyOuter(Round(1), 0, older, ()))
        assert newer in here.peers[name(0)].worker.held

    here.clock.at(5.0, apply)
    here.run_until(10.0)
    assert [
        event.round for _, event in script.heard(OuterDone) if isinstance(event, OuterDone)
    ] == [1]


def test_a_share_that_is_none_is_refused_by_name() -> None:
    here = world()
    script, _ = add(here, 0, on(Resumed, RunInner(Round(0), 1)))
    ask(here, 1.1, 0, Snapshot(Round(0), 0))
    here.peers[name(0)].worker.held[digest("theirs")] = "nonsense"
    share = Share(digest("theirs"), Round(0), 1.0)
    ask(here, 2.0, 0, ApplyOuter(Round(1), 0, None, (share,)))
    here.run_until(5.0)
    refused = OuterRefused(digest("theirs"), "a payload that is no vector")
    assert script.heard(OuterRefused) == [(2.5, refused)]
    assert here.peers[name(0)].worker.round == 0


def test_a_worker_that_dies_fails_what_it_was_asked_for_and_comes_back_as_it_was() -> None:
    here = world()
    script, learner = add(here, 0, on(Resumed, RunInner(Round(0), 10)))
    before = learner.weights()
    here.clock.at(3.0, here.crash_worker, name(0))
    here.run_until(5.0)
    ask(here, 6.0, 0, ApplyOuter(Round(1), 0, None, ()))
    here.run_until(8.0)
    told = [(at, type(event)) for at, event in script.told]
    assert told == [(0.0, Resumed), (3.0, InnerFailed), (6.0, OuterFailed), (8.0, Resumed)]
    assert script.told[-1][1] == Resumed(Round(0), before)
    assert np.array_equal(learner.theta_P, np.zeros(4))


def later_state(here: World, n: int, round: int) -> Digest:
    """Peer `n` is at the start of `round`, with weights of its own."""
    worker = here.peers[name(n)].worker
    learner = worker.learner
    learner.train(Round(0), round)
    worker.apply_outer(ApplyOuter(Round(round), 0, None, ()))
    here.run_until(here.clock.now + 1.0)
    return learner.weights()


def test_a_state_is_taken_over_after_its_transfer_and_nothing_older_is_answered() -> None:
    here = world()
    script, learner = add(here, 0, on(Resumed, RunInner(Round(0), 10)))
    add(here, 1)
    theirs = later_state(here, 1, 5)
    ask(here, 2.0, 0, CatchUp(name(1)))
    here.run_until(60.0)
    transfer_s = learner.state_bytes / 5e6
    resumed_at = round(2.0 + 2 * LATENCY_S + transfer_s, 3)
    assert script.heard(Resumed)[1:] == [(resumed_at, Resumed(Round(5), theirs))]
    assert script.heard(InnerDone) == [(resumed_at + 10, InnerDone(10, 70))]
    assert here.peers[name(0)].worker.round == 5


def test_catching_up_fails_where_the_weights_are_the_same_or_there_is_nobody() -> None:
    here = world()
    script, _ = add(here, 0)
    add(here, 1)
    ask(here, 2.0, 0, CatchUp(name(1)))
    ask(here, 20.0, 0, CatchUp(name(7)))
    here.run_until(60.0)
    reasons = [event.reason for _, event in script.told if isinstance(event, CatchUpFailed)]
    assert reasons == ["its source has the same weights", "its source is gone"]


def test_of_two_histories_of_one_round_the_other_one_may_be_taken_over() -> None:
    here = world()
    script, _ = add(here, 0)
    add(here, 1)
    later_state(here, 0, 3)
    learner = here.peers[name(1)].worker.learner
    learner.train(Round(0), 9)
    here.peers[name(1)].worker.apply_outer(ApplyOuter(Round(3), 0, None, ()))
    here.run_until(4.0)
    ask(here, 5.0, 0, CatchUp(name(1)))
    here.run_until(30.0)
    assert script.told[-1][1] == Resumed(Round(3), learner.weights())


def test_a_worker_that_dies_while_catching_up_comes_back_once_and_from_its_own_state() -> None:
    here = world()
    script, _ = add(here, 0)
    add(here, 1)
    later_state(here, 1, 5)
    ask(here, 2.0, 0, CatchUp(name(1)))
    here.clock.at(2.5, here.crash_worker, name(0))
    here.run_until(60.0)
    assert [(at, event) for at, event in script.heard(Resumed)][1:] == [
        (7.5, Resumed(Round(0), here.peers[name(0)].worker.saved.weights))
    ]
    assert script.heard(CatchUpFailed) == []


def test_times_without_training_are_added_up() -> None:
    here = world()
    add(here, 0, on(Resumed, RunInner(Round(0), 10)))
    ask(here, 10.2, 0, RunInner(Round(0), 12))
    ask(here, 15.0, 0, RunInner(Round(0), 14))
    here.run_until(30.0)
    still = here.peers[name(0)].worker.still
    assert (still.times, round(still.total_s, 3), round(still.longest_s, 3)) == (1, 2.8, 2.8)


def test_local_trains_every_round_though_it_never_takes_a_snapshot() -> None:
    here = world()
    learner = ToyLearner(name(0), np.ones(4), LocalConfig(inner_steps=5))
    here.add(name(0), Local(LocalConfig(inner_steps=5), rounds=3), learner, SPEED)
    here.run_until(60.0)
    peer = here.peers[name(0)]
    assert (peer.worker.round, peer.closed_at) == (3, 3 * (5 + 0.5))


def test_snapshots_are_served_once_they_are_encoded() -> None:
    here = world()
    script, _ = add(here, 0, on(Resumed, RunInner(Round(4), 1)))
    ask(here, 1.1, 0, Snapshot(Round(4), 0))
    here.run_until(1.4)
    assert here.peers[name(0)].worker.held == {}
    here.run_until(2.0)
    ((at, done),) = script.heard(SnapshotDone)
    assert isinstance(done, SnapshotDone)
    assert (at, done.round, done.fragment, done.size_bytes) == (1.6, 4, 0, 1_000_000)
    assert list(here.peers[name(0)].worker.held) == [done.digest]


def test_things_of_one_instant_are_done_in_the_order_in_which_they_were_asked_for() -> None:
    clock, done = Clock(), list[int]()
    clock.at(2.0, done.append, 0)
    clock.after(2.0, done.append, 1)
    clock.at(1.0, clock.at, 2.0, done.append, 2)
    clock.after(0.5, done.append, 3)
    clock.run_until(3.0)
    assert (done, clock.now) == ([3, 0, 1, 2], 3.0)
