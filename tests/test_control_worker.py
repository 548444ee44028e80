"""A worker obeys a change of rate or codec from its round on, and reads whatever others send."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from outer_peer import START_P, OuterPeer, run_of
from small_run import MODEL, SmallRun, small_run
from test_learner import R0, R1, alone, peer
from test_worker_loop import Loop

from node.worker import wire
from node.worker.loop import Goal
from node.worker.wire_control import ChangeSettings
from protocol.algorithms import DilocoConfig, NolocoConfig, SyncConfig, TrainerConfig
from protocol.changes import Change, InForce
from protocol.errors import PayloadRefused
from protocol.fragments import num_parameters
from protocol.ids import Digest, Round
from protocol.payload import codec_of, payload_bytes
from protocol.spec import RunSpec
from trainers.effects import Share

CODEC = ("trainer.codec",)


def in_force(name: str, value: str, since: int) -> InForce:
    return InForce(Change(name=name, value=value, round=R0), Round(since))


def sent(one: OuterPeer, codec: str, run: RunSpec) -> tuple[Digest, bytes]:
    """What a peer with this codec sends of its round 0, whatever the run began with."""
    one.outer.use(replace(run.trainer, codec=codec))  # type: ignore[arg-type]
    payload = bytearray(one.outer.payload_bytes(0))
    return one.outer.snapshot(R0, 0, one.theta_P.clone(), payload), bytes(payload)


@pytest.mark.parametrize(
    "trainer",
    [NolocoConfig(alpha=0.0, gamma=1.0), DilocoConfig(), SyncConfig()],
    ids=lambda one: one.KIND,
)
def test_peers_with_different_codecs_have_the_same_mean(
    trainer: TrainerConfig,
) -> None:
    run = run_of(trainer, changeable=CODEC)
    codecs = ("fp32", "int8")
    both = [OuterPeer(run, name) for name in (1, 2)]
    for one in both:
        one.train(2)
    payloads = dict(sent(one, codec, run) for one, codec in zip(both, codecs, strict=True))
    shares = tuple(Share(digest, R0, 0.5) for digest in payloads)
    applied = [
        one.outer.apply(R1, 0, digest, shares, payloads)
        for one, digest in zip(both, payloads, strict=True)
    ]
    phis = [one.outer.slow.phi_P for one in both]
    if isinstance(trainer, SyncConfig):  # of the mean gradient
        assert len({one.gradient_norm for one in applied}) == 1
    elif isinstance(trainer, DilocoConfig):
        assert torch.equal(*phis)
    else:  # N3: equal but for the last bit
        torch.testing.assert_close(*phis, rtol=1e-5, atol=1e-7)
        assert not torch.equal(phis[0], START_P)


@pytest.mark.parametrize("trainer", [NolocoConfig(), DilocoConfig()], ids=lambda one: one.KIND)
def test_a_payload_of_another_codec_is_refused_where_the_run_does_not_let_it_change(
    trainer: TrainerConfig,
) -> None:
    run = run_of(trainer)
    mine, theirs = OuterPeer(run, 1), OuterPeer(run, 2)
    ours, _ = sent(mine, "bf16", run)
    digest, data = sent(theirs, "fp32", run)
    before = mine.outer.slow
    with pytest.raises(PayloadRefused, match=r"expected|bytes"):
        mine.outer.apply(
            R1, 0, ours, (Share(ours, R0, 0.5), Share(digest, R0, 0.5)), {digest: data}
        )
    assert mine.outer.slow is before


def test_the_rate_of_a_round_is_that_of_its_settings(tmp_path: Path) -> None:
    """Twice the rate moves the weights further in the first step; weight decay aside, twice."""
    moved = []
    for lr in (None, 4e-3):
        root = tmp_path / f"{lr}"
        root.mkdir()
        loop = Loop(root, weight_decay=0.0)  # type: ignore[arg-type]
        spec = loop.loop._spec
        start_P = loop.loop.state().theta_P
        goal_spec = replace(spec, inner=replace(spec.inner, lr=lr)) if lr else None
        loop.loop.run_inner(Goal(R0, 1, loop.done.put, goal_spec))
        loop.done.get(timeout=15)
        moved.append((loop.loop.state().theta_P - start_P).norm().item())
        assert spec.inner.lr == 2e-3
    assert moved[1] == pytest.approx(2 * moved[0], rel=1e-3)


@pytest.mark.libp2p
@pytest.mark.timeout(120)
async def test_a_worker_sends_in_the_new_codec_from_its_round_on_and_a_new_worker_too(
    tmp_path: Path,
) -> None:
    found = small_run(tmp_path, NolocoConfig(inner_steps=4))
    run = SmallRun(found.root, replace(found.spec, changeable=CODEC))
    count = num_parameters(MODEL)
    async with peer(run) as one:
        await one.learner.start(wire.StartFresh())
        one.learner.change(ChangeSettings((in_force("trainer.codec", "int8", 1),)))
        codecs = []
        for round in (R0, R1):
            await one.learner.inner(round, 4)
            digest, size_bytes = await one.learner.snapshot(round, 0)
            codecs.append((codec_of(bytes(one.arena.view(digest)[:64])), size_bytes))
            await one.learner.outer(alone(round, digest))
    assert codecs == [
        ("bf16", payload_bytes("bf16", count)),
        ("int8", payload_bytes("int8", count)),
    ]
