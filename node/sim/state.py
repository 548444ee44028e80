"""What outlives a simulated worker, how much it trained, and when it did nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from protocol.ids import Digest, Round

STILL_S = 1.0
"""Shorter pauses of training are no stall: a snapshot and an outer step take a tenth of it."""


class Origin(Enum):
    """Of the state from which a worker goes on."""

    OWN = "own"
    """What it had saved itself."""
    GIVEN = "given"
    """Another peer's, or the run's first, at the start."""
    TAKEN = "taken"
    """Another peer's, in the middle of training."""


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
    """A peer's training: how much, and when it stood still though it was up and not finished."""

    tokens: int = 0
    """Trained on, whatever became of it."""
    times: int = 0
    """Longer than `STILL_S`."""
    total_s: float = 0.0
    longest_s: float = 0.0
    since: float | None = None
    """It stands still now."""

    def go_on_from(self, before: Still) -> None:
        """Of an earlier process of the same peer."""
        self.times, self.total_s, self.longest_s = before.times, before.total_s, before.longest_s
        self.tokens = before.tokens

    def end(self, now: float) -> None:
        """Training goes on."""
        if self.since is not None:
            lasted_s = now - self.since
            self.since = None
            if lasted_s > STILL_S:
                self.times += 1
                self.total_s += lasted_s
                self.longest_s = max(self.longest_s, lasted_s)
