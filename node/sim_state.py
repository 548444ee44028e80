"""What outlives a simulated worker, and the times at which it did nothing."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.ids import Digest, Round

STILL_S = 1.0
"""Shorter pauses of training are no stall: a snapshot and an outer step take a tenth of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """What a restarted peer, or a joiner, goes on from."""

    round: Round
    weights: Digest
    """Of the slow weights; spsa: of the sum."""
    state: object
    horizon: bytes = b""
    """spsa: of the sum."""


@dataclass(slots=True, eq=False)
class Still:
    """When a peer's training stood still, though it was up and not finished."""

    times: int = 0
    """Longer than `STILL_S`."""
    total_s: float = 0.0
    longest_s: float = 0.0
    since: float | None = None
    """It stands still now."""

    def end(self, now: float) -> None:
        """Training goes on."""
        if self.since is not None:
            lasted_s = now - self.since
            self.since = None
            if lasted_s > STILL_S:
                self.times += 1
                self.total_s += lasted_s
                self.longest_s = max(self.longest_s, lasted_s)
