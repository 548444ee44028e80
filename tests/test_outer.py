from __future__ import annotations

import torch

from trainers import outer


def test_the_outer_step_leaves_its_inputs_alone() -> None:
    phi, delta, theta = torch.ones(3), torch.ones(3), torch.full((3,), 2.0)
    outer.pair_vector(theta, phi, beta=0.7, gamma=0.5)
    outer.pair_step(phi, delta, outer.pair_mean(theta, theta, 0.3), alpha=0.5, gamma=0.7)
    outer.alone_step(phi, delta, theta, alpha=0.5, beta=0.7)
    assert (phi.tolist(), delta.tolist(), theta.tolist()) == ([1.0] * 3, [1.0] * 3, [2.0] * 3)


def test_the_momentum_is_a_heavy_ball() -> None:
    """The table of the two "Nesterovs": lr .7, momentum .9, constant gradient -1."""
    phi, delta, found = torch.zeros(1), torch.zeros(1), []
    for _ in range(4):
        phi, delta = outer.alone_step(phi, delta, phi - 1.0, alpha=0.9, beta=0.7)
        found.append(round(phi.item(), 3))
    assert found == [-0.7, -2.03, -3.927, -6.334]


def test_with_gamma_equal_to_beta_only_fast_weights_travel() -> None:
    theta, phi = torch.tensor([1.0, -3.0]), torch.tensor([float("nan")] * 2)
    v = outer.pair_vector(theta, phi, beta=0.5, gamma=0.5)
    assert v.tolist() == [0.5, -1.5]


def test_the_heavier_peer_pulls_harder() -> None:
    mine, theirs = torch.tensor([1.0]), torch.tensor([5.0])
    assert outer.pair_mean(mine, theirs, 0.75).item() == 2.0


def test_the_steps_made_since_the_snapshot_stay() -> None:
    """Overlap: theta_s = 2, one step of +0.5 since, new slow weights 3."""
    theta_now = torch.tensor([2.5])
    shift = outer.overlap_shift(torch.tensor([3.0]), torch.tensor([2.0]))
    assert (theta_now + shift).item() == 3.5


def test_the_spread_is_zero_where_nothing_of_theta_travels() -> None:
    assert outer.vector_spread(torch.ones(2), torch.zeros(2), beta=0.0) == 0.0
