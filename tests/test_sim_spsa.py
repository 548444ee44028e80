"""spsa under virtual time: the toy in a swarm on thin lines, and the real model."""

from __future__ import annotations

import numpy as np
import torch
from samples import spec
from small_sim import spec_of
from torch import Generator

from node.sim.cast import HonestSigner
from node.sim.learners import Learners, Measured
from node.sim.line import MBIT, Line
from node.sim.peer import Conditions
from node.sim.spsa import SummedLearner, SummedLearners
from node.sim.toy_scalars import ScalarToys
from node.sim.worker import Speed
from node.sim.world import World
from node.worker.materials import initial_slow
from protocol.algorithms import SpsaConfig
from protocol.ids import PeerId, Round
from protocol.model import GptConfig, InnerConfig
from protocol.spec import RunSpec
from trainers.data import Validation
from trainers.machines import machine_of
from trainers.model import model_on
from trainers.spsa import Spsa

THIN = Line(up_bytes_per_s=MBIT, down_bytes_per_s=MBIT, latency_s=0.02)
MODEL = GptConfig(layers=1, heads=1, width=16, context=8, vocab=257)
TOKENS_N = torch.randint(0, 20, (2000,), generator=Generator().manual_seed(1)).int() % 7


class Swarm:
    """Peers of one run on thin lines."""

    def __init__(self, run: RunSpec, learners: Learners, *, peers: int, loss: float = 0.1) -> None:
        self.run, self.learners = run, learners
        self.world = World(1, Conditions(latency_s=(0.01, 0.1), loss=loss, doubled=0.05))
        self.ids = [self.enter(n) for n in range(peers)]
        self.world.meet()

    def enter(self, n: int, *, late: bool = False) -> PeerId:
        signer = HonestSigner(bytes([n + 1]) * 32)
        trainer = machine_of(self.run, signer, bytes([n]) * 8)
        learner = self.learners.learner(signer.peer, n)
        speed = Speed(step_s=0.05 * (1 + n % 3))
        if late:
            self.world.join(signer.peer, trainer, learner, speed, THIN)
        else:
            self.world.add(signer.peer, trainer, learner, speed, line=THIN)
        return signer.peer

    def quiet(self, for_s: float = 30.0) -> None:
        """Everybody finishes; then nothing is lost for a while."""
        while any(peer.trains for peer in self.world.peers.values()):
            assert self.world.clock.now < 600.0, "somebody does not finish"
            self.world.run_until(self.world.clock.now + 5.0)
        self.world.conditions = Conditions(latency_s=(0.01, 0.1))
        self.world.run_until(self.world.clock.now + for_s)

    def sums(self) -> set[bytes]:
        return {peer.worker.saved.weights for peer in self.world.peers.values()}

    def horizons(self) -> set[bytes]:
        return {peer.worker.saved.horizon for peer in self.world.peers.values()}

    def peak_bytes_per_s(self) -> float:
        links = [link for peer in self.world.peers.values() for link in (peer.up, peer.down)]
        return max(link.peak(self.world.clock.now) for link in links)

    def machine(self, n: int) -> Spsa:
        trainer = self.world.peers[self.ids[n]].trainer
        assert isinstance(trainer, Spsa)
        return trainer


def test_peers_on_thin_lines_end_equal_though_some_crash_die_and_come_late() -> None:
    run = spec_of(SpsaConfig(inner_steps=50, base_scalars=400, lr=0.02, expected_peers=12))
    run = spec_of(run.trainer, rounds=3)
    toys = ScalarToys(run, lambda n: np.ones(4) + 0.1 * n)
    swarm = Swarm(run, toys, peers=12)
    swarm.world.run_until(4.0)
    swarm.world.crash_worker(swarm.ids[2])
    swarm.world.kill(swarm.ids[3])
    swarm.world.run_until(8.0)
    late = swarm.enter(20, late=True)
    swarm.world.freeze(swarm.ids[4])
    swarm.world.run_until(11.0)
    swarm.world.thaw(swarm.ids[4])
    swarm.quiet()
    assert len(swarm.sums()) == len(swarm.horizons()) == 1
    assert late in swarm.world.peers
    assert swarm.machine(0).bases.index >= 3
    assert swarm.peak_bytes_per_s() < MBIT
    assert swarm.world.blamed == []


def test_the_real_model_ends_equal_everywhere_and_its_loss_is_that_of_the_weights() -> None:
    torch.set_num_threads(1)
    config = SpsaConfig(inner_steps=10, base_scalars=100, lr=0.02)
    run = spec(model=MODEL, inner=InnerConfig(batch=2), trainer=config, rounds=2)
    validation = Validation(TOKENS_N[:200], [1] * MODEL.vocab, MODEL.context)
    models = SummedLearners(run, TOKENS_N, validation)
    swarm = Swarm(run, models, peers=2, loss=0.3)
    start_P = initial_slow(run).phi_P
    assert models.measure(swarm.ids) == Measured(validation.loss(model_on(MODEL, start_P)), 0.0)
    swarm.quiet()
    assert len(swarm.sums()) == 1
    measured = models.measure(swarm.ids)
    learner = swarm.world.peers[swarm.ids[0]].worker.sampler.learner
    assert isinstance(learner, SummedLearner)
    weights_P = learner.summed.weights_P
    assert not torch.equal(weights_P, start_P)
    assert measured == Measured(validation.loss(model_on(MODEL, weights_P)), 0.0)


def test_a_real_sum_is_saved_and_loaded_with_its_horizon() -> None:
    config = SpsaConfig(inner_steps=4)
    run = spec(model=MODEL, inner=InnerConfig(batch=2), trainer=config, rounds=2)
    swarm = Swarm(run, SummedLearners(run, TOKENS_N, Validation(TOKENS_N, [1] * 257, 8)), peers=1)
    swarm.quiet(for_s=3.0)
    (peer,) = swarm.world.peers.values()
    saved = peer.worker.saved
    other = SummedLearner(run, swarm.ids[0], TOKENS_N, initial_slow(run).phi_P)
    assert other.save() != saved
    other.load(saved)
    again = other.save()
    assert (again.round, again.weights, again.horizon) == (Round(2), saved.weights, saved.horizon)
    assert other.state_bytes == 8 * other.summed.subspace.size + 12


def test_frames_wait_longer_the_more_authors_there_are() -> None:
    """All together make no more than a thin line bears, though a peer sees some of them only."""
    sent = {}
    for expected in (3, 320):
        config = SpsaConfig(inner_steps=500, expected_peers=expected)
        run = spec_of(config, rounds=1)
        swarm = Swarm(run, ScalarToys(run, lambda _: np.ones(2)), peers=3, loss=0.0)
        swarm.world.run_until(16.0)
        logs = swarm.machine(0).logs
        sent[expected] = len(logs.answer({}).frames)
    assert sent[320] < 20 < 60 < sent[3]
