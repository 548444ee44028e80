"""The real model of an spsa run as a simulated peer's learner.

What `node.worker.spsa` does, with the same arithmetic, in this process: scalars are measured on
this peer's own batches and added to the integer sum.  The steps of one frame are all measured at
the weights of its end, where the real worker sees what was added from step to step.

The caller says how many threads torch has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from node.donors import SUM_BYTES
from node.sim.learners import Measured
from node.sim.state import Saved
from node.worker.materials import initial_slow
from protocol.algorithms import SpsaConfig
from protocol.ids import Digest, PeerId, Round
from protocol.spec import RunSpec
from protocol.spsa import HORIZON_ENTRY_BYTES, Frame, LogId, log_id, packed, unpacked
from trainers.data import Validation
from trainers.model import model_on
from trainers.scalars import sum_digest
from trainers.summed import Sampler, Summed


class SummedLearner:
    """One peer's sum and what it measures; see `node.sim.sampler.ScalarLearner`."""

    def __init__(self, spec: RunSpec, peer: PeerId, tokens_N: Tensor, start_P: Tensor) -> None:
        """
        Args:
            tokens_N: this peer's training text, int32.
            start_P: the run's initial weights, which all peers of a process may share.
        """
        assert isinstance(spec.trainer, SpsaConfig)
        self.summed = Summed(spec, start_P)
        self.round = Round(0)
        self._spec = spec
        self._run = spec.run
        self._inner_steps = spec.trainer.inner_steps
        self._peer = peer
        self._tokens_N = tokens_N
        self._sampler: tuple[LogId, Sampler] | None = None

    @property
    def state_bytes(self) -> int:
        return SUM_BYTES * self.summed.subspace.size + HORIZON_ENTRY_BYTES * len(
            self.summed.horizon
        )

    def sample(self, boot: bytes, step: int, steps: int) -> bytes:
        log = log_id(self._run, self._peer, boot)
        if self._sampler is None or self._sampler[0] != log:
            sampler = Sampler(self._spec, self.summed, self._tokens_N, self._peer, log)
            self._sampler = (log, sampler)
        theta_Q, (_, sampler) = self.summed.theta_Q, self._sampler
        self.round = Round((step + steps) // self._inner_steps)
        return b"".join(sampler.measure(theta_Q, each)[0] for each in range(step, step + steps))

    def add(self, frames: tuple[Frame, ...]) -> None:
        self.summed.add(frames)

    def sum_without(self, less: tuple[Frame, ...]) -> Digest:
        return sum_digest(self.summed.without(less, self.summed.sum_Q))

    def save(self) -> Saved:
        return Saved(
            self.round, self.sum_without(()), self.summed.sum_Q, packed(self.summed.horizon)
        )

    def load(self, saved: Saved) -> None:
        assert isinstance(saved.state, Tensor)
        self.summed.take_over(saved.state, unpacked(saved.horizon))
        self.round = max(self.round, saved.round)


class SummedLearners:
    """One text for all peers of a simulation; see `node.sim.learners.Learners`."""

    def __init__(self, spec: RunSpec, tokens_N: Tensor, validation: Validation) -> None:
        self._spec = spec
        self._start_P = initial_slow(spec).phi_P
        self._tokens_N = tokens_N
        self._validation = validation
        self._learners: dict[PeerId, SummedLearner] = {}

    def learner(self, peer: PeerId, number: int) -> SummedLearner:
        learner = SummedLearner(self._spec, peer, self._tokens_N, self._start_P)
        self._learners[peer] = learner
        return learner

    def measure(self, peers: Sequence[PeerId]) -> Measured:
        weights_NP = torch.stack([self._learners[peer].summed.weights_P for peer in peers])
        mean_P = weights_NP.mean(0)
        loss = self._validation.loss(model_on(self._spec.model, mean_P))
        return Measured(loss, (weights_NP - mean_P).square().mean().sqrt().item())
