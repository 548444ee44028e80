"""local and sync with one peer are plain PyTorch training to the bit."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest
import torch
from outer_peer import INNER, MODEL, START_P, OuterPeer, equal, run_of, shares_of
from small_run import small_run
from torch import Tensor
from torch.nn import functional as F

from node.worker.loop import Goal, TrainingLoop
from node.worker.materials import initial_slow
from node.worker.wire import InnerDone
from protocol.algorithms import LocalConfig, SyncConfig
from protocol.errors import PayloadRefused
from protocol.ids import PeerId, Round, digest_of
from protocol.spec import RunSpec
from trainers import data
from trainers.inner import Inner, Moments, lr_at, lr_in
from trainers.model import Gpt, views
from trainers.outers import outer_of
from trainers.state import Fast

ME = PeerId("me")
TOKENS = torch.arange(300) * 7 % 300
WAIT_S = 60.0


def plain_training(spec: RunSpec, rates: list[float]) -> Tensor:
    """A module with parameters of its own, torch's AdamW, clipping, a schedule: the weights."""
    start = views(spec.model, initial_slow(spec).phi_P)
    model = Gpt(spec.model)
    model.load_state_dict({name: part.clone() for name, part in start.items()})
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    config = spec.inner
    adamw = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    for step, rate in enumerate(rates):
        inputs_BT, targets_BT = data.batch(
            TOKENS, seed=spec.seed, peer=ME, step=step, batch=config.batch, context=8
        )
        loss = F.cross_entropy(model(inputs_BT).flatten(0, 1), targets_BT.flatten())
        adamw.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
    return torch.cat([p.detach().flatten() for p in (*matrices, *others)])


def trained(spec: RunSpec, rounds: int) -> Tensor:
    """The same by the worker's training thread and the run's outer step."""
    slow = initial_slow(spec)
    none = Moments(torch.zeros_like(slow.phi_P), torch.zeros_like(slow.phi_P), 0)
    loop = TrainingLoop(spec, ME, TOKENS, Fast(slow.phi_P, none, 0, 0), lambda _report: None)
    loop.start()
    outer = outer_of(spec, ME, slow)
    for round in range(rounds):
        done: queue.Queue[InnerDone] = queue.Queue()
        loop.run_inner(Goal(Round(round), spec.round_steps(Round(round)), done.put))
        assert done.get(timeout=WAIT_S).steps == spec.trainer.inner_steps
        sent_P, _ = loop.take_snapshot()
        if isinstance(spec.trainer, SyncConfig):
            out = bytearray(outer.payload_bytes(0))
            mine = outer.snapshot(Round(round), 0, sent_P, out)
            applied = outer.apply(Round(round + 1), 0, mine, (), {})
        else:
            applied = outer.apply(Round(round + 1), 0, None, (), {})
        assert applied.slow is None
        loop.merge(applied.merge)
    return loop.state().theta_P


def test_local_is_plain_training_to_the_bit(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    spec = small_run(tmp_path, LocalConfig(inner_steps=5)).spec
    rates = [lr_in(spec, Round(step // 5), step % 5) for step in range(15)]
    assert torch.equal(trained(spec, 3), plain_training(spec, rates))


def test_sync_alone_is_plain_training_to_the_bit(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    spec = small_run(tmp_path, SyncConfig()).spec
    rates = [lr_at(spec.inner, float(step + 1), spec.rounds) for step in range(8)]
    assert torch.equal(trained(spec, 8), plain_training(spec, rates))


def gradient_peer(codec: str, name: int) -> OuterPeer:
    return OuterPeer(run_of(SyncConfig(codec=codec), rounds=10), name)


def test_sync_takes_one_step_with_the_mean_gradient_on_all_members() -> None:
    members = [gradient_peer("fp32", 1), gradient_peer("fp32", 2)]
    alone = Inner(MODEL, INNER, START_P.clone())
    for round in range(3):
        gradients = [
            torch.randn(len(alone.theta_P), generator=torch.Generator().manual_seed(seed))
            for seed in (2 * round, 2 * round + 1)
        ]
        made = []
        for member, gradient_P in zip(members, gradients, strict=True):
            out = bytearray(member.outer.payload_bytes(0))
            made.append((member.outer.snapshot(Round(round), 0, gradient_P, out), bytes(out)))
        shares = shares_of(round, [digest for digest, _ in made])
        for member, (mine, _) in zip(members, made, strict=True):
            member.apply(round, mine, shares, dict(made))
        rate = lr_at(INNER, float(round + 1), 10)
        alone.take_step((gradients[0] + gradients[1]) / 2, rate)
    assert torch.equal(members[0].theta_P, members[1].theta_P)
    assert torch.equal(members[0].theta_P, alone.theta_P)


def test_a_gradient_that_is_not_what_it_must_be_changes_nothing() -> None:
    me = gradient_peer("fp32", 1)
    out = bytearray(me.outer.payload_bytes(0))
    mine = me.outer.snapshot(Round(0), 0, torch.ones_like(me.theta_P), out)
    bad = bytes(out[:-4]) + b"\0\0\xc0\x7f"
    before, culprit = me.state(), digest_of(bad)
    with pytest.raises(PayloadRefused) as refused:
        me.apply(0, mine, shares_of(0, [mine, culprit]), {culprit: bad})
    assert refused.value.culprit == culprit
    assert equal(me.state(), before)


def test_a_member_without_a_gradient_of_its_own_takes_the_others_step() -> None:
    members = [gradient_peer("fp32", 1), gradient_peer("fp32", 2)]
    out = bytearray(members[0].outer.payload_bytes(0))
    mine = members[0].outer.snapshot(Round(0), 0, torch.ones_like(members[0].theta_P), out)
    shares = shares_of(0, [mine])
    members[0].apply(0, mine, shares)
    members[1].apply(0, None, shares, {mine: bytes(out)})
    assert torch.equal(members[0].theta_P, members[1].theta_P)
