"""The seam between a simulation and what its peers learn with.

`node.sim.toy` has vectors, for thousands of peers; `node.sim.model` the real model, for tens.
A simulation knows neither: it asks for one learner a peer, and now and then how far they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from node.sim.worker import AnyLearner
from protocol.ids import PeerId


@dataclass(frozen=True, slots=True)
class Measured:
    """How far a swarm is."""

    loss: float
    """Of the mean weights: of the toy the distance to the optimum, of the model nats per byte."""
    consensus: float
    """Root mean square of the peers' slow weights around their mean."""


class Learners(Protocol):
    """What all peers of a simulation learn with."""

    def learner(self, peer: PeerId, number: int) -> AnyLearner:
        """A new peer's; `number` counts them from 0."""

    def measure(self, peers: Sequence[PeerId]) -> Measured:
        """Of these peers together; at least one."""
