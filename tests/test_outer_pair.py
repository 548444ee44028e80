"""noloco's outer step on a real model: alone, in pairs, by fragments, and with CO2's options.

N1 to N10 are of docs/algorithms.md; what needs no payload is in test_noloco_math.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from outer_peer import LR, START_P, OuterPeer, average, drift, equal, run_of, shares_of, train_step
from torch import Tensor

from protocol.algorithms import NolocoConfig
from protocol.errors import PayloadRefused
from protocol.ids import Round, digest_of
from protocol.payload import HEADER, Label, parts
from trainers import compress
from trainers.effects import Share
from trainers.fragments import fragments
from trainers.inner import Inner

EXACT = NolocoConfig(inner_steps=4, beta=0.7, gamma=0.5, codec="fp32", gradient_codec="fp32")
TWO = NolocoConfig(
    inner_steps=4, beta=0.7, gamma=0.5, codec="fp32", gradient_codec="fp32", vectors=2
)
BY_FRAGMENT = NolocoConfig(inner_steps=6, codec="fp32", fragment_layers=1)
FEEDBACK = NolocoConfig(
    inner_steps=4, vectors=2, codec="fp32", gradient_codec="sign", feedback=True
)
STALE = NolocoConfig(
    inner_steps=4, vectors=2, codec="fp32", gradient_codec="fp32", stale=True, alpha=0.5
)


def pair(config: NolocoConfig, *, same_data: bool = False) -> tuple[OuterPeer, OuterPeer]:
    run = run_of(config)
    return OuterPeer(run, 1, data_seed=1), OuterPeer(run, 2, data_seed=1 if same_data else 2)


def heavy_ball_alone(rounds: int, *, late: int) -> tuple[Tensor, Tensor]:
    """N = 1 as a plain loop; `late` inner steps are made before an outer step takes effect."""
    inner = Inner(run_of(EXACT).model, run_of(EXACT).inner, START_P.clone())
    phi_P, delta_P = START_P.clone(), torch.zeros_like(START_P)
    step = 0
    for round in range(rounds):
        for _ in range(4 if round == 0 else 4 - late):
            train_step(inner, 1, step)
            step += 1
        theta_P = inner.theta_P.clone()
        for _ in range(late):
            train_step(inner, 1, step)
            step += 1
        delta_P = 0.5 * delta_P + 0.7 * (theta_P - phi_P)
        phi_P = phi_P + delta_P
        inner.theta_P.add_(phi_P - theta_P)
    return phi_P, inner.theta_P


@pytest.mark.parametrize("config", [EXACT, TWO], ids=["one vector", "two vectors"])
@pytest.mark.parametrize("late", [0, 1])
def test_alone_it_is_a_plain_heavy_ball_loop_to_the_bit(config: NolocoConfig, late: int) -> None:
    me = OuterPeer(run_of(config))
    for round in range(4):
        me.train(4 if round == 0 else 4 - late)
        digest, _ = me.snapshot(round)
        me.train(late)
        me.apply(round, digest)
    assert equal([me.outer.slow.phi_P, me.theta_P], heavy_ball_alone(4, late=late))


def test_n1_two_vectors_do_what_one_does() -> None:
    ends = []
    for config in (EXACT, TWO):
        peers = pair(config)
        for peer in peers:  # apart, so that there is something to average
            peer.drift()
            peer.alone(0)
        for round in range(1, 4):
            for peer in peers:
                peer.drift()
            average(peers, round)
        ends.append([peer.outer.slow.phi_P for peer in peers])
    assert not torch.equal(ends[0][0], ends[0][1])  # gamma below 1: they stay apart
    for one, two in zip(*ends, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_n6_equal_peers_do_what_one_does_alone() -> None:
    """The gamma term is exactly zero, so the exchange is not there."""
    for config in (EXACT, TWO):
        peers, alone = pair(config, same_data=True), OuterPeer(run_of(config))
        for round in range(4):
            for peer in (*peers, alone):
                peer.drift()
            average(peers, round)
            alone.alone(round)
        assert equal(peers[0].state(), peers[1].state())
        if config.vectors == 2:
            assert equal(peers[0].state(), alone.state())
        torch.testing.assert_close(
            peers[0].outer.slow.phi_P, alone.outer.slow.phi_P, rtol=0, atol=1e-6
        )


def test_n7_a_swarm_of_one_pair_is_diloco_with_a_heavy_ball() -> None:
    peers = pair(EXACT)
    phi_P, delta_P = START_P, torch.zeros_like(START_P)
    for round in range(4):
        thetas = phi_P.clone(), phi_P.clone()
        for seed, theta_P in enumerate(thetas, start=1):
            drift(theta_P, seed)
        delta_P = 0.5 * delta_P + 0.7 * ((thetas[0] - phi_P) + (thetas[1] - phi_P)) / 2
        phi_P = phi_P + delta_P
        for peer in peers:
            peer.drift()
        average(peers, round)
        for peer in peers:
            torch.testing.assert_close(peer.outer.slow.phi_P, phi_P, rtol=0, atol=1e-6)


def test_an_exchange_moves_its_fragment_and_nothing_else() -> None:
    peers = pair(BY_FRAGMENT)
    cut = fragments(run_of(BY_FRAGMENT).model, 1)
    for peer in peers:
        peer.train(2)
    before = peers[0].state()
    average(peers, 0, fragment=1)
    for was_P, is_P in zip(before, peers[0].state(), strict=True):
        for fragment, part in enumerate(cut):
            moved = not torch.equal(part.gather(was_P), part.gather(is_P))
            assert moved == (fragment == 1)


def test_fragments_one_after_the_other_move_as_far_as_all_at_once() -> None:
    """Without inner steps in between, three exchanges of a third are one of the whole."""
    config = NolocoConfig(inner_steps=6, codec="fp32")
    whole, cut = pair(config), pair(BY_FRAGMENT)
    for peer in (*whole, *cut):
        peer.train(6)
    average(whole, 0)
    for fragment in range(3):
        average(cut, 0, fragment)
    assert equal(cut[0].state(), whole[0].state())


def test_with_feedback_all_that_is_sent_is_all_that_was_measured_but_for_the_residual() -> None:
    peers = pair(FEEDBACK)
    count = len(START_P)
    sent_P, measured_P = torch.zeros(count), torch.zeros(count)
    for round in range(5):
        for peer in peers:
            peer.train(4)
        me = peers[0]
        measured_P += me.outer.slow.phi_P - me.theta_P
        label = Label(codec="sign", content="gradient", fragment=0, round=round, count=count)
        _, data = me.snapshot(round)
        sent_P += compress.decode(data[-label.payload_bytes :], label)
        average(peers, round)
    residual_P = peers[0].outer.slow.own["residual"]
    assert residual_P.norm() > 0.1 * measured_P.norm()  # a bit a number loses much
    torch.testing.assert_close(sent_P + residual_P, measured_P, rtol=0, atol=1e-6)


def test_a_round_alone_sends_nothing_so_its_residual_stays() -> None:
    peers = pair(FEEDBACK)
    for peer in peers:
        peer.train(4)
    average(peers, 0)
    before_P = peers[0].outer.slow.own["residual"]
    peers[0].train(4)
    peers[0].alone(1)
    assert torch.equal(peers[0].outer.slow.own["residual"], before_P)


def test_c3_a_stale_gradient_is_applied_exactly_one_round_later() -> None:
    """A drift in the first round alone: nothing, then all of it, then the ball rolls on."""
    me = OuterPeer(run_of(STALE))
    me.drift()
    drift_P = me.theta_P - START_P
    phis = [START_P]
    for round in range(3):
        me.alone(round)
        phis.append(me.outer.slow.phi_P)
    moved = [after_P - before_P for before_P, after_P in itertools.pairwise(phis)]
    expected = [torch.zeros_like(START_P), 0.7 * drift_P, 0.5 * 0.7 * drift_P]
    for found_P, expected_P in zip(moved, expected, strict=True):
        torch.testing.assert_close(found_P, expected_P, rtol=0, atol=1e-7)


def test_a_stale_gradient_leaves_the_averaging_of_slow_weights_at_once() -> None:
    me, other = pair(STALE)
    other.outer.slow = replace(other.outer.slow, phi_P=START_P + 1.0)
    other.theta_P.add_(1.0)
    average([me, other], 0)
    torch.testing.assert_close(me.outer.slow.phi_P, START_P + 0.35, rtol=0, atol=1e-6)
    torch.testing.assert_close(other.outer.slow.phi_P, START_P + 0.65, rtol=0, atol=1e-6)


def broken_header(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


NAN = b"\0\0\xc0\x7f"
BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "layout": lambda data: broken_header(data, 3),
    "codec": lambda data: broken_header(data, 4),
    "content": lambda data: broken_header(data, 5),
    "fragment": lambda data: broken_header(data, 6),
    "round": lambda data: broken_header(data, 8),
    "count": lambda data: broken_header(data, 12),
    "short": lambda data: data[:-1],
    "long": lambda data: data + b"\0",
    "empty": lambda data: b"",
    "not a number": lambda data: data[: HEADER.size] + NAN + data[HEADER.size + 4 :],
    "not a number at the end": lambda data: data[:-4] + NAN,
}


@pytest.mark.parametrize("config", [EXACT, TWO], ids=["one vector", "two vectors"])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_payload_that_is_not_what_it_must_be_is_refused_by_name_and_changes_nothing(
    config: NolocoConfig, broken: str
) -> None:
    me, other = pair(config)
    for peer in (me, other):
        peer.train(2)
    mine, _ = me.snapshot(0)
    bad = BROKEN[broken](other.snapshot(0)[1])
    culprit = digest_of(bad)
    before = me.state()
    with pytest.raises(PayloadRefused) as refused:
        me.apply(0, mine, shares_of(0, [culprit, mine]), {culprit: bad})
    assert refused.value.culprit == culprit
    assert equal(me.state(), before)
    good, data = other.snapshot(0)
    me.apply(0, mine, shares_of(0, [good, mine]), {good: data})  # the snapshot is still open
    assert not equal(me.state(), before)


def test_a_payload_made_in_another_round_is_taken_where_its_share_says_so() -> None:
    """A pair's rounds may differ: each header says that of its maker."""
    me, other = pair(EXACT)
    for peer in (me, other):
        peer.train(2)
    mine, _ = me.snapshot(3)
    theirs, data = other.snapshot(5)
    both = (Share(mine, Round(3), 0.5), Share(theirs, Round(5), 0.5))
    assert me.apply(5, mine, both, {theirs: data}).spread > 0
    assert me.outer.slow.round == 6


