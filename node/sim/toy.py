"""A learner small enough to have thousands: a vector pulled towards this peer's own target.

Minimises |theta - target|^2 / 2, so the swarm's optimum is the mean of all targets.  The outer
steps are those of the real worker on float64 vectors, in one order of operations, so peers that
average the same shares from the same slow weights have bit-equal ones.  A fragment is every
P-th entry.

Sources: NoLoCo, https://arxiv.org/abs/2506.10911, equations 1 to 3, as one vector; DiLoCo,
https://arxiv.org/abs/2311.08105, with Nesterov as torch has it; Streaming DiLoCo,
https://arxiv.org/abs/2501.18512, algorithm 2.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.sim.learners import Measured
from node.sim.worker import Refused
from protocol.algorithms import DilocoConfig, LocalConfig, NolocoConfig, SpsaConfig, SyncConfig
from protocol.ids import Digest, PeerId, Round, digest_of
from protocol.labels import payload_sizes
from protocol.spec import RunSpec
from trainers.effects import ApplyOuter, Share

Vector = NDArray[np.float64]
ToyConfig = NolocoConfig | DilocoConfig | SyncConfig | LocalConfig
"""Trainers that the toy has an outer step for: all but spsa, which has none."""

PULL = 0.05
"""Share of the way to the target that one inner step goes."""
PAYLOAD_BYTES = 1_000_000
"""Of a whole payload, unless told otherwise: half a million numbers in bf16."""
STATE_BYTES = 4_000_000
"""Of slow weights and outer momentum in fp32, unless told otherwise."""
STATE_BYTES_A_NUMBER = 8
"""The same, of one number."""
OPEN_SNAPSHOTS = 2
"""Snapshots whose outer step may still come: the newest and, with `stale`, the one before."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What a payload says: values of one fragment, made in one round."""

    round: Round
    fragment: int
    values_F: Vector


