"""The inner loop: AdamW on one peer's own data; nothing about peers.

The learning rate is a function of the round, not of a peer's own steps, so that slow and
fast peers meet with the same one.  Weights, gradient and both moments are flat float32 (P,)
vectors, in the order of `trainers.model`; the model, torch's AdamW and whoever takes a
snapshot all look at the same memory.

Sources: AdamW, https://arxiv.org/abs/1711.05101; warm-up and cosine as in nanoGPT.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protocol.ids import Round
from protocol.model import GptConfig, InnerConfig
from protocol.spec import RunSpec
from trainers.model import model_on, num_decayed, views


@dataclass(frozen=True, slots=True)
class Moments:
    """AdamW's state: first and second moments, float32 (P,), and the steps they were made in."""

    first_P: Tensor
    second_P: Tensor
    steps: int


class Inner:
    """The fast weights and the optimizer that moves them.  One thread owns it."""

    def __init__(self, model: GptConfig, config: InnerConfig, theta_P: Tensor) -> None:
        """Args: theta_P: the fast weights, written to from now on; moments begin at zero."""
        self.theta_P = theta_P
        self._config = config
        self._model = model_on(model, theta_P)
        self.gradient_P = torch.zeros_like(theta_P)
        """Of the last batch: read by whoever averages gradients."""
        for name, part in views(model, self.gradient_P).items():
            self._model.get_parameter(name).grad = part  # backward adds to it in place
        self._first_P, self._second_P = torch.zeros_like(theta_P), torch.zeros_like(theta_P)
        self._steps = [torch.zeros((), device=theta_P.device) for _ in range(2)]
        """One for each range: AdamW counts in place, so a shared one would count double."""
        self._optimizer = self._adamw(num_decayed(model))

    def step(self, inputs_BT: Tensor, targets_BT: Tensor, lr: float) -> Tensor:
        """One optimizer step; the batch's mean loss in nats per token, before the step."""
        loss = self.backward(inputs_BT, targets_BT)
        self._update(lr)
        return loss

    def backward(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """The batch's mean loss; its gradient is then in `gradient_P`, not clipped."""
        self.gradient_P.zero_()
        bf16 = self._config.precision == "bf16"
        total = torch.zeros((), device=self.theta_P.device)
        parts = self._config.accumulate
        for inputs, targets in zip(inputs_BT.chunk(parts), targets_BT.chunk(parts), strict=True):
            with torch.autocast(self.theta_P.device.type, dtype=torch.bfloat16, enabled=bf16):
                logits_BTV = self._model(inputs)
            loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets.flatten()) / parts
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def take_step(self, gradient_P: Tensor, lr: float) -> None:
        """One optimizer step with this gradient: the mean of many peers'."""
        self.gradient_P.copy_(gradient_P)
        self._update(lr)

    def _update(self, lr: float) -> None:
        nn.utils.clip_grad_norm_(self._model.parameters(), self._config.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()

    def moments(self, room: Moments | None = None) -> Moments:
        """A copy of the optimizer's state, in memory of `room` if there is one."""
        steps = int(self._steps[0].item())
        if room is None:
            return Moments(self._first_P.clone(), self._second_P.clone(), steps)
        return Moments(
            room.first_P.copy_(self._first_P), room.second_P.copy_(self._second_P), steps
        )

    def restore(self, moments: Moments) -> None:
        """Go on with the state of `moments`."""
        self._first_P.copy_(moments.first_P)
        self._second_P.copy_(moments.second_P)
        for steps in self._steps:
            steps.fill_(float(moments.steps))

    def _adamw(self, decayed: int) -> torch.optim.AdamW:
        """torch's AdamW over two ranges of the flat vectors: matrices, and the rest."""
        config = self._config
        total = self.theta_P.numel()
        ranges = ((0, decayed, config.weight_decay), (decayed, total, 0.0))
        parameters = [nn.Parameter(self.theta_P[start:end]) for start, end, _ in ranges]
        optimizer = torch.optim.AdamW(
            [
                {"params": [parameter], "weight_decay": decay}
                for parameter, (_, _, decay) in zip(parameters, ranges, strict=True)
            ],
            betas=(config.beta1, config.beta2),
            fused=True,
        )
        for parameter, steps, (start, end, _) in zip(parameters, self._steps, ranges, strict=True):
            parameter.grad = self.gradient_P[start:end]
            optimizer.state[parameter] = {
                "step": steps,
                "exp_avg": self._first_P[start:end],
                "exp_avg_sq": self._second_P[start:end],
            }
        return optimizer


def lr_in(spec: RunSpec, round: Round, steps_made: int) -> float:
    """The learning rate of the next inner step in a round."""
    part = min((steps_made + 1) / spec.round_steps(round), 1.0)
    return lr_at(spec.inner, round + part, spec.rounds)


def lr_at(config: InnerConfig, progress: float, rounds: int) -> float:
    """The learning rate at `progress` = round + part of the round done, of `rounds` in all.

    A line from 0 up to `lr` over the warm-up, then half a cosine down to `lr * min_lr_ratio`
    at the end of the last round, where it stays.
    """
    if progress < config.warmup_rounds:
        return config.lr * progress / config.warmup_rounds
    decay_rounds = max(rounds - config.warmup_rounds, 1e-9)
    part = min((progress - config.warmup_rounds) / decay_rounds, 1.0)
    low = config.lr * config.min_lr_ratio
    return low + 0.5 * (config.lr - low) * (1.0 + math.cos(math.pi * part))
