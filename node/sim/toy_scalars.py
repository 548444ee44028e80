"""The toy of spsa: slopes of the same quadratic, added up as the real worker adds them.

Bytes, weights and the integer sum are those of `protocol.scalar`; only the perturbations come
from another generator, for the real one needs torch.  What a frame adds is worked out once for
all peers, so that thousands of them can add it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from node.sim.learners import Measured
from node.sim.state import Saved
from node.sim.toy import Vector, measured
from protocol.algorithms import SpsaConfig
from protocol.ids import Digest, PeerId, Round, digest_of
from protocol.scalar import TABLE, LinearSchedule, shift, to_byte, weight
from protocol.spec import RunSpec
from protocol.spsa import BOOT_BYTES, HORIZON_ENTRY_BYTES, Frame, LogId, log_id, packed, unpacked

Sum = NDArray[np.int64]

MAX_FRAMES_KEPT = 100_000
"""What they add; worked out again if asked for later.  Some 20 MB."""
STATE_BYTES_A_NUMBER = 8
"""Of the sum."""
VECTORS_A_LAYER = 13
"""Of the width of the model: 9 of biases, 4 of norms.  The sum is over no more by default."""


def boot_of(peer: PeerId, start: int = 0) -> bytes:
    """Of a start of a simulated node, counted from 0: no two have one log."""
    return digest_of(peer.encode() + bytes(start))[:BOOT_BYTES]


class ScalarToys:
    """What all peers of a simulation measure with; see `node.sim.learners.Learners`.

    Args:
        targets: where the data of a peer pull, by its number.
    """

    def __init__(self, spec: RunSpec, targets: Callable[[int], Vector]) -> None:
        assert isinstance(spec.trainer, SpsaConfig)
        self.spec = spec
        self.run = spec.run
        self.config = spec.trainer
        self.numbers = len(targets(0))
        self._targets = targets
        steps = spec.rounds * spec.trainer.inner_steps
        warmup_steps = min(steps, round(spec.inner.warmup_rounds * spec.trainer.inner_steps))
        self._schedule = LinearSchedule(
            lr=spec.trainer.lr,
            min_lr_ratio=spec.inner.min_lr_ratio,
            warmup_steps=warmup_steps,
            steps=steps,
        )
        self._scale = 2.0 ** -shift(spec.trainer.lr)
        self._learners: dict[PeerId, ScalarToy] = {}
        self._added: dict[tuple[PeerId, bytes, int], Sum] = {}

    @property
    def trainable(self) -> int:
        """Numbers that a real sum has: the biases and norms of the model."""
        model = self.spec.model
        return (VECTORS_A_LAYER * model.layers + 2) * model.width

    def learner(self, peer: PeerId, number: int) -> ScalarToy:
        learner = ScalarToy(self, peer, self._targets(number))
        self._learners[peer] = learner
        return learner

    def measure(self, peers: Sequence[PeerId]) -> Measured:
        learners = [self._learners[peer] for peer in peers]
        weights = np.stack([self.weights(learner.sum_Q) for learner in learners])
        return measured(weights, np.stack([learner.target_Q for learner in learners]))

    def weights(self, sum_Q: Sum) -> Vector:
        """They start at zero."""
        return sum_Q.astype(np.float64) * -self._scale

    def added_by(self, frame: Frame) -> Sum:
        """What the scalars of a frame add to the sum."""
        name = (frame.author, frame.boot, frame.first)
        if name not in self._added:
            if len(self._added) >= MAX_FRAMES_KEPT:
                del self._added[next(iter(self._added))]
            self._added[name] = self._worked_out(frame)
        return self._added[name]

    def _worked_out(self, frame: Frame) -> Sum:
        log = log_id(self.run, frame.author, frame.boot)
        units = weight(
            self._schedule,
            step=frame.step,
            authors=frame.authors,
            frame_scalars=len(frame.scalars),
            in_flight=self.config.in_flight,
        )
        sum_Q = np.zeros(self.numbers, np.int64)
        for place, byte in enumerate(frame.scalars):
            step, sample = divmod(place, self.config.samples)
            sum_Q += units * TABLE[byte] * self.signs(log, frame.step + step, sample)
        return sum_Q

    def signs(self, log: LogId, step: int, sample: int) -> Sum:
        """The perturbation of one scalar."""
        seed = log + step.to_bytes(8, "big") + sample.to_bytes(4, "big")
        bits = hashlib.shake_128(seed).digest(-(-self.numbers // 8))
        found = np.unpackbits(np.frombuffer(bits, np.uint8))[: self.numbers]
        return 2 * found.astype(np.int64) - 1


class ScalarToy:
    """One peer's sum; see `node.sim.sampler.ScalarLearner`."""

    def __init__(self, all: ScalarToys, peer: PeerId, target_Q: Vector) -> None:
        self.target_Q = target_Q
        self.sum_Q: Sum = np.zeros_like(target_Q, np.int64)
        self.round = Round(0)
        self._all = all
        self._peer = peer
        self._horizon: dict[LogId, int] = {}

    @property
    def state_bytes(self) -> int:
        """Sum and horizon."""
        return STATE_BYTES_A_NUMBER * self._all.trainable + HORIZON_ENTRY_BYTES * len(self._horizon)

    def sample(self, boot: bytes, step: int, steps: int) -> bytes:
        """Slopes of |theta - target|^2 / 2, which are exact for any eps."""
        samples, inner_steps = self._all.config.samples, self._all.config.inner_steps
        log = log_id(self._all.run, self._peer, boot)
        away_Q = self._all.weights(self.sum_Q) - self.target_Q
        self.round = Round((step + steps) // inner_steps)
        return bytes(
            to_byte(float(away_Q @ self._all.signs(log, each, sample)))
            for each in range(step, step + steps)
            for sample in range(samples)
        )

    def add(self, frames: tuple[Frame, ...]) -> None:
        """Add the scalars of those frames that are the next ones of their logs."""
        for frame in frames:
            log = log_id(self._all.run, frame.author, frame.boot)
            if frame.first == self._horizon.get(log, 0):
                self.sum_Q = self.sum_Q + self._all.added_by(frame)
                self._horizon[log] = frame.first + len(frame.scalars)

    def sum_without(self, less: tuple[Frame, ...]) -> Digest:
        """The name of the sum less these frames."""
        sum_Q = self.sum_Q
        for frame in less:
            sum_Q = sum_Q - self._all.added_by(frame)
        return digest_of(sum_Q.tobytes())

    def save(self) -> Saved:
        """What a restarted peer or a joiner goes on from."""
        return Saved(self.round, self.sum_without(()), self.sum_Q, packed(self._horizon))

    def load(self, saved: Saved) -> None:
        """Go on from a `save`."""
        assert isinstance(saved.state, np.ndarray)
        self.sum_Q, self.round = saved.state, saved.round
        self._horizon = unpacked(saved.horizon)
