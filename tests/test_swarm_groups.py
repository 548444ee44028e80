"""Groups that average by rosters under virtual time, with loss, churn and a partition."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from node.sim.peer import Conditions
from node.sim.toy import Part, ToyLearner
from node.sim.worker import Speed
from node.sim.world import World
from protocol.algorithms import DilocoConfig, GroupConfig, StreamingConfig, SyncConfig
from protocol.envelope import Signer
from protocol.ids import Digest, PeerId, Round, RunId, digest_of
from trainers.effects import Agreed, Closed, Effect
from trainers.events import Event
from trainers.streaming import Streaming

pytestmark = pytest.mark.sim

RUN = RunId(digest_of(b"run"))
SIGNERS = [Signer(n.to_bytes(4, "big") + bytes(28)) for n in range(24)]
NAMES = [signer.peer for signer in SIGNERS]
DEADLINE_S = 40.0
DILOCO = DilocoConfig(inner_steps=20, round_deadline_s=DEADLINE_S)
STALE = replace(DILOCO, stale=True)
STREAMING = StreamingConfig(inner_steps=40, overlap_steps=2, round_deadline_s=DEADLINE_S)
SYNC = SyncConfig(round_deadline_s=DEADLINE_S)
ALL = (DILOCO, STREAMING, STALE)
BAD = Conditions(loss=0.05, told=0.5, doubled=0.05, unsure=0.05)
FASTEST_S = 0.25
"""A step of the fastest peer: its round takes 5 s, the slowest one's 80 s."""
ROUNDS = 12


class Observer:
    """What an outsider sees of all rounds."""

    def __init__(self) -> None:
        self.contributed: Counter[PeerId] = Counter()
        """Rounds in which a peer's contribution was averaged."""
        self.receipts: Counter[Digest] = Counter()

    def __call__(self, now: float, peer: PeerId, event: Event, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Closed) and isinstance(effect.receipt, Agreed):
                self.contributed[peer] += effect.tokens > 0
                self.receipts[effect.receipt.digest] += 1


def join(
    world: World,
    n: int,
    config: GroupConfig,
    *,
    rounds: int = ROUNDS,
    step_s: float = FASTEST_S,
    donor: PeerId | None = None,
    learner: type[ToyLearner] = ToyLearner,
) -> None:
    """Peer number `n` starts."""
    fragments = 2 if config.KIND == "streaming" else 1
    target = np.random.default_rng(n).normal(size=6)
    trainer = Streaming(
        NAMES[n],
        config,
        run=RUN,
        signer=SIGNERS[n],
        rounds=rounds,
        fragments=fragments,
        max_tokens=20,
        most_claimed=20,
    )
    toy = learner(NAMES[n], target, config, fragments=fragments)
    world.add(NAMES[n], trainer, toy, Speed(step_s=step_s), donor=donor)


def swarm(
    speeds: tuple[int, ...],
    config: GroupConfig,
    *,
    seed: int = 0,
    conditions: Conditions | None = None,
    rounds: int = ROUNDS,
) -> tuple[World, Observer]:
    """Peers whose inner steps take so many times as long as the fastest one's."""
    world = World(seed, conditions or Conditions())
    world.trace = observer = Observer()
    for n, factor in enumerate(speeds):
        join(world, n, config, rounds=rounds, step_s=FASTEST_S * factor)
    return world, observer


def histories(world: World) -> set[tuple[Round, Digest]]:
    """Where all the peers are."""
    return {(peer.worker.round, peer.worker.saved.weights) for peer in world.peers.values()}


def training(world: World) -> list[object]:
    """Those that did not finish."""
    return [(p.id, p.worker.round, p.waiting) for p in world.peers.values() if p.trains]


