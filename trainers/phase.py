"""The inner phase of a group's round: what the worker's training thread does, and how far it is.

Steps are counted since the last snapshot.  How many were made is estimated from the time of the
phase before, for the worker tells only at its end.

Source: docs/algorithms.md, rounds and speeds: whoever made an eighth closes early when others wait.
"""

from __future__ import annotations

from enum import Enum, auto

from protocol.fragments import round_steps
from protocol.ids import Round
from trainers.control import Control
from trainers.effects import CloseInner, Effect, RunInner
from trainers.roster import LEAST_SHARE


class Inner(Enum):
    """What the worker's training thread does."""

    OFF = auto()
    """There is no worker."""
    RUNNING = auto()
    OVERLAP = auto()
    """Makes the steps under which the open round is averaged."""
    DONE = auto()
    """At the step boundary, and a snapshot is due."""
    SNAPSHOT = auto()
    IDLE = auto()
    """At the step boundary; goes on when the outer step is taken."""


class Phase:
    """The inner phases of one peer, one after the other."""

    def __init__(self, out: list[Effect], control: Control, *, fragments: int) -> None:
        self._out = out
        self._control = control
        self._fragments = fragments
        self.inner = Inner.OFF
        self.is_closing = False
        """It ends at the next step boundary."""
        self.tokens = 0
        """Of the last phase that ended."""
        self._round = Round(0)
        self.following = Round(0)
        """The first round of which the worker was asked for no step."""
        self._goal = 0
        self._since = 0.0
        self._made = 0
        """Steps when it began."""
        self._step_s: float | None = None

    @property
    def is_near(self) -> bool:
        """The snapshot is a step away at most."""
        return self.is_closing or self.inner in (Inner.DONE, Inner.SNAPSHOT)

    def run(self, round: Round, now: float) -> None:
        """Train for this round, as soon as the creator lets us."""
        if self._control.may_begin(round):
            self._begin(Inner.RUNNING, round, self._steps(round), now)

    def overlap(self, round: Round, steps: int, now: float) -> None:
        """Make so many steps of this round, while the one before is averaged."""
        self._begin(Inner.OVERLAP, round, min(steps, self._steps(round)), now)

    def _steps(self, round: Round) -> int:
        return round_steps(self._control.inner_steps(round), self._fragments, round)

    def _begin(self, inner: Inner, round: Round, goal: int, now: float) -> None:
        self.inner, self._round, self._goal, self._since = inner, round, goal, now
        self.is_closing = False
        self.following = Round(round + 1)
        self._out.append(RunInner(round, goal))

    def hurry(self, now: float, *, has_rest: bool) -> None:
        """Others wait: close the phase, if enough was made."""
        is_training = self.inner in (Inner.RUNNING, Inner.OVERLAP)
        if is_training and not self.is_closing and self.has_enough(now, has_rest=has_rest):
            self.is_closing = True
            if self._goal > 1:  # of a single step the boundary is its end
                self._out.append(CloseInner())

    def has_enough(self, now: float, *, has_rest: bool) -> bool:
        """Whether what is trained by now, or one step later, is worth a contribution.

        Args:
            has_rest: there is something to contribute from before the last snapshot.
        """
        if self.inner is Inner.OFF:
            return False
        if self.inner is not Inner.RUNNING or has_rest:
            return True
        if self._goal <= LEAST_SHARE or self._step_s is None:
            return True
        made = self._made + (now - self._since) / self._step_s
        return made >= self._goal / LEAST_SHARE

    def ended(self, steps: int, tokens: int, now: float) -> None:
        """The worker stands at the step boundary, so many steps after the last snapshot."""
        if self.inner not in (Inner.RUNNING, Inner.OVERLAP):
            return
        if steps > self._made:
            self._step_s = (now - self._since) / (steps - self._made)
        self._made, self.tokens = steps, tokens
        if self.inner is Inner.OVERLAP:
            self.inner, self.is_closing = Inner.IDLE, False
        elif steps == 0:  # closed before the first step: there is nothing to contribute yet
            self._begin(Inner.RUNNING, self._round, 1, now)
        else:
            self.inner, self.is_closing = Inner.DONE, False

    def snapshot_made(self) -> None:
        """Steps are counted from here."""
        self.inner, self._made = Inner.IDLE, 0

    def lost(self) -> None:
        """The worker is gone."""
        self.inner, self.is_closing = Inner.OFF, False

    def came_up(self) -> None:
        """A worker is there, perhaps of another speed."""
        self.inner, self._made, self._step_s = Inner.IDLE, 0, None
        self.following = Round(0)

    def stop(self) -> None:
        """There is nothing more to train."""
        if self.inner in (Inner.RUNNING, Inner.OVERLAP):
            self._out.append(CloseInner())
        self.inner = Inner.IDLE
