"""The arithmetic of a NoLoCo outer step: pure functions of vectors, nothing else.

    v_i     = beta theta_i - (beta - gamma) phi_i                    (what travels)
    delta_i = alpha delta_i + mean_j(v_j) - gamma phi_i
    phi_i   = phi_i + delta_i

This one-vector form equals the paper's two-vector form for every gamma (a test shows it)
and halves its traffic.  The sign of the paper's eq. 2 is wrong, its code and eq. 32 are
right: Delta = theta - phi points downhill and is *added*.  Heavy ball, not Nesterov.

All float32 (P,); inputs are left alone.  phi slow weights, theta fast weights at the
snapshot, delta outer momentum.
Source: NoLoCo, https://arxiv.org/abs/2506.10911, eqs. 1-3 and `sparse_optimizer_c.py`.
"""

from __future__ import annotations

from torch import Tensor


def pair_vector(theta_P: Tensor, phi_P: Tensor, *, beta: float, gamma: float) -> Tensor:
    """v, the one vector that a peer sends."""
    if beta == gamma:
        return beta * theta_P
    return beta * theta_P - (beta - gamma) * phi_P


def pair_mean(mine_P: Tensor, theirs_P: Tensor, my_weight: float) -> Tensor:
    """The pair's mean of v.

    At equal weights `(a + b) * 0.5`: commutative to the bit, and exactly v for equal peers.
    Both sides pass *decoded* payloads, their own too, so that both have the same mean.
    """
    if my_weight == 0.5:
        return (mine_P + theirs_P) * 0.5
    return my_weight * mine_P + (1.0 - my_weight) * theirs_P


def pair_step(
    phi_P: Tensor, delta_P: Tensor, mean_P: Tensor, *, alpha: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """The next slow weights and outer momentum, given the pair's mean of v."""
    delta_P = alpha * delta_P + (mean_P - gamma * phi_P)
    return phi_P + delta_P, delta_P


def alone_step(
    phi_P: Tensor, delta_P: Tensor, theta_P: Tensor, *, alpha: float, beta: float
) -> tuple[Tensor, Tensor]:
    """The same without a partner: n = 1, where the gamma term vanishes.

    Takes the exact fast weights, not a payload: nothing was sent, so nothing was rounded.
    """
    delta_P = alpha * delta_P + beta * (theta_P - phi_P)
    return phi_P + delta_P, delta_P


def overlap_shift(phi_P: Tensor, theta_P: Tensor) -> Tensor:
    """What to add to the fast weights of now when an exchange closes.

    `phi_P` are the new slow weights, `theta_P` the fast weights at the snapshot: the steps
    made since the snapshot stay.  Without any, the fast weights become the slow ones.
    """
    return phi_P - theta_P


def vector_spread(mine_P: Tensor, theirs_P: Tensor, *, beta: float) -> float:
    """|v_i - v_j|^2 / (2 beta^2): the spread of the fast weights, sum over parameters.

    With gamma = beta, v = beta theta, and the mean of this over random pairs estimates the
    sample variance of theta across peers at the snapshot (N9 of docs/noloco.md for theta instead of
    phi, plus the codec's rounding).  For another gamma it holds up to the phi part of v.
    The spread of phi itself does not follow from one vector: `node.yardstick` measures it.
    Zero when beta is: then nothing of theta travels.
    """
    if beta == 0.0:
        return 0.0
    return (mine_P - theirs_P).square().sum().item() / (2.0 * beta * beta)
