"""local: train, exchange nothing.  The yardstick of what exchange is worth.

A round is only counted: its outer step takes the fast weights as they are, so many rounds are
one uninterrupted training.
"""

from __future__ import annotations

from protocol.algorithms import LocalConfig
from protocol.ids import Round
from trainers.control import Control
from trainers.effects import ApplyOuter, Closed, Effect, Finished, RunInner
from trainers.events import (
    ControlChanged,
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
        self._out: list[Effect] = []
        self._control = Control(self._out, inner_steps=config.inner_steps, rounds=rounds)
        self._round = Round(0)
        self._is_up = False
        """There is a worker, or was."""
        self._is_training = False
        """The round has begun."""
        self._tokens: int | None = None
        """Of the inner steps whose outer step is asked for."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Resumed(round=round):
                self._is_up = True
                self._control.tell_again()
                self._begin(round)
            case InnerDone(tokens=tokens):
                self._tokens = tokens
                self._out.append(ApplyOuter(Round(self._round + 1), 0, None, ()))
            case OuterDone(round=round) if self._tokens is not None:
                self._out.append(Closed(self._round, self._tokens, None, False, NOBODY))
                self._begin(round)
            case InnerFailed() | SnapshotFailed() | OuterFailed():
                self._tokens = None
            case ControlChanged():
                following = Round(self._round + 1) if self._is_training else self._round
                self._control.take(event, following)
                if self._is_up and not self._is_training:
                    self._begin(self._round)
            case _:
                pass  # of other trainers
        effects = list(self._out)
        self._out.clear()
        return effects

    def _begin(self, round: Round) -> None:
        self._round, self._tokens, self._is_training = round, None, False
        if round >= self._control.ends:
            self._out.append(Finished(round))
        elif self._control.may_begin(round):
            self._is_training = True
            self._out.append(RunInner(round, self._control.inner_steps(round)))
