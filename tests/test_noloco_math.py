"""The invariants of NoLoCo's outer step, N1 to N10 of docs/algorithms.md, on the real functions.

N1 with payloads, N6 over many rounds and N7 are in test_outer_pair.py; that a spec refuses what
N8 shows is tested with the spec.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Generator, Tensor

from protocol.model import GptConfig, InnerConfig
from protocol.payload import Label
from trainers import compress, outer
from trainers.inner import Inner
from trainers.model import initial_weights

ALPHA, BETA, GAMMA = 0.5, 0.7, 0.7


def rng(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=rng(seed))


def pair_step(
    phi: Tensor, delta: Tensor, mean: Tensor, *, alpha: float, gamma: float
) -> tuple[Tensor, Tensor]:
    return outer.heavy_ball(phi, delta, outer.pair_pull(mean, phi, gamma=gamma), alpha=alpha)


def alone_step(
    phi: Tensor, delta: Tensor, theta: Tensor, *, alpha: float, beta: float
) -> tuple[Tensor, Tensor]:
    return outer.heavy_ball(phi, delta, outer.alone_pull(phi, theta, beta=beta), alpha=alpha)


def pair_mean(mine: Tensor, theirs: Tensor, my_weight: float) -> Tensor:
    return outer.weighted_mean([mine, theirs], [my_weight, 1.0 - my_weight])


def through(codec: str, vector: Tensor, noise: Generator) -> Tensor:
    """As a partner decodes it."""
    label = Label(codec=codec, content="vector", fragment=0, round=0, count=len(vector))
    buffer = bytearray(label.payload_bytes)
    compress.encode(vector, label, noise, buffer)
    return compress.decode(buffer, label)


def two_vector_step(
    phis: Tensor, deltas: Tensor, thetas: Tensor, *, alpha: float, beta: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """The paper's form with the sign of its code, for a pair stacked on the first axis."""
    phi_mean = (phis[0] + phis[1]) * 0.5
    drift = ((thetas[0] - phis[0]) + (thetas[1] - phis[1])) * 0.5
    deltas = alpha * deltas + beta * drift + gamma * (phi_mean - phis)
    return phis + deltas, deltas


def matched_step(
    phis_TN: Tensor, deltas_TN: Tensor, *, alpha: float, gamma: float, seed: int
) -> tuple[Tensor, Tensor]:
    """The exchange alone (beta = 0), over a random perfect matching of N peers in each trial T."""
    order_TN = torch.rand(phis_TN.shape, generator=rng(seed)).argsort(dim=1)
    left, right = order_TN[:, 0::2], order_TN[:, 1::2]
    v_TN = outer.pair_vector(torch.zeros_like(phis_TN), phis_TN, beta=0.0, gamma=gamma)
    mean = pair_mean(v_TN.gather(1, left), v_TN.gather(1, right), 0.5)
    mean_TN = torch.empty_like(v_TN).scatter_(1, left, mean).scatter_(1, right, mean)
    return pair_step(phis_TN, deltas_TN, mean_TN, alpha=alpha, gamma=gamma)


def spread(phis_TN: Tensor) -> float:
    return phis_TN.var(dim=1, correction=0).mean().item()


@pytest.mark.parametrize("gamma", [0.7, 0.3, 1.2])
def test_n1_one_vector_equals_two(gamma: float) -> None:
    phis, deltas, thetas = (normal(2, 500, seed=s).double() for s in (1, 2, 3))
    expected = two_vector_step(phis, deltas, thetas, alpha=ALPHA, beta=BETA, gamma=gamma)
    v = [outer.pair_vector(thetas[i], phis[i], beta=BETA, gamma=gamma) for i in (0, 1)]
    for me in (0, 1):
        mean = pair_mean(v[me], v[1 - me], 0.5)
        phi, delta = pair_step(phis[me], deltas[me], mean, alpha=ALPHA, gamma=gamma)
        torch.testing.assert_close(phi, expected[0][me], rtol=0, atol=1e-14)
        torch.testing.assert_close(delta, expected[1][me], rtol=0, atol=1e-14)


def test_n1_the_printed_minus_sign_is_not_what_we_do() -> None:
    """One peer at beta 1 lands on its own fast weights, not on the far side of phi."""
    phi, theta = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0])
    after, _ = alone_step(phi, torch.zeros(2), theta, alpha=0.0, beta=1.0)
    assert torch.equal(after, theta)


def test_n2_exchanges_without_momentum_and_gradient_keep_the_sum() -> None:
    phis = normal(300, 8, seed=4)
    start = phis.mean(dim=1)
    for round in range(50):
        phis, _ = matched_step(phis, torch.zeros_like(phis), alpha=0.0, gamma=GAMMA, seed=round)
    torch.testing.assert_close(phis.mean(dim=1), start, rtol=0, atol=6e-7)


def test_n3_two_peers_are_equal_after_one_exchange_at_gamma_one() -> None:
    phis = normal(200, 2, seed=5)
    after, _ = matched_step(phis, torch.zeros_like(phis), alpha=0.0, gamma=1.0, seed=1)
    torch.testing.assert_close(after[:, 0], after[:, 1], rtol=0, atol=3e-7)


