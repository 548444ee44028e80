"""The tensor side of spsa: the sum of a run's scalars, and what a peer measures next.

The weights follow from the run's seed and the sum, so a peer that starts needs nothing but a
sum and its horizon.  Belongs to one thread; weights are replaced, never written to.

Shape suffixes: P parameters, Q trainable ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from protocol.algorithms import SpsaConfig
from protocol.ids import PeerId
from protocol.scalar import Draw, LinearSchedule, shift, to_byte, weight
from protocol.spec import RunSpec
from protocol.spsa import Frame, LogId, log_id
from trainers import data
from trainers.perturb import signs
from trainers.probe import Batch, Probe
from trainers.scalars import Term, add_terms, slope, weights_of
from trainers.subspace import model_subspace


class Summed:
    """The sum at a horizon, and the weights there."""

    def __init__(self, spec: RunSpec, start_P: Tensor) -> None:
        """Args: start_P: the run's initial weights, float32 (P,); left alone."""
        assert isinstance(spec.trainer, SpsaConfig)
        self._run = spec.run
        self._config = spec.trainer
        self._schedule = schedule(spec)
        self.subspace = model_subspace(spec.model, self._config.trainable)
        self._start_P = start_P
        self._start_Q = self.subspace.gather(start_P)
        self.horizon: dict[LogId, int] = {}
        self._sum_Q = torch.zeros(self.subspace.size, dtype=torch.int64, device=start_P.device)
        self.theta_Q = self._start_Q

    @property
    def sum_Q(self) -> Tensor:
        """A copy of the sum, int64 (Q,)."""
        return self._sum_Q.clone()

    @property
    def weights_P(self) -> Tensor:
        """All weights of the model, the trainable ones where the sum puts them."""
        return self.subspace.replaced(self.theta_Q, self._start_P)

    def weights_at(self, sum_Q: Tensor) -> Tensor:
        """The same for another sum; from any thread."""
        theta_Q = weights_of(self._start_Q, sum_Q, shift(self._config.lr))
        return self.subspace.replaced(theta_Q, self._start_P)

    def take_over(self, sum_Q: Tensor, horizon: dict[LogId, int]) -> None:
        """Go on from somebody's sum.

        Raises:
            ValueError: of another number of parameters.
        """
        if sum_Q.shape != self._sum_Q.shape:
            raise ValueError(f"a sum over {len(sum_Q)} parameters, expected {len(self._sum_Q)}")
        self._sum_Q = sum_Q.to(self._sum_Q.device).clone()
        self.horizon = dict(horizon)
        self._move()

    def add(self, frames: Sequence[Frame]) -> None:
        """Add the scalars of those frames that are the next ones of their logs.

        Others are in the sum already, or come again: so what was asked for before a sum was taken
        over does no harm after it.
        """
        for frame in frames:
            log = log_id(self._run, frame.author, frame.boot)
            if frame.first == self.horizon.get(log, 0):
                add_terms(self._sum_Q, self._terms(frame, 1))
                self.horizon[log] = frame.first + len(frame.scalars)
        self._move()

    def without(self, frames: Sequence[Frame], sum_Q: Tensor) -> Tensor:
        """A sum less the scalars of these frames; the given one is left alone."""
        sum_Q = sum_Q.clone()
        for frame in frames:
            add_terms(sum_Q, self._terms(frame, -1))
        return sum_Q

    def _terms(self, frame: Frame, sign: int) -> list[Term]:
        """The scalars of a frame; all weigh what its first step does."""
        key = key_of(log_id(self._run, frame.author, frame.boot))
        samples = self._config.samples
        counted = weight(
            self._schedule,
            step=frame.step,
            authors=frame.authors,
            frame_scalars=len(frame.scalars),
            in_flight=self._config.in_flight,
        )
        return [
            Term(
                draw=Draw(key=key, step=frame.step + place // samples, sample=place % samples),
                byte=byte,
                weight=sign * counted,
            )
            for place, byte in enumerate(frame.scalars)
        ]

    def _move(self) -> None:
        self.theta_Q = weights_of(self._start_Q, self._sum_Q, shift(self._config.lr))


class Sampler:
    """Measures one peer's scalars on its own text."""

    def __init__(
        self, spec: RunSpec, summed: Summed, tokens_N: Tensor, peer: PeerId, log: LogId
    ) -> None:
        assert isinstance(spec.trainer, SpsaConfig)
        self._spec = spec
        self._config = spec.trainer
        self._tokens_N = tokens_N
        self._peer = peer
        self._key = key_of(log)
        self._probe = Probe(spec.model, summed.weights_P, summed.subspace)

    @property
    def tokens_a_step(self) -> int:
        """Of the batches; each is evaluated twice."""
        return self._config.samples * self._spec.inner.batch * self._spec.model.context

    def measure(self, theta_Q: Tensor, step: int) -> tuple[bytes, float]:
        """The bytes of this step's scalars, and the mean of the losses, nats per token.

        Raises:
            ValueError: a loss is not finite: training diverged.
        """
        scalars, losses = [], []
        for sample in range(self._config.samples):
            batch = self._batch(step * self._config.samples + sample, theta_Q.device)
            draw = Draw(key=self._key, step=step, sample=sample)

            def loss(at_Q: Tensor, batch: Batch = batch) -> float:
                losses.append(self._probe.loss(batch, at_Q))
                return losses[-1]

            signs_Q = signs([draw], len(theta_Q), theta_Q.device)[0]
            scalars.append(to_byte(slope(theta_Q, signs_Q, self._config.eps, loss)))
        return bytes(scalars), sum(losses) / len(losses)

    def _batch(self, number: int, device: torch.device) -> Batch:
        inputs_BT, targets_BT = data.batch(
            self._tokens_N,
            seed=self._spec.seed,
            peer=self._peer,
            step=number,
            batch=self._spec.inner.batch,
            context=self._spec.model.context,
        )
        return inputs_BT.to(device), targets_BT.to(device)


def schedule(spec: RunSpec) -> LinearSchedule:
    """The learning rate of a run by step: warm-up and end as the inner settings say."""
    assert isinstance(spec.trainer, SpsaConfig)
    steps = spec.rounds * spec.trainer.inner_steps
    return LinearSchedule(
        lr=spec.trainer.lr,
        min_lr_ratio=spec.inner.min_lr_ratio,
        warmup_steps=min(round(spec.inner.warmup_rounds * spec.trainer.inner_steps), steps),
        steps=steps,
    )


def key_of(log: LogId) -> int:
    """The generator's key of a log's perturbations: its name, as a number."""
    return int.from_bytes(log, "big")
