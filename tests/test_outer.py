"""The arithmetic of outer steps: one sentence a test."""

from __future__ import annotations

import pytest
import torch

from trainers import outer


def test_the_functions_leave_their_inputs_alone() -> None:
    phi, delta, theta = torch.ones(3), torch.ones(3), torch.full((3,), 2.0)
    outer.pair_vector(theta, phi, beta=0.7, gamma=0.5)
    pull = outer.pair_pull(outer.weighted_mean([theta, theta], [0.3, 0.7]), phi, gamma=0.7)
    outer.heavy_ball(phi, delta, pull, alpha=0.5, clip=0.1)
    outer.nesterov(phi, delta, outer.outer_gradient(phi, theta), lr=0.7, momentum=0.9, clip=0.1)
    outer.mixed(theta, phi, mix=0.5)
    assert (phi.tolist(), delta.tolist(), theta.tolist()) == ([1.0] * 3, [1.0] * 3, [2.0] * 3)


def test_noloco_has_a_heavy_ball() -> None:
    """The table of the two "Nesterovs": lr .7, momentum .9, constant gradient -1."""
    phi, delta, found = torch.zeros(1), torch.zeros(1), []
    for _ in range(4):
        pull = outer.alone_pull(phi, phi - 1.0, beta=0.7)
        phi, delta = outer.heavy_ball(phi, delta, pull, alpha=0.9)
        found.append(round(phi.item(), 3))
    assert found == [-0.7, -2.03, -3.927, -6.334]


def test_diloco_has_torchs_nesterov() -> None:
    """The other half of that table, for the same gradient."""
    phi, buffer, found = torch.zeros(1), torch.zeros(1), []
    for _ in range(4):
        phi, buffer = outer.nesterov(phi, buffer, torch.ones(1), lr=0.7, momentum=0.9)
        found.append(round(phi.item(), 3))
    assert found == [-1.33, -3.227, -5.634, -8.501]


def test_the_nesterov_step_is_torchs_sgd_to_the_bit() -> None:
    rng = torch.Generator().manual_seed(1)
    theirs = torch.nn.Parameter(torch.randn(1000, generator=rng))
    sgd = torch.optim.SGD([theirs], lr=0.7, momentum=0.9, nesterov=True)
    phi, buffer = theirs.detach().clone(), torch.zeros(1000)
    for _ in range(5):
        theirs.grad = torch.randn(1000, generator=rng)
        sgd.step()
        phi, buffer = outer.nesterov(phi, buffer, theirs.grad, lr=0.7, momentum=0.9)
        assert torch.equal(phi, theirs.detach())


def test_the_outer_gradient_points_uphill() -> None:
    """One peer with learning rate 1 and no momentum gets its own fast weights back."""
    phi, theta = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0])
    gradient = outer.outer_gradient(phi, theta)
    after, _ = outer.nesterov(phi, torch.zeros(2), gradient, lr=1.0, momentum=0.0)
    assert torch.equal(after, theta)


def test_with_gamma_equal_to_beta_only_fast_weights_travel() -> None:
    theta, phi = torch.tensor([1.0, -3.0]), torch.tensor([float("nan")] * 2)
    v = outer.pair_vector(theta, phi, beta=0.5, gamma=0.5)
    assert v.tolist() == [0.5, -1.5]


def test_the_heavier_peer_pulls_harder() -> None:
    mine, theirs = torch.tensor([1.0]), torch.tensor([5.0])
    assert outer.weighted_mean([mine, theirs], [0.75, 0.25]).item() == 2.0


def test_the_mean_of_an_equal_pair_is_either_to_the_bit() -> None:
    vector = torch.randn(1000, generator=torch.Generator().manual_seed(2))
    assert torch.equal(outer.weighted_mean([vector, vector], [0.5, 0.5]), vector)


def test_the_steps_made_since_the_snapshot_stay() -> None:
    """Overlap: theta_s = 2, one step of +0.5 since, new slow weights 3."""
    theta_now = torch.tensor([2.5])
    shift = outer.overlap_shift(torch.tensor([3.0]), torch.tensor([2.0]))
    assert (theta_now + shift).item() == 3.5


def test_the_spread_is_zero_where_nothing_of_theta_travels() -> None:
    assert outer.vector_spread(torch.ones(2), torch.zeros(2), beta=0.0) == 0.0


def test_mixing_keeps_so_much_of_the_fast_weights() -> None:
    theta, phi = torch.tensor([4.0]), torch.tensor([8.0])
    found = [outer.mixed(theta, phi, mix=a).item() for a in (0.0, 0.25, 1.0)]
    assert found == [8.0, 7.0, 4.0]


def test_the_clip_bounds_the_momentum_that_is_kept() -> None:
    phi, gradient = torch.zeros(2), torch.tensor([5.0, -0.01])
    _, buffer = outer.nesterov(phi, torch.zeros(2), gradient, lr=1.0, momentum=0.5, clip=0.1)
    _, delta = outer.heavy_ball(phi, torch.zeros(2), gradient, alpha=0.5, clip=0.1)
    assert buffer.tolist() == delta.tolist() == pytest.approx([0.1, -0.01])


@pytest.mark.parametrize(
    ("moved", "reach", "gap"), [(0.0, 3.0, 1.0), (3.0, 3.0, 2.0), (1.0, 0.0, 1.0), (1e-9, 1.0, 1.0)]
)
def test_the_staleness_gap_is_one_and_how_far_the_weights_moved(
    moved: float, reach: float, gap: float
) -> None:
    assert outer.staleness_gap(moved, reach) == gap
