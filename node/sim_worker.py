"""A peer's worker under virtual time: trains at its own speed, snapshots, takes outer steps.

As the real one it trains in one thread and does outer work in another, so a snapshot and an
outer step may be under way while inner steps are made.  Steps are not simulated one by one:
the learner catches up when somebody looks.  Whatever the trainer may not ask for, such as
training twice at once or an outer step with a payload that it has released, is our own bug
and trips an assertion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from node.sim_clock import Clock
from protocol.errors import Malformed
from protocol.ids import Digest, Round
from trainers.machine import (
    ApplyOuter,
    Event,
    InnerDone,
    InnerFailed,
    OuterDone,
    OuterFailed,
    OuterRefused,
    Resumed,
    SnapshotDone,
    SnapshotFailed,
)


class Learner(Protocol):
    """What holds a peer's parameters.  Real ones hold a model, most tests a vector."""

    def train(self, round: Round, steps: int) -> None:
        """Make inner steps with the learning rate of `round`."""

    def snapshot(self, round: Round) -> tuple[Digest, int, object]:
        """Name, bytes and content of what the pair exchanges, from the weights of now."""

    def outer(self, mine: object, theirs: object | None, my_weight: float) -> None:
        """Take the outer step with the contents of two snapshots, or of ours alone.

        Raises:
            Malformed: theirs is no payload of this run.
        """

    def save(self) -> object:
        """What a restarted peer or a joiner goes on from."""

    def load(self, state: object) -> None:
        """Go on from a `save`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast a peer's machine is."""

    step_s: float = 0.1
    """Virtual seconds one inner step takes."""
    tokens_per_step: int = 1
    snapshot_s: float = 0.05
    outer_s: float = 0.05
    restart_s: float = 5.0
    """From the death of the worker to `Resumed`."""


@dataclass(slots=True, eq=False)
class _Training:
    """`RunInner` under way: `since` then, `_steps` were made; it stops at `end`."""

    round: Round
    since: float
    end: int


@dataclass(slots=True, eq=False)
class _Encoding:
    """`Snapshot` under way."""

    done: SnapshotDone
    content: object


class Worker:
    """Carries out what a trainer asks of its worker; answers through `tell`."""

    def __init__(
        self, learner: Learner, speed: Speed, clock: Clock, tell: Callable[[Event], None]
    ) -> None:
        self.learner = learner
        self.held: dict[Digest, object] = {}
        """The arena: payloads of this peer and its partner, until they are released."""
        self.round = Round(0)
        """Of the newest saved state."""
        self.saved = learner.save()
        self._speed = speed
        self._clock = clock
        self._tell = tell
        self._steps = 0
        """Inner steps made since the last snapshot."""
        self._training: _Training | None = None
        self._encoding: _Encoding | None = None
        self._applying: ApplyOuter | None = None
        self._down = 0
        """Restarts under way."""

    def start(self, round: Round, state: object | None) -> None:
        """Begin at the start of `round`, from the state of another peer if one is given."""
        if state is not None:
            self.learner.load(state)
        self.round, self.saved = round, self.learner.save()
        self._clock.after(0.0, self._tell, Resumed(round))

    def crash(self) -> None:
        """Lose all that is under way, and come back from the newest saved state."""
        if self._training:
            self._clock.after(0.0, self._tell, InnerFailed("the worker crashed"))
        if self._encoding:
            self._clock.after(0.0, self._tell, SnapshotFailed("the worker crashed"))
        if self._applying:
            self._clock.after(0.0, self._tell, OuterFailed("the worker crashed"))
        self._training = self._encoding = self._applying = None
        self._down += 1
        self._clock.after(self._speed.restart_s, self._restart)

    def _restart(self) -> None:
        self._down -= 1
        if not self._down:
            self._steps = 0
            self.learner.load(self.saved)
            self._tell(Resumed(self.round))

    # --- training ---------------------------------------------------------------------------

    def run_inner(self, round: Round, steps: int) -> None:
        """Train until `steps` are made since the last snapshot."""
        assert not self._training, "asked to train while training"
        if self._down:
            self._clock.after(0.0, self._tell, InnerFailed("the worker is down"))
            return
        self._train_until(_Training(round, self._clock.now, max(steps, self._steps)))

    def close_inner(self) -> None:
        """Stop at the next step boundary; nothing to do for a worker that stands there."""
        training = self._training
        if training:
            self._catch_up()
            end = min(training.end, self._steps + 1)
            self._train_until(_Training(training.round, training.since, end))

    def _train_until(self, training: _Training) -> None:
        self._training = training
        left_s = (training.end - self._steps) * self._speed.step_s
        self._clock.after(training.since + left_s - self._clock.now, self._inner_ends, training)

    def _catch_up(self) -> None:
        """Let the learner make the steps that virtual time has seen."""
        training = self._training
        if training:
            made = int((self._clock.now - training.since) / self._speed.step_s)
            made = min(made, training.end - self._steps)
            training.since += made * self._speed.step_s
            self._make(training.round, made)

    def _inner_ends(self, training: _Training) -> None:
        if self._training is training:  # else closed earlier, or crashed
            self._make(training.round, training.end - self._steps)
            self._training = None
            tokens = self._steps * self._speed.tokens_per_step
            self._tell(InnerDone(self._steps, tokens))

    def _make(self, round: Round, steps: int) -> None:
        if steps:
            self.learner.train(round, steps)
            self._steps += steps

    # --- outer work -------------------------------------------------------------------------

    def snapshot(self, round: Round) -> None:
        """Encode the weights of now."""
        assert not self._training, "asked for a snapshot while training"
        assert not self._encoding, "asked for two snapshots at once"
        assert not self._applying, "asked for a snapshot before the outer step is taken"
        if self._down:
            self._clock.after(0.0, self._tell, SnapshotFailed("the worker is down"))
            return
        digest, size_bytes, content = self.learner.snapshot(round)
        self._steps = 0
        self._encoding = _Encoding(SnapshotDone(round, digest, size_bytes), content)
        self._clock.after(self._speed.snapshot_s, self._snapshot_ends, self._encoding)

    def _snapshot_ends(self, encoding: _Encoding) -> None:
        if self._encoding is encoding:
            self._encoding = None
            self.held[encoding.done.digest] = encoding.content
            self._tell(encoding.done)

    def apply_outer(self, effect: ApplyOuter) -> None:
        """Take an outer step with payloads that are held."""
        assert not self._applying, "asked for two outer steps at once"
        if self._down:
            self._clock.after(0.0, self._tell, OuterFailed("the worker is down"))
            return
        self._applying = effect
        self._clock.after(self._speed.outer_s, self._outer_ends, effect)

    def _outer_ends(self, effect: ApplyOuter) -> None:
        if self._applying is effect:
            self._applying = None
            self._catch_up()
            assert effect.mine in self.held, "our payload was released before the outer step"
            assert effect.theirs is None or effect.theirs in self.held, "theirs was released"
            theirs = self.held[effect.theirs] if effect.theirs else None
            try:
                self.learner.outer(self.held[effect.mine], theirs, effect.my_weight)
            except Malformed as error:
                self._tell(OuterRefused(str(error)))
                return
            self.round, self.saved = effect.round, self.learner.save()
            self._tell(OuterDone(effect.round))
