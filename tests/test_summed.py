"""The sum of a run's scalars on a tiny model: J1, J2, J5, J6, J7 of docs/algorithms.md."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from samples import spec
from spsa_pump import PEERS, Pump, machine
from torch import Generator, Tensor
from torch.nn import functional as F

from protocol.algorithms import SpsaConfig
from protocol.ids import Digest, PeerId
from protocol.model import GptConfig, InnerConfig
from protocol.scalar import Draw, scalar_of, to_byte
from protocol.spec import RunSpec
from protocol.spsa import Frame, LogId, log_id
from trainers import data
from trainers.model import initial_weights, model_on
from trainers.perturb import signs
from trainers.scalars import sum_digest
from trainers.summed import Sampler, Summed, key_of

MODEL = GptConfig(layers=1, heads=1, width=16, context=8, vocab=257)
CONFIG = SpsaConfig(inner_steps=16, lr=2.0**-10, base_scalars=100)
RUN = spec(
    model=MODEL, inner=InnerConfig(batch=2, min_lr_ratio=0.1), trainer=CONFIG, rounds=4, name="spsa"
)
START_P = initial_weights(MODEL, Generator().manual_seed(3))
TOKENS_N = torch.randint(0, 20, (500,), generator=Generator().manual_seed(1)).int() % 7
BOOT = b"boot----"


def frame(author: int, first: int, scalars: bytes = b"\x40\xc1\x10", **more: int) -> Frame:
    return Frame(
        author=PEERS[author],
        boot=BOOT,
        first=first,
        step=more.get("step", first),
        base=Digest(bytes(32)),
        authors=more.get("authors", 4),
        scalars=scalars,
    )


def log_of_all() -> list[Frame]:
    """Four authors, four frames of three each."""
    return [
        frame(author, 3 * n, bytes(random.Random(9 * author + n).choices(range(1, 127), k=3)))
        for author in range(4)
        for n in range(4)
    ]


def summed(*batches: Sequence[Frame], run: RunSpec = RUN) -> Summed:
    """That took in these, one batch after the other."""
    found = Summed(run, START_P)
    for frames in batches:
        found.add(frames)
    return found


def name(one: Summed) -> Digest:
    return sum_digest(one.sum_Q)


def shuffled(frames: Sequence[Frame], seed: int) -> list[Frame]:
    """In another order; of each log in its own."""
    chance = random.Random(seed)
    authors = [frame.author for frame in frames]
    chance.shuffle(authors)
    logs = {p: iter([f for f in frames if f.author == p]) for p in set(authors)}
    return [next(logs[author]) for author in authors]


def test_j1_replaying_the_log_gives_the_same_bits_on_any_process_and_platform() -> None:
    assert name(summed(log_of_all())).hex() == (
        "585b252c4259f735b0d196348a3df47ac74b4ea23d1c61ba6c75841b6134dad5"
    )


@pytest.mark.parametrize("seed", range(3))
def test_j2_permuted_split_and_doubled_logs_give_the_same_weights(seed: int) -> None:
    frames, other = log_of_all(), shuffled(log_of_all(), seed)
    cut = random.Random(seed).randrange(len(other))
    one, two = summed(frames), summed(other[:cut], other[:cut], other[cut:], other[::2])
    assert torch.equal(one.weights_P, two.weights_P)
    assert (name(one), one.horizon) == (name(two), two.horizon)


def test_frames_after_a_gap_are_left_out_until_it_is_closed() -> None:
    frames = log_of_all()
    one = summed(frames[:1], frames[2:4])
    assert name(one) == name(summed(frames[:1]))
    one.add(frames[1:])
    assert name(one) == name(summed(frames))


def test_j6_one_or_four_peers_that_make_the_same_scalars_move_the_weights_alike() -> None:
    """What counts is whose log a scalar is in, not who worked it out."""
    frames = log_of_all()
    by_peer = [[f for f in frames if f.author == peer] for peer in PEERS[:4]]
    alone, together = summed(frames), summed(*reversed(by_peer))
    assert torch.equal(alone.weights_P, together.weights_P)
    assert not torch.equal(alone.weights_P, START_P)


def test_j7_a_joiner_with_a_sum_and_the_logs_behind_it_has_the_same_hash() -> None:
    frames = log_of_all()
    member = summed(frames[:7])
    joiner = Summed(RUN, START_P)
    joiner.take_over(member.sum_Q, dict(member.horizon))
    assert torch.equal(joiner.weights_P, member.weights_P)
    for one in (joiner, member):
        one.add(frames)
    assert name(joiner) == name(member) == name(summed(frames))
    with pytest.raises(ValueError, match="a sum over 3 parameters"):
        joiner.take_over(torch.zeros(3, dtype=torch.int64), {})


def test_the_sum_at_an_older_horizon_is_ours_less_what_is_newer() -> None:
    frames = log_of_all()
    one = summed(frames)
    before = one.sum_Q
    older = one.without(frames[9:], before)
    assert sum_digest(older) == name(summed(frames[:9]))
    assert torch.equal(one.sum_Q, before)


def test_a_frame_weighs_by_its_step_its_authors_and_its_length() -> None:
    def moved(**more: int) -> float:
        one = summed([frame(0, 0, bytes([64]) * more.pop("scalars", 1), **more)])
        return one.sum_Q.abs().max().item() / 2.0**40  # of the scalar 1 at the full rate

    assert moved(step=16, authors=1) == 1.0  # the warm-up is over
    assert moved(step=7, authors=1) == 0.5
    assert moved(step=16, authors=64) == 0.5
    assert moved(step=63, authors=1) == pytest.approx(0.1, abs=0.03)
    assert moved(step=16, authors=32, scalars=2) in (0.0, 1.0)  # two of a half each


def test_only_what_is_trainable_moves() -> None:
    one = summed(log_of_all())
    still = torch.ones_like(START_P, dtype=torch.bool)
    one.subspace.scatter(torch.zeros(one.subspace.size, dtype=torch.bool), still)
    assert torch.equal(one.weights_P[still], START_P[still])
    assert (one.weights_P[~still] != START_P[~still]).all()


# --- sampling ---------------------------------------------------------------------------------


def sampler(run: RunSpec, one: Summed, log: LogId) -> Sampler:
    return Sampler(run, one, TOKENS_N, PEERS[0], log)


def test_measuring_leaves_the_weights_alone_and_depends_on_log_step_and_weights() -> None:
    one = summed(log_of_all())
    log = log_id(RUN.run, PEERS[0], BOOT)
    before = one.theta_Q.clone()
    here = sampler(RUN, one, log).measure(one.theta_Q, 3)
    assert torch.equal(one.theta_Q, before)
    assert sampler(RUN, summed(), log).measure(one.theta_Q, 3) == here
    others = [
        sampler(RUN, one, log).measure(one.theta_Q, 4),
        sampler(RUN, one, log).measure(one.theta_Q * 1.5, 3),
        sampler(RUN, one, log_id(RUN.run, PEERS[0], b"other---")).measure(one.theta_Q, 3),
    ]
    assert here not in others


def test_several_samples_a_step_have_perturbations_and_batches_of_their_own() -> None:
    run = replace(RUN, trainer=replace(CONFIG, samples=3))
    one = Summed(run, START_P)
    found = sampler(run, one, log_id(run.run, PEERS[0], BOOT))
    scalars, _ = found.measure(one.theta_Q, 0)
    assert (len(scalars), len(set(scalars))) == (3, 3)
    assert found.tokens_a_step == 3 * 2 * 8


def test_training_that_diverged_is_an_error_and_no_scalar() -> None:
    one = summed()
    found = sampler(RUN, one, log_id(RUN.run, PEERS[0], BOOT))
    with pytest.raises(ValueError, match="training diverged"):
        found.measure(one.theta_Q * torch.nan, 0)


# --- machines ---------------------------------------------------------------------------------


class ModelSum:
    """What a worker does, with the real sum and the real model; one step a frame."""

    def __init__(self, me: PeerId, run: RunSpec) -> None:
        self.summed = Summed(run, START_P)
        self._run = run
        self._me = me
        self._sampler = functools.cache(functools.partial(Sampler, run, self.summed, TOKENS_N, me))

    @property
    def horizon(self) -> dict[LogId, int]:
        return self.summed.horizon

    def add(self, frames: Sequence[Frame]) -> None:
        self.summed.add(frames)

    def name(self, less: Sequence[Frame]) -> Digest:
        return sum_digest(self.summed.without(less, self.summed.sum_Q))

    def sample(self, boot: bytes, step: int, steps: int) -> bytes:
        log = log_id(self._run.run, self._me, boot)
        return self._sampler(log).measure(self.summed.theta_Q, step)[0]

    def save(self) -> object:
        return self.summed.sum_Q, dict(self.summed.horizon)

    def load(self, saved: object) -> None:
        assert isinstance(saved, tuple)
        self.summed.take_over(saved[0], saved[1])


def plain_mezo(run: RunSpec, steps: int) -> Tensor:
    """Weights after MeZO by hand; lr c z is exact in float64, so the loop rounds once a step."""
    config = run.trainer
    assert isinstance(config, SpsaConfig)
    part = Summed(run, START_P).subspace
    start_Q = theta_Q = part.gather(START_P)
    moved_Q = torch.zeros(len(start_Q), dtype=torch.float64)
    key = key_of(log_id(run.run, PEERS[0], BOOT))
    for step in range(steps):
        z_Q = signs([Draw(key=key, step=step, sample=0)], len(start_Q))[0]
        inputs_BT, targets_BT = data.batch(
            TOKENS_N, seed=run.seed, peer=PEERS[0], step=step, batch=2, context=MODEL.context
        )
        losses = []
        for at_Q in (theta_Q + config.eps * z_Q, theta_Q - config.eps * z_Q):
            with torch.no_grad():
                logits_BTV = model_on(MODEL, part.replaced(at_Q, START_P))(inputs_BT)
            logits, targets = logits_BTV.flatten(0, 1), targets_BT.flatten()
            losses.append(F.cross_entropy(logits, targets, reduction="none").double().mean().item())
        c = scalar_of(to_byte((losses[0] - losses[1]) / (2 * config.eps)))
        moved_Q -= config.lr * c * z_Q.double()
        theta_Q = start_Q + moved_Q.float()
    return part.replaced(theta_Q, START_P)


def test_j5_one_machine_with_one_sample_is_mezo_to_the_bit() -> None:
    torch.set_num_threads(1)
    config = replace(CONFIG, expected_peers=1)
    inner = InnerConfig(batch=2, min_lr_ratio=1.0, warmup_rounds=0.0)
    run = replace(RUN, trainer=config, inner=inner, rounds=2)
    alice = machine(0, config, rounds=2, run=run.run)
    pump = Pump([alice], sum_of=lambda me, _: ModelSum(me, run))
    pump.settle()
    (node,) = pump.nodes.values()
    assert isinstance(node.sum, ModelSum)
    assert torch.equal(node.sum.summed.weights_P, plain_mezo(run, 32))
    assert not torch.equal(node.sum.summed.weights_P, START_P)


def test_machines_that_lose_half_of_what_they_say_end_with_the_same_weights() -> None:
    torch.set_num_threads(1)
    run = replace(RUN, rounds=1)
    machines = [machine(n, CONFIG, rounds=1, run=run.run) for n in range(3)]
    pump = Pump(machines, loss=0.5, sum_of=lambda me, _: ModelSum(me, run))
    pump.run(lambda: pump.nodes[PEERS[0]].finished)
    pump.add(machine(3, CONFIG, rounds=1, run=run.run), donor=PEERS[1])
    pump.settle()
    sums = [node.sum for node in pump.nodes.values()]
    weights = [one.summed.weights_P for one in sums if isinstance(one, ModelSum)]
    assert len(weights) == 4
    assert all(torch.equal(weights[0], other) for other in weights)
