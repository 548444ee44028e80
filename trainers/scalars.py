"""The sum of all scalars of a run, and the weights that follow from it.

    S += W * TABLE[byte] * z                     int64, over the trainable parameters
    theta = theta_0 - float32(S) * 2^-k          k = protocol.scalar.shift(lr)

No float is ever summed, so peers that have taken in the same scalars have the same bits,
whatever the order, and a scalar that is taken out again leaves nothing behind: S at an older
horizon is S now less what came since.  An S that overflows wraps around, at all peers alike;
the weights would have moved by 2^23 learning rates before.

float32(S) is rounded once, to nearest even, and scaled by a power of two: exact, fused or not.

Shape suffixes: K scalars, Q trainable parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protocol.ids import Digest, digest_of
from protocol.scalar import TABLE, Draw
from trainers.perturb import sign_chunks

MOST_AT_ONCE = 64
"""Draws whose signs are made together: a frame's.  Bounds memory, with the chunk of blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One scalar of the sum."""

    draw: Draw
    byte: int
    weight: int
    """W: `protocol.scalar.weight`.  Negated, it takes the scalar out again."""

    @property
    def units(self) -> int:
        """What a positive sign adds to S; below 2^52."""
        return self.weight * TABLE[self.byte]


def add_terms(sum_Q: Tensor, terms: Sequence[Term]) -> None:
    """Add the scalars to `sum_Q`, int64, in place."""
    for start in range(0, len(terms), MOST_AT_ONCE):
        some = [term for term in terms[start : start + MOST_AT_ONCE] if term.units]
        units_K1 = torch.tensor([[term.units] for term in some], device=sum_Q.device)
        for first, signs_KC in sign_chunks([t.draw for t in some], len(sum_Q), sum_Q.device):
            sum_Q[first : first + signs_KC.shape[1]] += (units_K1 * signs_KC).sum(0)


def weights_of(start_Q: Tensor, sum_Q: Tensor, shift: int) -> Tensor:
    """theta, float32 (Q,): where the trainable parameters of `start_Q` are by now."""
    return start_Q - sum_Q.float() * 2.0**-shift


def sum_digest(sum_Q: Tensor) -> Digest:
    """The name of S: the hash of its little-endian bytes, as every machine of torch has them."""
    return digest_of(sum_Q.cpu().contiguous().numpy().data.cast("B"))


def slope(theta_Q: Tensor, signs_Q: Tensor, eps: float, loss: Callable[[Tensor], float]) -> float:
    """c, the scalar: how steeply the loss rises along z.

    Out of place: theta + eps z - 2 eps z + eps z is not theta in floats, so the perturbed
    weights are vectors of their own and theta is not touched.
    """
    step_Q = eps * signs_Q.to(theta_Q.dtype)
    return (loss(theta_Q + step_Q) - loss(theta_Q - step_Q)) / (2.0 * eps)
