"""The outer step of diloco and streaming on a real model.

S1 to S8 are the invariants of Streaming DiLoCo, C1 to C5 those of CO2, in docs/algorithms.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest
import torch
from outer_peer import (
    MODEL,
    START_P,
    OuterPeer,
    average,
    equal,
    run_of,
    shares_of,
    train_step,
)
from torch import Tensor

from protocol.algorithms import DilocoConfig, StreamingConfig
from protocol.errors import PayloadRefused
from protocol.fragments import round_steps
from protocol.ids import Digest, PeerId, Round, digest_of
from protocol.payload import HEADER, Label
from trainers import compress
from trainers.effects import Share
from trainers.fragments import fragments
from trainers.inner import Inner
from trainers.outer_group import GroupOuter
from trainers.state import Slow
from trainers.subspace import Subspace

EXACT = DilocoConfig(inner_steps=4, codec="fp32", outer_lr=0.7, outer_momentum=0.9)
SIGN = DilocoConfig(inner_steps=4, codec="sign", feedback=True)
STALE = DilocoConfig(inner_steps=4, codec="fp32", stale=True)


def group(config: DilocoConfig, peers: int = 2) -> list[OuterPeer]:
    run = run_of(config)
    return [OuterPeer(run, name) for name in range(1, peers + 1)]


# --- S1: the vectors of torchft ---------------------------------------------------------------


class Scalars:
    """Fast weights of two fragments of one number each."""

    def __init__(self) -> None:
        self.theta_P = torch.ones(2)


def scalar_curves(mix: float) -> tuple[list[list[float]], list[Tensor]]:
    """Values of both fragments before each of 16 steps, and the slow weights after each round.

    Inner SGD with rate 1 and gradient 2; outer SGD with rate 2 and no momentum; H = 6; two
    identical replicas, of which one tells all.
    """
    config = DilocoConfig(
        inner_steps=6, outer_lr=2.0, outer_momentum=0.0, codec="fp32", fragment_layers=1, mix=mix
    )
    cut = (Subspace(((0, 1),)), Subspace(((1, 2),)))
    slow = Slow(Round(0), torch.ones(2), torch.zeros(2))
    outer = GroupOuter(config, cut, slow, seed=0, peer=PeerId("me"))
    weights = Scalars()
    values: list[list[float]] = [[], []]
    slows = []
    for round in range(6):
        for _ in range(round_steps(6, 2, Round(round))):
            for fragment, value in enumerate(weights.theta_P.tolist()):
                values[fragment].append(value)
            weights.theta_P -= 2.0
        fragment = round % 2
        out = bytearray(outer.payload_bytes(fragment))
        mine = outer.snapshot(Round(round), fragment, weights.theta_P.clone(), out)
        shares = shares_of(round, [mine, mine])
        applied = outer.apply(Round(round + 1), fragment, mine, shares, {})
        applied.merge(cast(Inner, weights))
        slows.append(outer.slow.phi_P)
    return [curve[:16] for curve in values], slows


CURVES = {
    0.0: (
        "1 -1 -3 -11 -13 -15 -17 -19 -21 -35 -37 -39 -41 -43 -45 -59",
        "1 -1 -3 -5 -7 -9 -23 -25 -27 -29 -31 -33 -47 -49 -51 -53",
    ),
    0.5: (
        "1 -1 -3 -8 -10 -12 -14 -16 -18 -24.5 -26.5 -28.5 -30.5 -32.5 -34.5 -40.25",
        "1 -1 -3 -5 -7 -9 -17 -19 -21 -23 -25 -27 -32 -34 -36 -38",
    ),
    1.0: (
        "1 -1 -3 -5 -7 -9 -11 -13 -15 -17 -19 -21 -23 -25 -27 -29",
        "1 -1 -3 -5 -7 -9 -11 -13 -15 -17 -19 -21 -23 -25 -27 -29",
    ),
}


@pytest.mark.parametrize("mix", CURVES)
def test_s1_two_scalar_fragments_move_as_in_torchfts_fixtures(mix: float) -> None:
    curves, slows = scalar_curves(mix)
    assert curves == [[float(value) for value in line.split()] for line in CURVES[mix]]
    if mix == 1.0:  # no fast weight hears of it, but the slow ones move
        assert [slows[0][0].item(), slows[2][0].item()] == [-11.0, -23.0]


# --- S2 to S8 ---------------------------------------------------------------------------------


def diloco_by_torch(seeds: Sequence[int], rounds: int) -> Tensor:
    """DiLoCo as its paper has it, with torch's own optimizer on the slow weights."""
    run = run_of(EXACT)
    phi = torch.nn.Parameter(START_P.clone())
    sgd = torch.optim.SGD([phi], lr=0.7, momentum=0.9, nesterov=True)
    inners = [Inner(run.model, run.inner, START_P.clone()) for _ in seeds]
    for round in range(rounds):
        for seed, inner in zip(seeds, inners, strict=True):
            for step in range(4 * round, 4 * round + 4):
                train_step(inner, seed, step)
        gradients = [phi.detach() - inner.theta_P for inner in inners]
        phi.grad = sum(gradients[1:], gradients[0]) / len(gradients)
        sgd.step()
        for inner in inners:
            inner.theta_P.copy_(phi.detach())
    return phi.detach()