def test_the_exact_weights_count_alone_and_the_decoded_ones_in_a_pair() -> None:
    """Alone nothing was sent, so nothing was rounded."""
    run = run_of(NolocoConfig(inner_steps=4, codec="bf16", alpha=0.0, beta=1.0, gamma=1.0))
    me = OuterPeer(run)
    me.train(4)
    theta_P = me.theta_P.clone()
    mine, data = me.snapshot(0)
    count = len(START_P)
    label = Label(codec="bf16", content="vector", fragment=0, round=0, count=count)
    (view,) = parts(data, (label,))
    decoded_P = compress.decode(view, label)
    me.apply(0, mine, shares_of(0, [mine]))
    torch.testing.assert_close(me.outer.slow.phi_P, decoded_P, rtol=0, atol=1e-7)
    other = OuterPeer(run)
    other.train(4)
    other.alone(0)
    torch.testing.assert_close(other.outer.slow.phi_P, theta_P, rtol=0, atol=1e-7)
    assert not torch.equal(decoded_P, theta_P)


def test_c2_the_clip_holds_for_the_momentum_that_is_stored() -> None:
    me = OuterPeer(run_of(NolocoConfig(inner_steps=4, momentum_clip=1e-3)))
    for round in range(3):
        me.train(4)
        me.alone(round)
        assert me.outer.slow.delta_P.abs().max().item() == pytest.approx(1e-3)


