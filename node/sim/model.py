"""The real model as a simulated peer's learner: what `node.worker.process` does, in this process.

The same arithmetic in the same order as `node.worker.loop` and `node.worker.session`, without
their threads, files and sockets: inner steps on this peer's own tokens, snapshots encoded by
the run's codecs, outer steps from the decoded payloads.  So a simulated run is what real peers
with the same order of events would compute, to the bit.

The caller says how many threads torch has.  Saved states are never written to, so many may be
kept at the price of what differs between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from node import corpus
from node.sim.learners import Learners, Measured
from node.sim.spsa import SummedLearners
from node.sim.worker import Refused
from node.worker.materials import initial_slow
from protocol.algorithms import LocalConfig, SpsaConfig, SyncConfig
from protocol.errors import PayloadRefused
from protocol.ids import Digest, PeerId, Round
from protocol.spec import RunSpec
from trainers import data, tokenizer
from trainers.data import Validation
from trainers.effects import ApplyOuter
from trainers.inner import Inner, lr_in
from trainers.model import model_on
from trainers.outers import outer_of
from trainers.state import Fast, Slow

BYTES_A_NUMBER = 4
"""States travel in float32."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelState:
    """What a restarted peer, or another one, goes on from."""

    peer: PeerId
    """Whose: nobody else takes its fast weights."""
    slow: Slow
    fast: Fast


class ModelLearner:
    """One peer's model; see `node.sim.worker.Learner`."""

    def __init__(self, spec: RunSpec, peer: PeerId, tokens_N: Tensor) -> None:
        """Args: tokens_N: this peer's training text, int32."""
        self._spec = spec
        self._peer = peer
        self._tokens_N = tokens_N
        self._averages_gradients = isinstance(spec.trainer, SyncConfig)
        """The optimizer steps with the mean gradient, which is an outer step's business."""
        slow = initial_slow(spec)
        self._outer = outer_of(spec, peer, slow)
        self._inner = Inner(spec.model, spec.inner, slow.phi_P.clone())
        self._weights = slow.digest()
        self.inner_step = 0
        """Made in the run; the next one draws the batch of this number."""
        self._step_in_round = 0
        self.loss = 0.0
        """Of the newest batch, nats per token."""

    @property
    def slow(self) -> Slow:
        """What this peer is measured by, and what others may start from."""
        return self._outer.slow

    @property
    def state_bytes(self) -> int:
        slow = self._outer.slow
        vectors = [slow.phi_P, slow.delta_P, *slow.shared.values()]
        return BYTES_A_NUMBER * sum(vector.numel() for vector in vectors)

    def train(self, round: Round, steps: int) -> None:
        config = self._spec.inner
        for _ in range(steps):
            inputs_BT, targets_BT = data.batch(
                self._tokens_N,
                seed=self._spec.seed,
                peer=self._peer,
                step=self.inner_step,
                batch=config.batch,
                context=self._spec.model.context,
            )
            if self._averages_gradients:
                loss = self._inner.backward(inputs_BT, targets_BT)
            else:
                lr = lr_in(self._spec, round, self._step_in_round)
                loss = self._inner.step(inputs_BT, targets_BT, lr)
            self.loss = loss.item()
            self.inner_step += 1
            self._step_in_round += 1

    def snapshot(self, round: Round, fragment: int) -> tuple[Digest, int, object]:
        inner = self._inner
        sent_P = inner.gradient_P if self._averages_gradients else inner.theta_P
        self._step_in_round = 0
        out = bytearray(self._outer.payload_bytes(fragment))
        digest = self._outer.snapshot(round, fragment, sent_P.clone(), out)
        return digest, len(out), out

    def outer(self, effect: ApplyOuter, contents: Mapping[Digest, object]) -> None:
        payloads = {
            digest: content
            for digest, content in contents.items()
            if isinstance(content, bytes | bytearray)
        }
        try:
            applied = self._outer.apply(
                effect.round, effect.fragment, effect.mine, effect.shares, payloads
            )
        except PayloadRefused as error:
            raise Refused(error.culprit, str(error)) from error
        if effect.mine is None and isinstance(self._spec.trainer, LocalConfig):
            self._step_in_round = 0  # nobody else counts its rounds
        applied.merge(self._inner)
        if applied.slow is None:
            theta_P = self._inner.theta_P.clone()
            self._outer.slow = replace(self._outer.slow, round=effect.round, phi_P=theta_P)
        self._weights = self._outer.slow.digest()

    def weights(self) -> Digest:
        return self._weights

    def save(self) -> object:
        inner = self._inner
        fast = Fast(inner.theta_P.clone(), inner.moments(), self.inner_step, self._step_in_round)
        return ModelState(self._peer, self._outer.slow, fast)

    def load(self, state: object) -> None:
        """A restarted worker goes on as it was; of another peer's state our optimizer stays.

        In a sync run the optimizer is everybody's.
        """
        assert isinstance(state, ModelState)
        slow, fast = state.slow, state.fast
        is_mine = state.peer == self._peer
        if is_mine or self._averages_gradients:
            self._inner.restore(fast.moments)
        if is_mine:
            self.inner_step = fast.inner_step
        else:
            slow = replace(slow, own={})
        self._inner.theta_P.copy_(fast.theta_P if is_mine else slow.phi_P)
        self._step_in_round = 0  # as `node.sim.worker.Worker` counts
        self._outer = outer_of(self._spec, self._peer, slow)
        self._weights = slow.digest()


class ModelLearners:
    """One text for all peers of a simulation; see `node.sim.learners.Learners`."""

    def __init__(self, spec: RunSpec, tokens_N: Tensor, validation: Validation) -> None:
        self._spec = spec
        self._tokens_N = tokens_N
        self._validation = validation
        self._learners: dict[PeerId, ModelLearner] = {}

    def learner(self, peer: PeerId, number: int) -> ModelLearner:
        self._learners[peer] = ModelLearner(self._spec, peer, self._tokens_N)
        return self._learners[peer]

    def measure(self, peers: Sequence[PeerId]) -> Measured:
        phi_NP = torch.stack([self._learners[peer].slow.phi_P for peer in peers])
        mean_P = phi_NP.mean(0)
        loss = self._validation.loss(model_on(self._spec.model, mean_P))
        return Measured(loss, (phi_NP - mean_P).square().mean().sqrt().item())


def models_of(spec: RunSpec, cache: Path) -> Learners:
    """The run's model on Shakespeare's works, the default text of a run.

    Raises:
        ConfigError: they cannot be had.
    """
    text = corpus.load("shakespeare", cache)
    vocab = spec.model.vocab
    bpe = tokenizer.load_tokenizer(tokenizer.train_tokenizer(text.train.decode(), vocab), vocab)
    tokens_N = torch.tensor(tokenizer.encode(bpe, text.train.decode()), dtype=torch.int32)
    held_out_N = torch.tensor(tokenizer.encode(bpe, text.validation.decode()))
    validation = Validation(held_out_N, tokenizer.token_bytes(bpe), spec.model.context)
    if isinstance(spec.trainer, SpsaConfig):
        return SummedLearners(spec, tokens_N, validation)
    return ModelLearners(spec, tokens_N, validation)