@pytest.mark.parametrize("peers", [1, 3])
def test_s2_one_fragment_is_diloco_with_torchs_sgd_to_the_bit(peers: int) -> None:
    members = group(EXACT, peers)
    for round in range(4):
        for member in members:
            member.train(4)
        average(members, round)
    expected_P = diloco_by_torch(range(1, peers + 1), 4)
    assert all(torch.equal(member.theta_P, expected_P) for member in members)


def test_a_round_alone_is_the_same_step_with_the_exact_gradient() -> None:
    me = OuterPeer(run_of(replace(EXACT, codec="sign")))
    for round in range(4):
        me.train(4)
        me.alone(round)
    assert torch.equal(me.theta_P, diloco_by_torch([1], 4))


def test_s3_who_keeps_all_of_its_fast_weights_trains_as_if_alone() -> None:
    members = group(StreamingConfig(inner_steps=6, fragment_layers=1, mix=1.0, overlap_steps=0))
    alone = OuterPeer(run_of(EXACT))
    for round in range(6):
        for member in (*members, alone):
            member.train(2)
        average(members, round, fragment=round % 3)
    torch.testing.assert_close(members[0].theta_P, alone.theta_P, rtol=0, atol=1e-7)
    assert not torch.equal(members[0].outer.slow.phi_P, START_P)


def test_s4_one_peer_at_rate_one_is_not_disturbed() -> None:
    config = DilocoConfig(
        inner_steps=6, outer_lr=1.0, outer_momentum=0.0, codec="fp32", fragment_layers=1
    )
    me, alone = OuterPeer(run_of(config)), OuterPeer(run_of(EXACT))
    for round in range(6):
        me.drift()
        alone.drift()
        me.alone(round, fragment=round % 3)
    torch.testing.assert_close(me.theta_P, alone.theta_P, rtol=0, atol=1e-6)


OPTIONS = {
    "plain": DilocoConfig(inner_steps=6),
    "e3m0 with feedback": DilocoConfig(inner_steps=6, codec="e3m0", feedback=True),
    "int8": DilocoConfig(inner_steps=6, codec="int8"),
    "topk with feedback": DilocoConfig(inner_steps=6, codec="topk", feedback=True),
    "clip": DilocoConfig(inner_steps=6, momentum_clip=1e-3),
    "stale": DilocoConfig(inner_steps=6, stale=True),
    "stale with gap and feedback": DilocoConfig(
        inner_steps=6, stale=True, gap_penalty=True, codec="sign", feedback=True
    ),
    "fragments with gap": StreamingConfig(inner_steps=6, fragment_layers=1, gap_penalty=True),
}


@pytest.mark.parametrize("config", OPTIONS.values(), ids=OPTIONS)
def test_s8_all_that_average_the_same_shares_have_the_same_slow_weights(
    config: DilocoConfig,
) -> None:
    """To the bit, though their fast weights, snapshots and residuals are their own."""
    members = group(config, 3)
    total = run_of(config).num_fragments
    for round in range(2 * total):
        for member in members:
            member.train(1)
        average(members, round, fragment=round % total)
        slows = [member.outer.slow for member in members]
        assert len({slow.digest() for slow in slows}) == 1
        for slow in slows[1:]:
            assert torch.equal(slow.delta_P, slows[0].delta_P)
            assert slow.shared.keys() == slows[0].shared.keys()
            assert equal([*slow.shared.values()], [*slows[0].shared.values()])
    assert not torch.equal(slows[0].phi_P, START_P)