class ToyLearner:
    """Fast weights theta, slow weights phi and outer momentum delta, float64 (P,)."""

    def __init__(
        self,
        me: PeerId,
        target_P: Vector,
        config: ToyConfig | SpsaConfig,
        *,
        fragments: int = 1,
        sizes: tuple[int, ...] = (),
        state_bytes: int = STATE_BYTES,
    ) -> None:
        assert not isinstance(config, SpsaConfig), "spsa has no outer step"
        self.me = me
        self.config: ToyConfig = config
        self.target_P = target_P
        self.theta_P: Vector = np.zeros_like(target_P)
        self.phi_P: Vector = np.zeros_like(target_P)
        self.delta_P: Vector = np.zeros_like(target_P)
        self._fragments = fragments
        self._sizes = sizes or (PAYLOAD_BYTES // fragments,) * fragments
        self.state_bytes = state_bytes
        self._exact: dict[Digest, Vector] = {}
        """What the newest snapshots would say if their payloads were exact."""
        self._snapshot_theta: dict[int, Vector] = {}
        """Fast weights at the newest snapshot, by fragment."""

    def train(self, round: Round, steps: int) -> None:
        """Make inner steps."""
        self.theta_P = self.target_P + (1 - PULL) ** steps * (self.theta_P - self.target_P)

    def snapshot(self, round: Round, fragment: int) -> tuple[Digest, int, object]:
        """Noloco's one vector v = beta theta - (beta - gamma) phi, or the outer gradient, in fp32.

        As a real one it has the same name again when the same steps are made once more.
        """
        part = self._part(fragment)
        theta_F, phi_F = self.theta_P[part], self.phi_P[part]
        if isinstance(self.config, NolocoConfig):
            exact_F = self.config.beta * theta_F - (self.config.beta - self.config.gamma) * phi_F
        else:
            exact_F = phi_F - theta_F
        content = Part(round, fragment, exact_F.astype(np.float32).astype(np.float64))
        digest = digest_of(f"{self.me}|{round}|{fragment}".encode() + content.values_F.tobytes())
        self._exact[digest] = exact_F
        while len(self._exact) > OPEN_SNAPSHOTS:
            del self._exact[next(iter(self._exact))]
        self._snapshot_theta[fragment] = theta_F
        return digest, self._sizes[fragment], content

    def outer(self, effect: ApplyOuter, contents: Mapping[Digest, object]) -> None:
        """Move phi by the mean of the shares, and theta by what that means for it.

        Raises:
            Refused: a share is no payload of this fragment and its round; nothing was changed.
        """
        part = self._part(effect.fragment)
        mean_F = self._mean(effect, contents, len(self.phi_P[part]))
        before_F, delta_F = self.phi_P[part], self.delta_P[part]
        if isinstance(self.config, NolocoConfig):
            delta_F = self.config.alpha * delta_F + mean_F - self.config.gamma * before_F
            after_F, mix = before_F + delta_F, None
        else:
            lr, momentum, mix = _nesterov(self.config)
            delta_F = momentum * delta_F + mean_F
            after_F = before_F - lr * (mean_F + momentum * delta_F)
        theta_F = self.theta_P[part]
        if effect.mine is None and effect.shares:
            theta_F = theta_F + (after_F - before_F)
        elif mix is None:
            theta_F = theta_F + (after_F - self._snapshot_theta[effect.fragment])
        else:
            theta_F = mix * theta_F + (1 - mix) * after_F
        if effect.mine:
            self._exact.pop(effect.mine, None)
        self.phi_P = _replaced(self.phi_P, part, after_F)
        self.delta_P = _replaced(self.delta_P, part, delta_F)
        self.theta_P = _replaced(self.theta_P, part, theta_F)

    def weights(self) -> Digest:
        """Of the slow weights."""
        return digest_of(self.phi_P.tobytes())

    def save(self) -> object:
        """Slow weights and outer momentum."""
        return self.phi_P, self.delta_P

    def load(self, state: object) -> None:
        """Start a round there."""
        assert isinstance(state, tuple)
        self.phi_P, self.delta_P = state
        self.theta_P = self.phi_P
        self._exact.clear()
        self._snapshot_theta.clear()

    def _part(self, fragment: int) -> slice:
        assert 0 <= fragment < self._fragments, f"fragment {fragment} of {self._fragments}"
        return slice(fragment, None, self._fragments)

    def _mean(self, effect: ApplyOuter, contents: Mapping[Digest, object], numbers: int) -> Vector:
        if not effect.shares and effect.mine is None:
            part = self._part(effect.fragment)
            return self.phi_P[part] - self.theta_P[part]  # local: all that was trained counts
        if not effect.shares:
            assert effect.mine in self._exact, "an outer step of a snapshot long gone"
            return self._exact[effect.mine]
        weighed = [
            share.weight * _values(share, effect.fragment, numbers, contents[share.digest])
            for share in effect.shares
        ]
        return functools.reduce(operator.add, weighed)


def _values(share: Share, fragment: int, numbers: int, content: object) -> Vector:
    if not isinstance(content, Part):
        raise Refused(share.digest, "a payload that is no vector")
    if (content.round, content.fragment) != (share.round, fragment):
        raise Refused(
            share.digest,
            f"a payload of round {content.round}, fragment {content.fragment}, "
            f"expected round {share.round}, fragment {fragment}",
        )
    if len(content.values_F) != numbers or not math.isfinite(content.values_F.sum()):
        raise Refused(share.digest, f"a payload that is not {numbers} finite numbers")
    return content.values_F


def _nesterov(config: DilocoConfig | SyncConfig | LocalConfig) -> tuple[float, float, float | None]:
    """Outer learning rate, momentum, and how much of the fast weights stays.

    Without overlap nothing was trained meanwhile, and with `stale` what was trained since the
    newest snapshot stays, as in noloco: None.
    """
    if isinstance(config, DilocoConfig):
        return config.outer_lr, config.outer_momentum, None if config.stale else config.mix
    return 1.0, 0.0, 0.0


def _replaced(whole_P: Vector, part: slice, values_F: Vector) -> Vector:
    """A copy with another part: saved states share the old one."""
    if part.step == 1:
        return values_F
    whole_P = whole_P.copy()
    whole_P[part] = values_F
    return whole_P


class Toys:
    """What all peers of a simulation learn with; see `node.sim.learners.Learners`.

    Args:
        targets: where the data of a peer pull, by its number.
    """

    def __init__(self, spec: RunSpec, targets: Callable[[int], Vector]) -> None:
        self._spec = spec
        self._targets = targets
        self._sizes = payload_sizes(spec)
        self._state_bytes = STATE_BYTES_A_NUMBER * sum(spec.fragment_counts())
        self._learners: dict[PeerId, ToyLearner] = {}

    def learner(self, peer: PeerId, number: int) -> ToyLearner:
        learner = self._learners[peer] = ToyLearner(
            peer,
            self._targets(number),
            self._spec.trainer,
            fragments=self._spec.num_fragments,
            sizes=self._sizes,
            state_bytes=self._state_bytes,
        )
        return learner

    def measure(self, peers: Sequence[PeerId]) -> Measured:
        learners = [self._learners[peer] for peer in peers]
        phi_NP = np.stack([learner.phi_P for learner in learners])
        return measured(phi_NP, np.stack([learner.target_P for learner in learners]))


def measured(phi_NP: Vector, target_NP: Vector) -> Measured:
    """Root mean squares over entries: the mean from the optimum, and the peers from the mean."""
    mean_P = phi_NP.mean(0)
    return Measured(
        loss=float(np.sqrt(((mean_P - target_NP.mean(0)) ** 2).mean())),
        consensus=float(np.sqrt(((phi_NP - mean_P) ** 2).mean())),
    )