def test_c4_a_frozen_model_has_no_gap_and_a_moving_one_has() -> None:
    def moved(*, gap_penalty: bool) -> list[Tensor]:
        config = NolocoConfig(
            inner_steps=4, vectors=2, codec="fp32", gradient_codec="fp32", gap_penalty=gap_penalty
        )
        me = OuterPeer(run_of(config))
        phis = []
        for round in range(2):
            me.train(4)
            me.alone(round)
            phis.append(me.outer.slow.phi_P)
        return phis

    with_gap, without = moved(gap_penalty=True), moved(gap_penalty=False)
    assert torch.equal(with_gap[0], without[0])  # the slow weights had not moved yet
    step, free = (phis[1] - phis[0] for phis in (with_gap, without))
    assert step.norm() < free.norm()


def test_c5_a_payload_does_not_change_while_it_is_under_way() -> None:
    me, other = pair(EXACT)
    for peer in (me, other):
        peer.train(4)
    out = bytearray(me.outer.payload_bytes(0))
    digest = me.outer.snapshot(Round(0), 0, me.theta_P.clone(), out)
    theirs, data = other.snapshot(0)
    me.train(4)
    me.apply(0, digest, shares_of(0, [digest, theirs]), {theirs: data})
    assert digest_of(bytes(out)) == digest


def test_the_rate_of_these_steps_is_worth_testing_with() -> None:
    """Else the tests above would compare weights that stand still."""
    me = OuterPeer(run_of(EXACT))
    me.train(1)
    assert LR / 2 < (me.theta_P - START_P).abs().max() < 2 * LR