def test_who_has_trained_on_more_weighs_more() -> None:
    members = group(replace(EXACT, outer_lr=1.0, outer_momentum=0.0))
    for member in members:
        member.drift()
    mean_P = 0.75 * members[0].theta_P + 0.25 * members[1].theta_P
    made = [member.snapshot(0) for member in members]
    shares = [Share(d, Round(0), w) for (d, _), w in zip(made, (0.75, 0.25), strict=True)]
    members[0].apply(0, made[0][0], shares, dict(made))
    torch.testing.assert_close(members[0].theta_P, mean_P, rtol=0, atol=1e-6)


def test_a_fragment_moves_by_its_own_average_and_with_its_own_momentum() -> None:
    config = StreamingConfig(inner_steps=6, fragment_layers=1)
    members = group(config)
    cut = fragments(MODEL, 1)
    for member in members:
        member.train(2)
    before = [member.state() for member in members]
    average(members, 0, fragment=2)
    for was, member in zip(before, members, strict=True):
        for was_P, is_P in zip(was, member.state(), strict=True):
            moved = [not torch.equal(part.gather(was_P), part.gather(is_P)) for part in cut]
            assert moved == [False, False, True]


def test_with_overlap_the_later_steps_are_mixed_into_what_was_averaged() -> None:
    config = StreamingConfig(inner_steps=6, fragment_layers=0, mix=0.5, codec="fp32")
    me = OuterPeer(run_of(config))
    me.train(4)
    digest, _ = me.snapshot(0)
    me.train(1)
    now_P = me.theta_P.clone()
    me.apply(0, digest, shares_of(0, [digest]))
    expected_P = 0.5 * now_P + 0.5 * me.outer.slow.phi_P
    torch.testing.assert_close(me.theta_P, expected_P, rtol=0, atol=1e-7)


# --- who is not in the average ----------------------------------------------------------------


@pytest.mark.parametrize("config", [SIGN, replace(SIGN, stale=True)], ids=["at once", "stale"])
@pytest.mark.parametrize("with_snapshot", [True, False])
def test_who_is_not_averaged_keeps_its_way_and_its_residual(
    config: DilocoConfig, *, with_snapshot: bool
) -> None:
    members = group(config, 3)
    for member in members:
        member.train(4)
    average(members, 0)  # so that there is a residual
    late, *others = members
    for member in members:
        member.train(4)
    way_P = late.theta_P - late.outer.slow.phi_P
    residual_P = late.outer.slow.own["residual"]
    made = [member.snapshot(1) for member in others]
    shares = shares_of(1, [digest for digest, _ in made])
    mine = late.snapshot(1)[0] if with_snapshot else None
    late.apply(1, mine, shares, dict(made))
    for member, (digest, _) in zip(others, made, strict=True):
        member.apply(1, digest, shares, dict(made))
    assert late.outer.slow.digest() == others[0].outer.slow.digest()
    torch.testing.assert_close(late.theta_P - late.outer.slow.phi_P, way_P, rtol=0, atol=1e-6)
    assert torch.equal(late.outer.slow.own["residual"], residual_P)


# --- error feedback ---------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["sign", "topk", "e3m0"])
@pytest.mark.parametrize(
    ("stale", "under_way"), [(False, 0), (True, 0), (True, 1)], ids=["at once", "stale", "late"]
)
def test_all_that_is_sent_is_all_that_was_measured_but_for_the_residual(
    codec: str, *, stale: bool, under_way: int
) -> None:
    """Also where the next payload is made while the one before is still under way."""
    me, other = group(DilocoConfig(inner_steps=4, codec=codec, feedback=True, stale=stale))
    count = len(START_P)
    sent_P, measured_P = torch.zeros(count), torch.zeros(count)
    open: list[tuple[int, Digest, dict[Digest, bytes]]] = []
    for round in range(5):
        for peer in (me, other):
            peer.train(2)
        measured_P += me.outer.slow.phi_P - me.theta_P
        mine, data = me.snapshot(round)
        label = Label(codec=codec, content="gradient", fragment=0, round=round, count=count)
        sent_P += compress.decode(data, label)
        theirs, payload = other.snapshot(round)
        other.apply(round, theirs, shares_of(round, [mine, theirs]), {mine: data})
        open.append((round, mine, {theirs: payload}))
        while len(open) > (under_way if round < 4 else 0):
            ended, digest, contents = open.pop(0)
            me.apply(ended, digest, shares_of(ended, [digest, *contents]), contents)
    residual_P = me.outer.slow.own["residual"]
    assert residual_P.norm() > 0.02 * measured_P.norm()
    torch.testing.assert_close(sent_P + residual_P, measured_P, rtol=0, atol=2e-6)
    assert me.outer.slow.digest() == other.outer.slow.digest()


