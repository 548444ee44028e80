"""local: train, exchange nothing.  The yardstick of what exchange is worth.

A round is only counted: its outer step takes the fast weights as they are, so many rounds are
one uninterrupted training.
"""

from __future__ import annotations

from protocol.algorithms import LocalConfig
from protocol.ids import Round
from trainers.effects import ApplyOuter, Closed, Effect, Finished, RunInner
from trainers.events import (
    Event,
    InnerDone,
    InnerFailed,
    OuterDone,
    OuterFailed,
    Resumed,
    SnapshotFailed,
)

NOBODY = "trains alone"


class Local:
    """One peer; see `trainers.machine.Trainer`."""

    def __init__(self, config: LocalConfig, *, rounds: int) -> None:
        self._config = config
        self._rounds = rounds
        self._round = Round(0)
        self._tokens: int | None = None
        """Of the inner steps whose outer step is asked for."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Resumed(round=round):
                return self._begin(round)
            case InnerDone(tokens=tokens):
                self._tokens = tokens
                return [ApplyOuter(Round(self._round + 1), 0, None, ())]
            case OuterDone(round=round) if self._tokens is not None:
                closed = Closed(self._round, self._tokens, None, False, NOBODY)
                return [closed, *self._begin(round)]
            case InnerFailed() | SnapshotFailed() | OuterFailed():
                self._tokens = None
        return []

    def _begin(self, round: Round) -> list[Effect]:
        self._round, self._tokens = round, None
        if round >= self._rounds:
            return [Finished(round)]
        return [RunInner(round, self._config.inner_steps)]
