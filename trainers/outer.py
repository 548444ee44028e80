"""The arithmetic of outer steps: pure functions of vectors, nothing else.

noloco (pairs; peers' slow weights differ), heavy ball, with v the one vector that suffices:

    v_i     = beta theta_i - (beta - gamma) phi_i
    delta_i = alpha delta_i + mean_j(v_j) - gamma phi_i
            = alpha delta_i + beta mean_j(theta_j - phi_j) + gamma (mean_j(phi_j) - phi_i)
    phi_i   = phi_i + delta_i

The sign of the paper's eq. 2 is wrong, its code and eq. 32 are right: theta - phi points
downhill and is *added*.

diloco and streaming (everyone's slow weights are equal), Nesterov in torch's form:

    g = mean_j(phi - theta_j);  b = mu b + g;  phi = phi - lr (g + mu b)

The outer gradient phi - theta points uphill and is *subtracted*.  Mixing the two conventions
up, or heavy ball and Nesterov, is the classic mistake; tests pin both.

All float32 (F,), one fragment; inputs are left alone.  phi slow weights, theta fast weights at
the snapshot, delta and b outer momentum.
Sources: NoLoCo, https://arxiv.org/abs/2506.10911, eqs. 1-3 and `sparse_optimizer_c.py`;
DiLoCo, https://arxiv.org/abs/2311.08105, algorithm 1; CO2, https://arxiv.org/abs/2401.16265.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

GAP_STEPS = 256
"""The staleness gap is rounded to 1 / 256, so that peers whose norms differ in the last bit
still divide by the same number."""


def weighted_mean(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The mean in the given order, in float32; equal inputs in equal order give equal bits.

    At equal weights the sum is divided once: `(a + b) / 2` is commutative to the bit, and
    exactly the vector for two equal peers.
    """
    if len(set(weights)) == 1:
        total_F = vectors[0]
        for vector_F in vectors[1:]:
            total_F = total_F + vector_F
        return total_F / len(vectors)
    mean_F = weights[0] * vectors[0]
    for vector_F, weight in zip(vectors[1:], weights[1:], strict=True):
        mean_F = mean_F + weight * vector_F
    return mean_F


# --- noloco ----------------------------------------------------------------------------------


def pair_vector(theta_F: Tensor, phi_F: Tensor, *, beta: float, gamma: float) -> Tensor:
    """v, the one vector that a peer sends."""
    if beta == gamma:
        return beta * theta_F
    return beta * theta_F - (beta - gamma) * phi_F


def pair_pull(mean_F: Tensor, phi_F: Tensor, *, gamma: float) -> Tensor:
    """What the pair's mean of v adds to the outer momentum."""
    return mean_F - gamma * phi_F


def two_vector_pull(
    slow_mean_F: Tensor, gradient_F: Tensor, phi_F: Tensor, *, beta: float, gamma: float
) -> Tensor:
    """The same from the pair's mean of phi and its outer gradient, as published."""
    return gamma * (slow_mean_F - phi_F) - beta * gradient_F


def alone_pull(phi_F: Tensor, theta_F: Tensor, *, beta: float) -> Tensor:
    """The same without a partner: n = 1, where the gamma term vanishes.

    Takes the exact fast weights, not a payload: nothing was sent, so nothing was rounded.
    """
    return beta * (theta_F - phi_F)


def heavy_ball(
    phi_F: Tensor, delta_F: Tensor, pull_F: Tensor, *, alpha: float, clip: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The next slow weights and outer momentum."""
    delta_F = clipped(alpha * delta_F + pull_F, clip)
    return phi_F + delta_F, delta_F


def overlap_shift(phi_F: Tensor, theta_F: Tensor) -> Tensor:
    """What to add to the fast weights of now when an exchange closes.

    `phi_F` are the new slow weights, `theta_F` the fast weights at the snapshot: the steps
    made since the snapshot stay.  Without any, the fast weights become the slow ones.
    """
    return phi_F - theta_F


def vector_spread(mine_F: Tensor, theirs_F: Tensor, *, beta: float) -> float:
    """|v_i - v_j|^2 / (2 beta^2): the spread of the fast weights, sum over parameters.

    With gamma = beta, v = beta theta, and the mean of this over random pairs estimates the
    sample variance of theta across peers at the snapshot (N9 of docs/algorithms.md for theta
    instead of phi, plus the codec's rounding).  For another gamma it holds up to the phi part
    of v.  Zero when beta is: then nothing of theta travels.
    """
    if beta == 0.0:
        return 0.0
    return spread(mine_F, theirs_F) / (beta * beta)


def spread(mine_F: Tensor, theirs_F: Tensor) -> float:
    """|a - b|^2 / 2: over random pairs its mean is the sample variance across peers (N9)."""
    return (mine_F - theirs_F).square().sum().item() / 2.0


# --- diloco and streaming --------------------------------------------------------------------


def outer_gradient(phi_F: Tensor, theta_F: Tensor) -> Tensor:
    """Slow minus fast weights: points uphill, so optimizers subtract it."""
    return phi_F - theta_F


def nesterov(
    phi_F: Tensor,
    buffer_F: Tensor,
    gradient_F: Tensor,
    *,
    lr: float,
    momentum: float,
    clip: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The next slow weights and buffer, bit for bit as torch's SGD(nesterov=True) takes them."""
    buffer_F = clipped((momentum * buffer_F).add(gradient_F), clip)
    return phi_F.add(gradient_F.add(buffer_F, alpha=momentum), alpha=-lr), buffer_F


def mixed(theta_F: Tensor, phi_F: Tensor, *, mix: float) -> Tensor:
    """The fast weights after a fragment was applied: a theta + (1 - a) phi."""
    if mix == 0.0:
        return phi_F
    return (mix * theta_F).add(phi_F, alpha=1.0 - mix)


# --- CO2 -------------------------------------------------------------------------------------


def staleness_gap(moved: float, reach: float) -> float:
    """What a stale outer gradient is divided by, at least 1.

    1 + moved / reach: how far the slow weights moved while it was on its way, against the
    farthest that inner steps ever went.  The paper's eq. 3 was not to be had; this is its
    gap-aware reading, and the published code uses a constant.
    """
    if reach <= 0.0:
        return 1.0
    return round((1.0 + moved / reach) * GAP_STEPS) / GAP_STEPS


def clipped(momentum_F: Tensor, bound: float) -> Tensor:
    """The momentum, each entry within the bound; 0 is none.  (CO2's code throws this away.)"""
    return momentum_F.clamp(-bound, bound) if bound else momentum_F