def test_what_was_not_averaged_is_not_missed_by_the_payload_made_after_it() -> None:
    """Stale: the second payload had counted on the first one's error."""
    me, other = group(replace(SIGN, stale=True))
    count = len(START_P)
    made, sent, measured = [], [], []
    for round in range(2):
        for peer in (me, other):
            peer.train(4)
        measured.append(me.outer.slow.phi_P - me.theta_P)
        made.append((me.snapshot(round), other.snapshot(round)))
        label = Label(codec="sign", content="gradient", fragment=0, round=round, count=count)
        sent.append(compress.decode(made[round][0][1], label))
    (mine, _), theirs = made[0]
    me.apply(0, mine, shares_of(0, [theirs[0]]), dict([theirs]))
    (mine, _), theirs = made[1]
    me.apply(1, mine, shares_of(1, [mine, theirs[0]]), dict([theirs]))
    residual_P = me.outer.slow.own["residual"]
    torch.testing.assert_close(sent[1] + residual_P, measured[1], rtol=0, atol=1e-6)
    way_P = me.outer.slow.phi_P - me.theta_P
    torch.testing.assert_close(way_P, measured[0], rtol=0, atol=1e-6)


def test_what_a_codec_loses_is_kept_by_fragment() -> None:
    config = StreamingConfig(inner_steps=6, fragment_layers=1, feedback=True)
    me, other = group(config)
    cut = fragments(MODEL, 1)
    for peer in (me, other):
        peer.train(2)
    average([me, other], 0, fragment=1)
    kept = [part.gather(me.outer.slow.own["residual"]).norm().item() for part in cut]
    assert kept[1] > 0
    assert (kept[0], kept[2]) == (0, 0)


# --- CO2 --------------------------------------------------------------------------------------


def test_c1_at_rate_one_without_momentum_it_is_local_sgd() -> None:
    members = group(DilocoConfig(inner_steps=4, codec="fp32", outer_lr=1.0, outer_momentum=0.0))
    for member in members:
        member.train(4)
    mean_P = (members[0].theta_P + members[1].theta_P) / 2
    average(members, 0)
    torch.testing.assert_close(members[0].theta_P, mean_P, rtol=0, atol=1e-7)


def test_c2_the_clip_holds_for_the_momentum_that_is_stored() -> None:
    members = group(replace(EXACT, momentum_clip=1e-3))
    for round in range(3):
        for member in members:
            member.train(4)
        average(members, round)
        assert members[0].outer.slow.delta_P.abs().max().item() == pytest.approx(1e-3)


@pytest.mark.parametrize("late", [False, True])
def test_c3_a_stale_peer_begins_anew_and_gets_its_way_back_in_the_average(*, late: bool) -> None:
    """Whether the average comes within the round or when the next payload is made already."""
    me, other = group(STALE)
    apart = []
    for round in range(2):
        for peer in (me, other):
            peer.train(4)
        made = [peer.snapshot(round) for peer in (me, other)]
        apart.append((made, shares_of(round, [digest for digest, _ in made])))
        if round == 0:
            assert torch.equal(me.theta_P, START_P)
        if not late:
            end(me, other, round, *apart[round])
    if late:
        for round in range(2):
            end(me, other, round, *apart[round])
    assert me.outer.slow.digest() == other.outer.slow.digest()
    assert torch.equal(me.outer.slow.phi_P, other.outer.slow.phi_P)
    torch.testing.assert_close(me.theta_P, me.outer.slow.phi_P, rtol=0, atol=1e-6)


