"""A short vector that tells how far two vectors of weights are apart, without sending either.

Numbers of the vector, each with a random sign, are summed into 256 buckets.  The squared distance
of two sketches is on average that of the vectors, with a standard deviation of 9 % of it.  The
signs come from a nonce that whoever asks draws afresh: who does not know it beforehand cannot
make weights that are far away and look near.

Shape suffixes: P parameters, S buckets.
Source: Alon, Matias, Szegedy 1999, "The space complexity of approximating the frequency moments";
Charikar, Chen, Farach-Colton 2002, "Finding frequent items in data streams" (buckets).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from protocol.scalar import Draw
from protocol.witness import BUCKETS
from trainers.perturb import sign_chunks


def sketch(weights_P: Tensor, nonce: int) -> Tensor:
    """The sketch of a vector, float32 (S,).

    Args:
        nonce: of 64 bits.
    """
    draws, device = [Draw(key=nonce, step=0, sample=0)], weights_P.device
    sums_S = torch.zeros(BUCKETS, dtype=torch.float64, device=device)
    for start, signs_1C in sign_chunks(draws, len(weights_P), device):
        signed_C = weights_P[start : start + signs_1C.shape[1]].double() * signs_1C[0]
        padded = F.pad(signed_C, (0, -len(signed_C) % BUCKETS))
        sums_S += padded.view(-1, BUCKETS).sum(dim=0)  # chunks begin at multiples of the buckets
    return sums_S.float()
