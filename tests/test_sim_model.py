"""The real model under virtual time: every trainer trains, and does what a plain loop does."""

from __future__ import annotations

import pytest
import torch
from samples import spec
from torch import Generator, Tensor

from node.bench.convergence_cells import closed_form_bytes, signers
from node.bench.convergence_run import Measure, Simulated
from node.sim.learners import Measured
from node.sim.model import ModelLearner, ModelLearners, ModelState
from node.sim.worker import Refused
from node.worker.materials import initial_slow
from protocol.algorithms import (
    DilocoConfig,
    LocalConfig,
    NolocoConfig,
    StreamingConfig,
    SyncConfig,
    TrainerConfig,
)
from protocol.ids import Round
from protocol.model import GptConfig, InnerConfig
from protocol.spec import RunSpec
from trainers import data
from trainers.data import Validation
from trainers.effects import ApplyOuter, Share
from trainers.fragments import fragments
from trainers.inner import Inner, lr_at, lr_in

MODEL = GptConfig(layers=1, heads=1, width=16, context=8, vocab=257)
INNER = InnerConfig(batch=2, lr=2e-2)
TOKENS_N = torch.randint(0, 20, (2000,), generator=Generator().manual_seed(1)).int() % 7
"""A text of few symbols: a model that learns at all soon has less than the loss of the start."""


def small(trainer: TrainerConfig, rounds: int) -> RunSpec:
    return spec(model=MODEL, inner=INNER, trainer=trainer, rounds=rounds)


def simulated(run: RunSpec, peers: int) -> Simulated:
    torch.set_num_threads(1)
    measure = Measure(run, Validation(TOKENS_N[:200], [1] * MODEL.vocab, MODEL.context))
    swarm = Simulated(run, [TOKENS_N] * peers, measure, outer_work_s=0.0)
    swarm.run()
    return swarm


TRAINERS: dict[str, TrainerConfig] = {
    "noloco": NolocoConfig(inner_steps=4),
    "noloco by fragment": NolocoConfig(inner_steps=4, fragment_layers=1),
    "noloco, two vectors": NolocoConfig(inner_steps=4, vectors=2, feedback=True),
    "diloco": DilocoConfig(inner_steps=4),
    "diloco, stale": DilocoConfig(inner_steps=4, stale=True, gap_penalty=True),
    "streaming": StreamingConfig(inner_steps=4, fragment_layers=1),
    "sync": SyncConfig(),
    "local": LocalConfig(inner_steps=4),
}
ROUNDS = 6
STEPS = dict.fromkeys(TRAINERS, 24) | {"noloco by fragment": 12, "streaming": 12, "sync": 6}
MISSED = dict.fromkeys(TRAINERS, 0) | {"local": 12}


@pytest.mark.parametrize("kind", TRAINERS)
def test_every_trainer_learns_and_receives_what_the_closed_form_says(kind: str) -> None:
    run = small(TRAINERS[kind], ROUNDS)
    start = Measure(run, Validation(TOKENS_N[:200], [1] * MODEL.vocab, MODEL.context)).of(
        initial_slow(run).phi_P
    )
    result = simulated(run, 2).result(0.0)
    assert result.loss_peer < 0.8 * start
    assert (result.exchanges_missed, result.steps) == (MISSED[kind], STEPS[kind])
    assert result.payload_bytes == closed_form_bytes(run, 2)


@pytest.mark.parametrize("kind", ["diloco", "streaming", "sync"])
def test_peers_that_average_in_a_group_stay_equal(kind: str) -> None:
    run = small(TRAINERS[kind], ROUNDS)
    swarm = simulated(run, 3)
    assert len({learner.weights() for learner in swarm.learners}) == 1
    assert (
        swarm.result(0.0).payload_bytes
        == closed_form_bytes(run, 3)
        == 2 * closed_form_bytes(run, 2)
    )


# --- one peer, beside a plain loop ---------------------------------------------------------------


def plain(run: RunSpec) -> tuple[Inner, Tensor]:
    slow_P = initial_slow(run).phi_P
    return Inner(run.model, run.inner, slow_P.clone()), slow_P


def train(run: RunSpec, inner: Inner, round: int, steps: int, *, first: int, done: int) -> None:
    for made in range(steps):
        inputs_BT, targets_BT = data.batch(
            TOKENS_N,
            seed=run.seed,
            peer=signers(1)[0].peer,
            step=first + made,
            batch=INNER.batch,
            context=MODEL.context,
        )
        inner.step(inputs_BT, targets_BT, lr_in(run, Round(round), done + made))


def test_noloco_alone_is_a_plain_loop_bit_for_bit() -> None:
    """Nobody is waited for until the inner steps of the next round are made."""
    run = small(NolocoConfig(inner_steps=4), 3)
    inner, phi_P = plain(run)
    delta_P = torch.zeros_like(phi_P)
    sent_P = inner.theta_P
    for round in range(4):
        if round < 3:
            train(run, inner, round, 4, first=4 * round, done=0)
        if round > 0:
            delta_P = 0.5 * delta_P + 0.7 * (sent_P - phi_P)
            phi_P = phi_P + delta_P
            inner.theta_P += phi_P - sent_P
        sent_P = inner.theta_P.clone()
    (learner,) = simulated(run, 1).learners
    assert torch.equal(learner.slow.phi_P, phi_P)