def chaos(world: World, seed: int, config: GroupConfig) -> None:
    """Deaths, freezes, crashes, a partition and joiners for 80 s; then all is well.

    No worker dies while its node is frozen, or comes back at the very moment of something else:
    the simulated shell then tells the trainer what the former worker answered.
    """
    rng = random.Random(seed)
    size = len(world.peers)
    crashing = set(NAMES[1:size:3])
    thaw_at: dict[PeerId, int] = {}
    for now in range(5, 81, 5):
        world.run_until(float(now))
        for id in [id for id, at in thaw_at.items() if at <= now or now == 80]:
            del thaw_at[id]
            world.thaw(id)
        if now == 25:
            world.cut({id: rng.randrange(2) for id in world.peers})
        if now == 55:
            world.heal()
        awake = sorted(set(world.peers) - set(thaw_at) - crashing)
        if now < 80 and len(awake) > 2:
            frozen = rng.choice(awake)
            world.freeze(frozen)
            thaw_at[frozen] = now + rng.choice((5, 10, 20))
        if now % 10 == 0:
            world.run_until(now + 0.0371)
            world.crash_worker(rng.choice(sorted(crashing & set(world.peers))))
        if now in (20, 45):
            world.kill(rng.choice(sorted(set(world.peers) - set(thaw_at) - crashing)))
        if now in (35, 65):
            join(world, size + now // 30, config, donor=rng.choice(sorted(world.peers)))
    world.conditions = Conditions()


@pytest.mark.parametrize("seed", range(20))
def test_nobody_is_ever_stuck_and_all_end_with_equal_weights(seed: int) -> None:
    config = ALL[seed % len(ALL)]
    speeds = tuple(random.Random(seed).choices((1, 4, 16), k=8))
    world, _ = swarm(speeds, config, seed=seed, conditions=BAD)
    chaos(world, seed, config)
    world.run_until(600.0)
    assert training(world) == []
    assert len(histories(world)) == 1
    assert world.blamed == []
    total = world.total()
    assert total.made > total.missed


@pytest.mark.parametrize("config", ALL)
def test_peers_of_speeds_1_4_16_all_contribute_and_nobody_waits_for_the_slowest(
    config: GroupConfig,
) -> None:
    world, observer = swarm((1, 4, 16), config, rounds=30)
    world.run_until(600.0)
    assert training(world) == []
    assert len(histories(world)) == 1
    fast, middle, slow = (observer.contributed[id] for id in NAMES[:3])
    assert (fast, middle) == (30, 30)
    assert slow >= 8
    assert max(peer.closed_at for peer in world.peers.values()) < 30 * 9  # alone: 30 x 5 s


def test_equal_peers_average_all_they_made_and_fetch_each_payload_once() -> None:
    for config in ALL:
        world, observer = swarm((1,) * 5, config, rounds=8)
        world.run_until(300.0)
        assert [round for round, _ in histories(world)] == [8]
        assert [observer.contributed[id] for id in NAMES[:5]] == [8] * 5, config
        fragment_bytes = world.peers[NAMES[0]].worker.learner.snapshot(Round(0), 0)[1]
        fetched = {peer.stats.payload_bytes for peer in world.peers.values()}
        assert fetched == {8 * 4 * fragment_bytes}, config


def test_sync_averages_every_step_of_all() -> None:
    world, observer = swarm((1, 1, 4), SYNC, rounds=100)
    world.run_until(300.0)
    assert [round for round, _ in histories(world)] == [100]
    for id in NAMES[:3]:
        assert observer.contributed[id] >= 30  # in the first seconds they do not see each other


def test_messages_lost_for_ever_cost_time_and_nothing_else() -> None:
    world, observer = swarm((1, 1, 4, 4, 16), DILOCO, seed=1, conditions=replace(BAD, loss=0.2))
    world.run_until(1500.0)
    assert training(world) == []
    assert len(histories(world)) == 1
    assert world.blamed == []
    assert observer.contributed[NAMES[0]] == ROUNDS


def test_the_halves_of_a_partition_are_one_again_soon_after_it_heals() -> None:
    for seed in range(2):
        world, _ = swarm((1,) * 6, DILOCO, seed=seed, rounds=1000)
        world.run_until(21.3)
        world.cut({id: n % 2 for n, id in enumerate(NAMES[:6])})
        world.run_until(100.0)
        assert len(histories(world)) > 1
        world.heal()
        world.run_until(160.0)
        rounds = sorted(round for round, _ in histories(world))
        assert rounds[-1] - rounds[0] <= 1, seed
        assert max(Counter(round for round, _ in histories(world)).values()) == 1, seed


def test_who_is_cut_off_alone_comes_back_to_the_others() -> None:
    world, _ = swarm((1,) * 4, DILOCO, rounds=40)
    world.run_until(21.3)
    world.cut({NAMES[2]: 1})
    world.run_until(100.0)
    world.heal()
    world.run_until(1000.0)
    assert training(world) == []
    assert len(histories(world)) == 1


def test_the_death_of_a_peer_costs_less_than_a_deadline() -> None:
    for seed in range(4):
        world, _ = swarm((1,) * 4, DILOCO, seed=seed)
        world.run_until(25.0 + seed * 1.7)
        world.kill(NAMES[seed])
        world.run_until(ROUNDS * 7.0 + 30.0)
        assert training(world) == [], seed
        assert len(histories(world)) == 1


def test_a_joiner_contributes_within_two_rounds() -> None:
    for config in ALL:
        world, observer = swarm((1,) * 4, config, rounds=100)
        world.run_until(40.0)
        join(world, 4, config, rounds=100, donor=NAMES[0])
        world.run_until(58.0)
        assert observer.contributed[NAMES[4]] >= 1, config


class Liar(ToyLearner):
    """A peer whose payloads are no numbers."""

    def snapshot(self, round: Round, fragment: int) -> tuple[Digest, int, object]:
        digest, size_bytes, content = super().snapshot(round, fragment)
        assert isinstance(content, Part)
        return digest, size_bytes, replace(content, values_F=content.values_F * np.nan)


def test_a_liar_is_blamed_by_all_and_moves_nobody() -> None:
    world, _ = swarm((1,) * 4, DILOCO)
    join(world, 4, DILOCO, learner=Liar)
    world.run_until(400.0)
    assert {(who, whom) for who, whom, _ in world.blamed} >= {(id, NAMES[4]) for id in NAMES[:4]}
    assert {whom for _, whom, _ in world.blamed} == {NAMES[4]}
    assert training(world) == []
    assert len(histories(world)) == 1


def test_the_seventeenth_and_eighteenth_follow_without_being_averaged() -> None:
    world, observer = swarm((1,) * 18, DILOCO, rounds=4)
    world.run_until(300.0)
    assert training(world) == []
    assert len(histories(world)) == 1
    assert sorted(observer.contributed[id] for id in NAMES[:18]) == [0, 0, *[4] * 16]


def history(seed: int) -> str:
    """A hash of all that happens to some peers in chaos."""
    world, _ = swarm((1, 1, 4, 4, 16, 1), DILOCO, seed=seed, conditions=BAD)
    seen = hashlib.blake2b()
    world.trace = lambda *what: seen.update(repr(what).encode())
    chaos(world, seed, DILOCO)
    return seen.hexdigest()


def test_one_seed_gives_one_history() -> None:
    assert history(3) == history(3)
    assert history(4) != history(3)
