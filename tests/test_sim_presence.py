"""Who sees whom in a simulated world, and who is shown what a proposer decided."""

from __future__ import annotations

import numpy as np
from small_sim import Script, carry_out, digest, name

from node.sim.line import Line
from node.sim.peer import Conditions
from node.sim.toy import ToyLearner
from node.sim.worker import Speed
from node.sim.world import World
from protocol.algorithms import NolocoConfig
from protocol.ids import PeerId, Round
from protocol.messages import Accept, Decision, Exchange, Have
from trainers.effects import Finished, Publish, Send
from trainers.events import DecisionsSeen

PROPOSED = digest("proposed")
DECIDED = Publish((Decision(PROPOSED, digest("accepted")),))


def swarm(size: int, *, view: int = 64) -> tuple[World, list[Script]]:
    world = World(1, Conditions(presence_s=(1.0, 1.0), expiry_s=10.0, view=view))
    return world, [add(world, n) for n in range(size)]


def add(world: World, n: int, *, late: bool = False) -> Script:
    script, learner = Script(), ToyLearner(name(n), np.ones(2), NolocoConfig())
    if late:
        world.join(name(n), script, learner, Speed(), Line())
    else:
        world.add(name(n), script, learner, Speed())
    return script


def seen(world: World, n: int, at: float) -> set[PeerId]:
    world.run_until(at)
    return set(world.peers[name(n)].view)


def names(*numbers: int) -> set[PeerId]:
    return {name(n) for n in numbers}


def test_peers_see_each_other_after_a_while_and_at_once_if_they_have_met() -> None:
    world, _ = swarm(3)
    assert (seen(world, 0, 0.9), seen(world, 0, 1.1)) == (set(), names(1, 2))
    met, _ = swarm(3)
    met.meet()
    assert seen(met, 0, 0.0) == names(1, 2)


def test_who_says_that_it_goes_is_missed_soon_and_who_vanishes_when_it_expires() -> None:
    world, _ = swarm(4)
    world.run_until(20.0)
    world.leave(name(1))
    world.kill(name(2))
    assert seen(world, 0, 21.4) == names(2, 3)
    assert seen(world, 0, 29.9) == names(2, 3)
    assert seen(world, 0, 30.1) == names(3)


def test_who_has_finished_trains_no_more_and_is_not_seen() -> None:
    world, _ = swarm(2)
    world.run_until(20.0)
    carry_out(world, name(1), Finished(Round(3)))
    assert seen(world, 0, 22.0) == set()


def test_who_is_frozen_for_long_is_missed_until_it_is_thawed() -> None:
    world, _ = swarm(2)
    world.run_until(20.0)
    world.freeze(name(1))
    assert (seen(world, 0, 29.9), seen(world, 0, 30.1)) == (names(1), set())
    world.thaw(name(1))
    assert seen(world, 0, 32.0) == names(1)


def test_a_joiner_is_seen_once_it_has_what_to_train_from() -> None:
    world, _ = swarm(2)
    world.run_until(20.0)
    add(world, 5, late=True)
    assert seen(world, 0, 20.5) == names(1)
    assert seen(world, 0, 25.0) == names(1, 5)
    assert seen(world, 5, 25.0) == names(0, 1)


def test_a_joiner_that_finds_nobody_waits_for_somebody() -> None:
    world, _ = swarm(0)
    script = add(world, 5, late=True)
    world.run_until(25.0)
    add(world, 0)
    world.run_until(60.0)
    assert (len(script.told) > 0, world.peers[name(5)].starting) == (True, False)


def test_a_partition_shows_when_presences_expire_and_a_heal_soon() -> None:
    world, _ = swarm(4)
    world.run_until(20.0)
    world.cut({name(2): 1, name(3): 1})
    assert seen(world, 0, 29.9) == names(1, 2, 3)
    assert (seen(world, 0, 30.1), seen(world, 2, 30.1)) == (names(1), names(3))
    world.heal()
    assert seen(world, 0, 32.0) == names(1, 2, 3)


def test_in_a_large_swarm_each_sees_a_random_part_that_stays_full() -> None:
    world, _ = swarm(40, view=8)
    world.run_until(5.0)
    before = {id: peer.view for id, peer in world.peers.items()}
    assert {len(view) for view in before.values()} == {8}
    assert len({id for view in before.values() for id in view}) > 30
    for n in range(10):
        world.kill(name(n))
    world.run_until(20.0)
    for id, peer in world.peers.items():
        assert len(peer.view) == 8
        assert not set(peer.view) & (names(*range(10)) | {id})
        assert set(before[id]) - names(*range(10)) <= set(peer.view)


def test_newcomers_of_a_large_swarm_are_seen_by_about_as_many_as_others_are() -> None:
    world, _ = swarm(40, view=8)
    world.run_until(5.0)
    for n in range(40, 60):
        add(world, n)
    world.run_until(20.0)
    by = [sum(name(n) in peer.view for peer in world.peers.values()) for n in range(60)]
    old, new = sum(by[:40]) / 40, sum(by[40:]) / 20
    assert 0.6 < new / old < 1.6


def exchange() -> Exchange:
    return Exchange(
        fragment=0,
        proposer=name(0),
        partner=name(1),
        proposer_round=Round(0),
        partner_round=Round(0),
        proposer_digest=PROPOSED,
        partner_digest=digest("accepted"),
        proposer_tokens=1,
        partner_tokens=1,
    )


def test_a_decision_is_shown_to_who_waits_for_it_even_if_its_receipt_is_lost() -> None:
    world, scripts = swarm(3)
    world.conditions = Conditions(presence_s=(1.0, 1.0), loss=1.0)
    world.run_until(5.0)
    carry_out(world, name(1), Send(name(0), Have(exchange())))
    carry_out(world, name(0), DECIDED)
    world.run_until(20.0)
    shown = DecisionsSeen(name(0), DECIDED.decisions)
    assert scripts[1].heard(DecisionsSeen) == [(6.0, shown)]
    assert scripts[2].heard(DecisionsSeen) == []


def test_a_decision_waits_for_a_heal() -> None:
    world, scripts = swarm(2)
    world.run_until(5.0)
    carry_out(world, name(0), DECIDED)
    world.cut({name(1): 1})
    accept = Accept(PROPOSED, Round(0), digest("accepted"), 10, 1)
    carry_out(world, name(1), Send(name(0), accept))
    world.run_until(40.0)
    assert scripts[1].heard(DecisionsSeen) == []
    world.heal()
    world.run_until(60.0)
    assert [at for at, _ in scripts[1].heard(DecisionsSeen)] == [41.0]


def test_a_decision_made_before_is_shown_to_who_asks_late() -> None:
    world, scripts = swarm(2)
    world.run_until(5.0)
    carry_out(world, name(0), DECIDED)
    accept = Accept(PROPOSED, Round(0), digest("accepted"), 10, 1)
    carry_out(world, name(1), Send(name(0), accept))
    world.run_until(40.0)
    assert [at for at, _ in scripts[1].heard(DecisionsSeen)] == [6.0]
