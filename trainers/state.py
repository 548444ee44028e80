"""What a peer's training consists of between two rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from protocol.ids import Digest, Round, digest_of
from trainers.inner import Moments


@dataclass(frozen=True, slots=True)
class Slow:
    """Slow weights and outer momentum at the start of `round`, float32 (P,).

    Never written to, only replaced, so whoever saves or evaluates keeps what it was given.
    """

    round: Round
    phi_P: Tensor
    delta_P: Tensor
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    """What else a joiner needs to go on as the others do, by name."""
    own: Mapping[str, Tensor] = field(default_factory=dict)
    """What only this peer needs, such as the residual of its codec, by name."""

    def digest(self) -> Digest:
        """The name of the slow weights alone, float32 little endian."""
        return digest_of(self.phi_P.cpu().numpy().data.cast("B"))


@dataclass(frozen=True, slots=True)
class Fast:
    """Fast weights, float32 (P,), AdamW's state, and how far this peer has come."""

    theta_P: Tensor
    moments: Moments
    inner_step: int
    """Inner steps made in the run: the next one draws the batch of this number."""
    step_in_round: int
    """Of these, since the snapshot of the round before."""
