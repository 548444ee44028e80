"""What the creator wants of the run, as one machine obeys it.

A machine obeys at the boundary of rounds: what it has begun to train for it ends.  So a pause is
a round that does not begin; a stop is an earlier last round; and a setting is in force from the
round that the creator named, or from the first one that this peer has not begun when it hears of
it, whichever is later.  Peers hear of it at different times, and nothing here waits for another.
"""

from __future__ import annotations

from protocol.algorithms import INNER_STEPS
from protocol.changes import Change, InForce
from protocol.ids import Round
from trainers.effects import ChangeSettings, Effect, Paused, Unpaused
from trainers.events import ControlChanged

KEPT = 4
"""Changes of one setting that are kept: what is in force, what is to come, and what payloads and
steps that are still under way began with."""


class Control:
    """Part of one machine; its owner tells it what it has begun."""

    def __init__(self, out: list[Effect], *, inner_steps: int, rounds: int) -> None:
        self._out = out
        self._inner_steps = inner_steps
        self.ends = rounds
        """The run is over for this peer at the start of this round."""
        self.is_paused = False
        """No round is to begin."""
        self._is_held = False
        """The operator was told so, with the round that did not begin."""
        self._changes: tuple[InForce, ...] = ()

    def take(self, event: ControlChanged, following: Round) -> None:
        """Obey from now on.

        Args:
            following: the first round that this peer has not begun.
        """
        self.is_paused = event.is_paused
        if event.is_stopped:
            self.ends = min(self.ends, following)
        if fresh := [change for change in event.changes if not self._knows(change)]:
            for change in fresh:
                self._change(change, following)
            self.tell_again()

    def _knows(self, change: Change) -> bool:
        same = [one.change for one in self._changes if one.change.name == change.name]
        return bool(same) and same[-1] == change

    def _change(self, change: Change, following: Round) -> None:
        """What had not come into force of the same setting never will."""
        since = Round(max(change.round, following))
        others = [one for one in self._changes if one.change.name != change.name]
        same = [
            one
            for one in self._changes
            if one.change.name == change.name and one.since < min(since, following)
        ]
        self._changes = (*others, *same[1 - KEPT :], InForce(change, since))

    def tell_again(self) -> None:
        """To the worker, which may be a new one."""
        if self._changes:
            self._out.append(ChangeSettings(self._changes))

    def inner_steps(self, round: Round) -> int:
        """H in this round."""
        steps = self._inner_steps
        for one in sorted(self._changes, key=lambda one: one.since):
            if one.change.name == INNER_STEPS and one.since <= round:
                steps = int(one.change.value)
        return steps

    def may_begin(self, round: Round) -> bool:
        """Whether this round begins now; the operator is told."""
        if self.is_paused:
            self.hold(round)
        else:
            self.go_on(round)
        return not self.is_paused

    def hold(self, round: Round) -> None:
        """This round does not begin."""
        if not self._is_held:
            self._is_held = True
            self._out.append(Paused(round))

    def go_on(self, round: Round) -> None:
        """It does."""
        if self._is_held:
            self._is_held = False
            self._out.append(Unpaused(round))
