"""A learner small enough to have thousands: a vector pulled towards this peer's own target.

Minimises |theta - target|^2 / 2, so the swarm's optimum is the mean of all targets.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocol.errors import Malformed
from protocol.ids import Digest, PeerId, Round, digest_of
from protocol.spec import NolocoConfig

Vector = NDArray[np.float64]

PULL = 0.05
"""Share of the way to the target that one inner step goes."""
PAYLOAD_BYTES = 1_000_000


class ToyLearner:
    """Fast weights theta, slow weights phi and outer momentum delta, float64 (P,)."""

    def __init__(self, me: PeerId, target_P: Vector, config: NolocoConfig) -> None:
        self.me = me
        self.config = config
        self.target_P = target_P
        self.theta_P: Vector = np.zeros_like(target_P)
        self.phi_P: Vector = np.zeros_like(target_P)
        self.delta_P: Vector = np.zeros_like(target_P)
        self._at_snapshot_P: Vector | None = None

    def train(self, round: Round, steps: int) -> None:
        """Make inner steps."""
        self.theta_P = self.target_P + (1 - PULL) ** steps * (self.theta_P - self.target_P)

    def snapshot(self, round: Round) -> tuple[Digest, int, object]:
        """The one vector v = beta theta - (beta - gamma) phi, and theta kept for later.

        As a real one it has the same name again when the same steps are made once more.
        """
        beta, gamma = self.config.beta, self.config.gamma
        self._at_snapshot_P = self.theta_P
        v_P = np.round(beta * self.theta_P - (beta - gamma) * self.phi_P, 9)
        return digest_of(self.me.encode() + v_P.tobytes()), PAYLOAD_BYTES, v_P

    def outer(self, mine: object, theirs: object | None, my_weight: float) -> None:
        """Move phi by the pair's mean, and theta by what phi moved away from the snapshot."""
        mean_P = _vector(mine)
        if theirs is not None:
            mean_P = my_weight * mean_P + (1 - my_weight) * _vector(theirs)
        assert self._at_snapshot_P is not None, "an outer step without a snapshot"
        self.delta_P = self.config.alpha * self.delta_P + mean_P - self.config.gamma * self.phi_P
        self.phi_P = self.phi_P + self.delta_P
        self.theta_P = self.theta_P + (self.phi_P - self._at_snapshot_P)
        self._at_snapshot_P = None

    def save(self) -> object:
        """Slow weights and outer momentum."""
        return self.phi_P, self.delta_P

    def load(self, state: object) -> None:
        """Start a round there."""
        assert isinstance(state, tuple)
        self.phi_P, self.delta_P = state
        self.theta_P, self._at_snapshot_P = self.phi_P, None


def _vector(payload: object) -> Vector:
    if not isinstance(payload, np.ndarray):
        raise Malformed("a payload that is no vector")
    return payload