@pytest.mark.parametrize(
    ("peers", "gamma", "rho"),
    [(4, 1.0, 0.3333), (4, 0.7, 0.3933), (8, 0.7, 0.48), (64, 1.0, 0.4921), (64, 0.7, 0.5378)],
)
def test_n4_consensus_contracts_as_derived(peers: int, gamma: float, rho: float) -> None:
    phis = normal(3000, peers, seed=6)
    after, _ = matched_step(phis, torch.zeros_like(phis), alpha=0.0, gamma=gamma, seed=2)
    assert spread(after) / spread(phis) == pytest.approx(rho, rel=0.03)


def test_n5_alone_at_beta_one_training_is_not_disturbed() -> None:
    config = GptConfig(layers=1, heads=2, width=16, context=8, vocab=257)
    start = initial_weights(config, rng(7))
    apart, whole = (Inner(config, InnerConfig(), start.clone()) for _ in range(2))
    phi, delta = start, torch.zeros_like(start)
    for step in range(12):
        tokens = torch.randint(0, 257, (4, 9), generator=rng(step))
        for inner in (apart, whole):
            inner.step(tokens[:, :-1], tokens[:, 1:], 1e-3)
        if step % 4 == 3:
            theta = apart.theta_P.clone()
            phi, delta = alone_step(phi, delta, theta, alpha=0.0, beta=1.0)
            apart.theta_P.add_(outer.overlap_shift(phi, theta))
    torch.testing.assert_close(apart.theta_P, whole.theta_P, rtol=0, atol=5e-6)  # key biases


def test_n6_equal_peers_do_what_one_does_to_the_bit() -> None:
    phi, delta, theta = (normal(1000, seed=s) for s in (8, 9, 10))
    v = outer.pair_vector(theta, phi, beta=BETA, gamma=GAMMA)
    theirs = through("fp32", v, rng(0))
    pair = pair_step(phi, delta, pair_mean(v, theirs, 0.5), alpha=ALPHA, gamma=GAMMA)
    single = pair_step(phi, delta, v, alpha=ALPHA, gamma=GAMMA)
    assert torch.equal(pair[0], single[0])
    heavy_ball = alone_step(phi, delta, theta, alpha=ALPHA, beta=BETA)
    torch.testing.assert_close(pair[0], heavy_ball[0], rtol=0, atol=1e-6)


def test_n6_the_mean_is_the_same_on_both_sides_to_the_bit() -> None:
    a, b = normal(1000, seed=11), normal(1000, seed=12)
    assert torch.equal(pair_mean(a, b, 0.5), pair_mean(b, a, 0.5))
    assert torch.equal(pair_mean(a, b, 0.75), pair_mean(b, a, 0.25))


@pytest.mark.parametrize(("alpha", "grows"), [(0.9, True), (0.5, False)])
def test_n8_momentum_of_point_nine_drives_peers_apart(alpha: float, grows: bool) -> None:
    phis = normal(500, 16, seed=13)
    deltas, before = torch.zeros_like(phis), spread(phis)
    for round in range(30):
        phis, deltas = matched_step(phis, deltas, alpha=alpha, gamma=GAMMA, seed=round)
    assert (spread(phis) > 4 * before) if grows else (spread(phis) < 1e-3 * before)


def test_n9_half_the_squared_pair_distance_is_the_variance_across_peers() -> None:
    """Of the fast weights: with gamma = beta that is what one vector shows."""
    thetas, phis = normal(16, 1000, seed=14), normal(16, 1000, seed=15)
    vectors = [
        outer.pair_vector(theta, phi, beta=BETA, gamma=GAMMA)
        for theta, phi in zip(thetas, phis, strict=True)
    ]
    spreads = [outer.vector_spread(a, b, beta=BETA) for a, b in itertools.combinations(vectors, 2)]
    variance = thetas.var(dim=0, correction=1).sum().item()
    assert sum(spreads) / len(spreads) == pytest.approx(variance, rel=1e-4)
    matching = [outer.vector_spread(*vectors[i : i + 2], beta=BETA) for i in range(0, 16, 2)]
    assert sum(matching) / len(matching) == pytest.approx(variance, rel=0.1)


def moved_in_200_rounds(codec: str) -> float:
    """How far two peers go whose inner steps add a thousandth of each weight a round."""
    count = 2000
    start = normal(count, seed=16) * 0.02
    drift = 1e-3 * start.abs()
    phis, noise = [start, start], rng(17)
    for _ in range(200):
        vectors = []
        for phi in phis:
            v = outer.pair_vector(phi + drift, phi, beta=BETA, gamma=GAMMA)
            if codec == "nearest":
                vectors.append(v.bfloat16().float())
                continue
            vectors.append(through(codec, v, noise))
        mean = pair_mean(vectors[0], vectors[1], 0.5)
        phis = [pair_step(phi, torch.zeros(count), mean, alpha=0.0, gamma=GAMMA)[0] for phi in phis]
    return ((phis[0] - start).mean() / drift.mean()).item()


@pytest.mark.parametrize(("codec", "within"), [("bf16", 0.03), ("int8", 0.03)])
def test_n10_stochastic_rounding_moves_as_far_as_fp32(codec: str, within: float) -> None:
    exact = moved_in_200_rounds("fp32")
    assert moved_in_200_rounds(codec) == pytest.approx(exact, rel=within)


def test_n10_rounding_to_nearest_would_stall() -> None:
    assert moved_in_200_rounds("nearest") < 0.9 * moved_in_200_rounds("fp32")
