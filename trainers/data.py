"""Tokens into the batches of (run, peer, step), and the yardstick of a run.

A batch depends on nothing but the run's seed, the peer and the step, so a restarted worker
repeats nothing and no iterator needs saving; two peers draw different windows of the same
text.  The loss of the validation text is in nats per *byte*: it does not depend on how the
tokenizer cuts.

Shape suffixes: N tokens of a text, B batch, T tokens of a window.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from protocol.ids import PeerId, seed_of
from trainers.model import Gpt

EVALUATION_BATCH = 32
"""Windows evaluated at once: bounds memory, measured no faster above."""


def batch(
    tokens_N: Tensor, *, seed: int, peer: PeerId, step: int, batch: int, context: int
) -> tuple[Tensor, Tensor]:
    """Inputs and targets, int64 (B, T) each: random windows, targets one token later."""
    if len(tokens_N) <= context:
        raise ValueError(f"{len(tokens_N)} tokens of training text, expected over {context}")
    rng = Generator().manual_seed(seed_of(seed, "data", peer, step))
    starts_B = torch.randint(0, len(tokens_N) - context, (batch,), generator=rng)
    windows = tokens_N[starts_B[:, None] + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]


class Validation:
    """Fixed windows of a text; every token but the first is predicted once."""

    def __init__(self, tokens_N: Tensor, token_bytes: list[int], context: int) -> None:
        if len(tokens_N) < 2:
            raise ValueError(f"{len(tokens_N)} tokens of validation text, expected 2 or more")
        tokens_N = tokens_N.long()
        whole = (len(tokens_N) - 1) // context * context
        self._batches = [
            (tokens_N[:-1][:whole].view(-1, context)[i : i + EVALUATION_BATCH],
             tokens_N[1:][:whole].view(-1, context)[i : i + EVALUATION_BATCH])
            for i in range(0, whole // context, EVALUATION_BATCH)
        ]  # fmt: skip
        if whole < len(tokens_N) - 1:  # the rest is a shorter window
            self._batches.append((tokens_N[None, whole:-1], tokens_N[None, whole + 1 :]))
        self._num_bytes = int(torch.tensor(token_bytes)[tokens_N[1:]].sum())

    @torch.no_grad()
    def loss(self, model: Gpt) -> float:
        """Nats per byte: nats of all predicted tokens over the bytes they stand for."""
        device = model.tokens.weight.device
        nats = 0.0
        for inputs_BT, targets_BT in self._batches:
            logits_BTV = model(inputs_BT.to(device))
            targets = targets_BT.to(device).flatten()
            nats += F.cross_entropy(logits_BTV.flatten(0, 1), targets, reduction="sum").item()
        return nats / self._num_bytes