def end(
    me: OuterPeer,
    other: OuterPeer,
    round: int,
    made: list[tuple[Digest, bytes]],
    shares: tuple[Share, ...],
) -> None:
    for peer, (mine, _) in zip((me, other), made, strict=True):
        peer.apply(round, mine, shares, dict(made))


def test_c3_a_late_round_alone_is_measured_from_where_it_began() -> None:
    """Two snapshots are open; the step of the first moves what the second is compared with."""
    me = OuterPeer(run_of(STALE))
    me.drift()
    first, _ = me.snapshot(0)
    me.drift()
    way_P = me.theta_P - START_P
    second, _ = me.snapshot(1)
    me.apply(0, first)
    applied = me.apply(1, second)
    assert applied.gradient_norm == pytest.approx(way_P.norm().item(), rel=1e-5)


def test_c4_a_frozen_model_has_no_gap_and_a_moving_one_has() -> None:
    def moved(*, gap_penalty: bool) -> list[Tensor]:
        members = group(replace(EXACT, gap_penalty=gap_penalty))
        phis = [START_P]
        for round in range(2):
            for member in members:
                member.drift()
            average(members, round)
            phis.append(members[0].outer.slow.phi_P)
        return [phis[1] - phis[0], phis[2] - phis[1]]

    with_gap, without = moved(gap_penalty=True), moved(gap_penalty=False)
    assert torch.equal(with_gap[0], without[0])  # the slow weights had not moved yet
    assert with_gap[1].norm() < without[1].norm()


def test_c5_a_payload_does_not_change_while_it_is_under_way() -> None:
    me = OuterPeer(run_of(STALE))
    me.train(4)
    out = bytearray(me.outer.payload_bytes(0))
    digest = me.outer.snapshot(Round(0), 0, me.theta_P.clone(), out)
    me.train(4)
    me.apply(0, digest, shares_of(0, [digest]))
    assert digest_of(bytes(out)) == digest


# --- what is refused --------------------------------------------------------------------------

NAN = b"\0\0\xc0\x7f"


def payload_of(label: Label, vector_F: Tensor) -> bytes:
    out = bytearray(label.payload_bytes)
    compress.encode(vector_F, label, torch.Generator().manual_seed(0), out)
    return bytes(out)


def wrong_payloads() -> dict[str, bytes]:
    """Each would be right but for one thing."""
    (whole,) = fragments(MODEL, 0)
    right = Label(codec="fp32", content="gradient", fragment=0, round=0, count=whole.size)
    zeros_F = torch.zeros(whole.size)
    good = payload_of(right, zeros_F)
    one_less = replace(right, count=whole.size - 1)
    return {
        "round": payload_of(replace(right, round=1), zeros_F),
        "fragment": payload_of(replace(right, fragment=1), zeros_F),
        "content": payload_of(replace(right, content="vector"), zeros_F),
        "codec": payload_of(replace(right, codec="bf16"), zeros_F),
        "count": payload_of(one_less, zeros_F[1:]),
        "NaN": good[: HEADER.size] + NAN + good[HEADER.size + 4 :],
        "nothing": b"",
    }


@pytest.mark.parametrize("wrong", wrong_payloads().values(), ids=wrong_payloads())
@pytest.mark.parametrize("config", [EXACT, STALE], ids=["at once", "stale"])
def test_a_payload_that_is_not_what_it_must_be_is_refused_by_name_and_changes_nothing(
    config: DilocoConfig, wrong: bytes
) -> None:
    me = OuterPeer(run_of(config))
    me.train(2)
    mine, _ = me.snapshot(0)
    before, culprit = me.state(), digest_of(wrong)
    with pytest.raises(PayloadRefused) as refused:
        me.apply(0, mine, shares_of(0, [mine, culprit]), {culprit: wrong})
    assert refused.value.culprit == culprit
    assert equal(me.state(), before)
    me.apply(0, mine, shares_of(0, [mine]))  # without it
    assert not equal(me.state(), before)


def test_a_diverged_gradient_is_not_sent() -> None:
    me = OuterPeer(run_of(EXACT))
    me.theta_P[7] = float("nan")
    with pytest.raises(ValueError, match="training diverged"):
        me.snapshot(0)
