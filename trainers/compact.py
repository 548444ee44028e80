"""AdamW's second moments in short: of each matrix the means of its rows and of its columns.

A joiner that begins with moments of zero takes steps of the size of the learning rate in every
parameter, and forgets for some twenty steps more than it learns (docs/results/moments.md).  Row and
column means are two hundredths of the numbers and spare it that.

Shape suffixes: P parameters, C numbers of the compact form.
Source: Adafactor, https://arxiv.org/abs/1804.04235, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protocol.model import GptConfig
from trainers.model import views

TINY = 1e-30
"""Instead of a mean of zero: a part that has never had a gradient."""


def compact(model: GptConfig, second_P: Tensor) -> Tensor:
    """Row means, then column means of each matrix, other parts as they are, float32 (C,)."""
    parts: list[Tensor] = []
    for part in views(model, second_P).values():
        parts += [part.mean(dim=1), part.mean(dim=0)] if part.dim() > 1 else [part]
    return torch.cat(parts)


def compact_count(model: GptConfig, parameters_P: Tensor) -> int:
    """C, for a vector of the model."""
    return sum(
        sum(part.shape) if part.dim() > 1 else part.numel()
        for part in views(model, parameters_P).values()
    )


def expanded(model: GptConfig, compact_C: Tensor, like_P: Tensor) -> Tensor:
    """The second moments that the compact form stands for, float32 (P,).

    Args:
        like_P: a vector of the model.
    """
    second_P = torch.empty_like(like_P)
    start = 0
    for part in views(model, second_P).values():
        if part.dim() > 1:
            rows, columns = part.shape
            row_means = compact_C[start : start + rows]
            column_means = compact_C[start + rows : start + rows + columns]
            part.copy_(torch.outer(row_means, column_means) / row_means.mean().clamp_min(TINY))
            start += rows + columns
        else:
            part.copy_(compact_C[start : start + part.numel()])
            start += part.numel()
    return second_P