def test_diloco_alone_is_torchs_sgd_bit_for_bit() -> None:
    run = small(DilocoConfig(inner_steps=4), 4)
    inner, phi_P = plain(run)
    outer = torch.optim.SGD([phi_P], lr=0.7, momentum=0.3, nesterov=True)
    for round in range(4):
        train(run, inner, round, 4, first=4 * round, done=0)
        phi_P.grad = phi_P - inner.theta_P
        outer.step()
        inner.theta_P.copy_(phi_P)
    (learner,) = simulated(run, 1).learners
    assert torch.equal(learner.slow.phi_P, phi_P)


def test_streaming_alone_is_a_plain_loop_bit_for_bit() -> None:
    config = StreamingConfig(inner_steps=4, fragment_layers=1, overlap_steps=0)
    run = small(config, 5)
    inner, phi_P = plain(run)
    buffer_P = torch.zeros_like(phi_P)
    parts = fragments(run.model, 1)
    assert len(parts) == 2
    for round in range(5):
        first = sum(run.round_steps(Round(earlier)) for earlier in range(round))
        train(run, inner, round, run.round_steps(Round(round)), first=first, done=0)
        for start, end in parts[round % 2].ranges:
            phi, buffer, theta = phi_P[start:end], buffer_P[start:end], inner.theta_P[start:end]
            gradient = phi - theta
            buffer.mul_(config.outer_momentum).add_(gradient)
            phi.sub_(gradient.add(buffer, alpha=config.outer_momentum), alpha=config.outer_lr)
            theta.mul_(config.mix).add_(phi, alpha=1.0 - config.mix)
    (learner,) = simulated(run, 1).learners
    assert torch.equal(learner.slow.phi_P, phi_P)


def test_sync_alone_and_local_are_plain_training_bit_for_bit() -> None:
    run = small(SyncConfig(), 9)
    inner, _ = plain(run)
    for step in range(9):
        inputs_BT, targets_BT = data.batch(
            TOKENS_N,
            seed=run.seed,
            peer=signers(1)[0].peer,
            step=step,
            batch=INNER.batch,
            context=MODEL.context,
        )
        inner.step(inputs_BT, targets_BT, lr_at(INNER, step + 1.0, 9))
    (learner,) = simulated(run, 1).learners
    assert torch.equal(learner.slow.phi_P, inner.theta_P)

    run = small(LocalConfig(inner_steps=3), 3)
    inner, _ = plain(run)
    for round in range(3):
        train(run, inner, round, 3, first=3 * round, done=0)
    (learner,) = simulated(run, 1).learners
    assert torch.equal(learner.slow.phi_P, inner.theta_P)


# --- states --------------------------------------------------------------------------------------


def learner(n: int = 0, trainer: TrainerConfig = TRAINERS["noloco"]) -> ModelLearner:
    return ModelLearner(small(trainer, 4), signers(2)[n].peer, TOKENS_N)


def alone(one: ModelLearner, round: int) -> None:
    digest, _, _ = one.snapshot(Round(round), 0)
    one.outer(ApplyOuter(Round(round + 1), 0, digest, ()), {})


def test_a_restarted_peer_goes_on_as_if_nothing_had_happened() -> None:
    one, other = learner(), learner()
    for each in (one, other):
        each.train(Round(0), 4)
        alone(each, 0)
    saved = one.save()
    one.train(Round(1), 2)
    one.load(saved)
    for each in (one, other):
        each.train(Round(1), 4)
        alone(each, 1)
    assert one.weights() == other.weights()


def test_another_peers_state_is_its_slow_weights_and_our_own_optimizer() -> None:
    one, other = learner(0), learner(1)
    one.train(Round(0), 4)
    alone(one, 0)
    other.train(Round(0), 3)
    before = other.save()
    other.load(one.save())
    after = other.save()
    assert isinstance(before, ModelState)
    assert isinstance(after, ModelState)
    assert other.weights() == one.weights()
    assert torch.equal(after.fast.theta_P, one.slow.phi_P)
    assert torch.equal(after.fast.moments.first_P, before.fast.moments.first_P)
    assert other.inner_step == 3


def test_a_payload_that_is_none_is_refused_by_its_name_and_changes_nothing() -> None:
    one, other = learner(0), learner(1)
    mine, _, content = one.snapshot(Round(0), 0)
    theirs, _, wrong = other.snapshot(Round(1), 0)
    shares = tuple(Share(digest, Round(0), 0.5) for digest in (mine, theirs))
    before = one.weights()
    with pytest.raises(Refused) as caught:
        one.outer(ApplyOuter(Round(1), 0, mine, shares), {mine: content, theirs: wrong})
    assert (caught.value.culprit, one.weights()) == (theirs, before)


# --- many ----------------------------------------------------------------------------------------


def test_a_simulation_measures_the_mean_weights_and_their_spread() -> None:
    run = small(TRAINERS["local"], 4)
    validation = Validation(TOKENS_N[:200], [1] * MODEL.vocab, MODEL.context)
    many = ModelLearners(run, TOKENS_N, validation)
    one, other = signers(2)
    first = many.learner(one.peer, 0)
    many.learner(other.peer, 1)
    start = Measure(run, validation).of(initial_slow(run).phi_P)
    assert many.measure([one.peer, other.peer]) == Measured(start, 0.0)
    first.train(Round(0), 4)
    first.outer(ApplyOuter(Round(1), 0, None, ()), {})
    apart = (first.slow.phi_P - initial_slow(run).phi_P) / 2
    measured = many.measure([one.peer, other.peer])
    assert measured.loss < start
    assert measured.consensus == pytest.approx(apart.square().mean().sqrt().item())
