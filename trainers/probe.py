"""What SPSA measures on a model: losses with the trainable parameters somewhere else.

A probe has a copy of all weights of its own and writes trial values of the trainable ones into
it, so the weights of the run are never touched, not even for a moment.  Losses are taken in
fp32, whatever the run's inner precision: bf16 keeps 8 bits of a weight, and with them little of
a perturbation of 1 %; summed in fp64, since c is the small difference of two of them.

Shape suffixes: P parameters, Q trainable ones, B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from protocol.model import GptConfig
from protocol.scalar import Draw
from trainers.model import model_on
from trainers.perturb import signs
from trainers.scalars import slope
from trainers.subspace import Subspace

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, int64 (B, T) each."""


class Probe:
    """A model on weights of its own.  One thread owns it."""

    def __init__(self, config: GptConfig, weights_P: Tensor, subspace: Subspace) -> None:
        """Args: weights_P: copied; those outside the subspace stay as they are."""
        self._subspace = subspace
        self._weights_P = weights_P.clone()
        self._model = model_on(config, self._weights_P).eval()

    @torch.no_grad()
    def loss(self, batch: Batch, theta_Q: Tensor) -> float:
        """Mean loss of a batch in nats per token, with these trainable parameters."""
        self._subspace.scatter(theta_Q, self._weights_P)
        inputs_BT, targets_BT = batch
        logits_BTV = self._model(inputs_BT)
        losses = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none")
        return losses.double().mean().item()

    def slopes(
        self, theta_Q: Tensor, draws: Sequence[Draw], eps: float, batches: Sequence[Batch]
    ) -> list[float]:
        """The scalar of each draw: two losses on the batch that goes with it.

        n samples a step are n draws, each with a batch of its own as in Just One Byte, or all
        with the same one as in MeZO's n-SPSA.
        """
        signs_KQ = signs(draws, self._subspace.size, theta_Q.device)
        return [
            slope(theta_Q, signs_Q, eps, partial(self.loss, batch))
            for signs_Q, batch in zip(signs_KQ, batches, strict=True)
        ]
