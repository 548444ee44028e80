"""A peer's worker under virtual time: trains at its own speed, snapshots, takes outer steps.

As the real one it trains in one thread and does outer work in another, so a snapshot and an
outer step may be under way while inner steps are made.  Steps are not simulated one by one:
the learner catches up when somebody looks.  Whatever the trainer may not ask for, such as
training twice at once or an outer step with a payload that it has released, is our own bug
and trips an assertion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from node.sim.clock import Clock
from node.sim.sampler import Sampler, ScalarLearner
from node.sim.state import Origin, Saved, Still
from protocol.ids import Digest, Round
from trainers.effects import ApplyOuter
from trainers.events import (
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


class Refused(Exception):
    """The payload `culprit` is not what it must be."""

    def __init__(self, culprit: Digest, reason: str) -> None:
        super().__init__(reason)
        self.culprit = culprit
        self.reason = reason


class Learner(Protocol):
    """What holds a peer's parameters.  Real ones hold a model, most tests a vector."""

    def train(self, round: Round, steps: int) -> None:
        """Make inner steps with the learning rate of `round`."""

    def snapshot(self, round: Round, fragment: int) -> tuple[Digest, int, object]:
        """Name, bytes and content of what is exchanged, from the weights of now."""

    def outer(self, effect: ApplyOuter, contents: Mapping[Digest, object]) -> None:
        """Take the outer step; `contents` holds every share's.

        Raises:
            Refused: a share is no payload of this run, round and fragment; nothing was changed.
        """

    def weights(self) -> Digest:
        """Of the slow weights."""

    @property
    def state_bytes(self) -> int:
        """Of a `save` on its way to another peer."""

    def save(self) -> object:
        """What a restarted peer or a joiner goes on from."""

    def load(self, state: object) -> None:
        """Go on from a `save`."""


AnyLearner = Learner | ScalarLearner


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
        self,
        learner: AnyLearner,
        speed: Speed,
        clock: Clock,
        tell: Callable[[Event], None],
    ) -> None:
        self.still = Still()
        self.origin = Origin.GIVEN
        """Of the state in the newest `Resumed`."""
        self.held: dict[Digest, object] = {}
        """The arena: payloads of this peer and others, until they are released."""
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
        self._sampler: Sampler | None = None
        self._learner: Learner | None = None
        if isinstance(learner, ScalarLearner):
            self._sampler = Sampler(
                learner,
                clock,
                self.still,
                tell,
                step_s=speed.step_s,
                tokens_per_step=speed.tokens_per_step,
            )
        else:
            self._learner = learner
            self._saved = Saved(Round(0), learner.weights(), learner.save())

    @property
    def learner(self) -> Learner:
        """Of a peer whose trainer exchanges vectors."""
        assert self._learner, "asked a worker of spsa for what it does not do"
        return self._learner

    @property
    def sampler(self) -> Sampler:
        """Of a peer whose trainer is spsa."""
        assert self._sampler, "asked a worker for scalars that has none"
        return self._sampler

    @property
    def adds_scalars(self) -> bool:
        """Of spsa: it goes on after its own last step, and members are told of it."""
        return self._sampler is not None

    @property
    def saved(self) -> Saved:
        """The newest state that others may start from."""
        return self._sampler.learner.save() if self._sampler else self._saved

    @property
    def state_bytes(self) -> int:
        """Of it, on its way."""
        return (self._sampler or self).learner.state_bytes

    @property
    def round(self) -> Round:
        """Of the newest state."""
        return self._sampler.learner.round if self._sampler else self._saved.round

    def start(self, saved: Saved | None, origin: Origin = Origin.GIVEN) -> None:
        """Begin at round 0, or where another peer is, or this one was."""
        self.origin = origin
        if saved:
            self._load(saved)
        self._clock.after(0.0, self._resume)

    def crash(self) -> None:
        """Lose all that is under way, and come back from the newest saved state."""
        if self._training:
            self._clock.after(0.0, self._tell, InnerFailed("the worker crashed"))
        if self._encoding:
            self._clock.after(0.0, self._tell, SnapshotFailed("the worker crashed"))
        if self._applying:
            self._clock.after(0.0, self._tell, OuterFailed("the worker crashed"))
        if self._sampler:
            sampling, adding = self._sampler.drop()
            self._sampler.is_down = True
            if sampling:
                self._clock.after(0.0, self._tell, InnerFailed("the worker crashed"))
            if adding:
                self._clock.after(0.0, self._tell, OuterFailed("the worker crashed"))
        self._training = self._encoding = self._applying = None
        self.still.since = None
        self._down += 1
        self._clock.after(self._speed.restart_s, self._restart)

    @property
    def is_down(self) -> bool:
        """Between its death and its return."""
        return self._down > 0

    def take_over(self, saved: Saved) -> None:
        """Drop what is under way, and go on from the saved state of another peer."""
        self._training = self._encoding = self._applying = None
        self.origin = Origin.TAKEN
        if self._sampler:
            self._sampler.drop()
            saved = replace(saved, round=self.round)  # spsa: a peer's own steps are its own
        self._load(saved)
        self._resume()

    def differs(self, other: Saved) -> bool:
        """Whether the other state has other weights, of whatever round."""
        return self.saved.weights != other.weights

    def _restart(self) -> None:
        self._down -= 1
        if not self._down:
            if self._sampler:
                self._sampler.is_down = False
            self._load(self.saved)
            self.origin = Origin.OWN
            self._resume()

    def _load(self, saved: Saved) -> None:
        self._steps = 0
        if self._sampler:
            self._sampler.learner.load(saved)
        else:
            self._saved = saved
            self.learner.load(saved.state)

    def _resume(self) -> None:
        if self.still.since is None:
            self.still.since = self._clock.now
        saved = self.saved
        self._tell(Resumed(saved.round, saved.weights, saved.horizon))

    # --- training ---------------------------------------------------------------------------

    def run_inner(self, round: Round, steps: int) -> None:
        """Train until `steps` are made since the last snapshot."""
        assert not self._training, "asked to train while training"
        if self._down:
            self._clock.after(0.0, self._tell, InnerFailed("the worker is down"))
            return
        self.still.end(self._clock.now)
        self._train_until(_Training(round, self._clock.now, max(steps, self._steps)))

    def close_inner(self) -> None:
        """Stop at the next step boundary; nothing to do for a worker that stands there."""
        if self._sampler:
            self._sampler.close()
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
            self.still.since = self._clock.now
            tokens = self._steps * self._speed.tokens_per_step
            self._tell(InnerDone(self._steps, tokens))

    def _make(self, round: Round, steps: int) -> None:
        if steps:
            self.learner.train(round, steps)
            self._steps += steps
            self.still.tokens += steps * self._speed.tokens_per_step

    # --- outer work -------------------------------------------------------------------------

    def snapshot(self, round: Round, fragment: int) -> None:
        """Encode the weights of now."""
        assert not self._training, "asked for a snapshot while training"
        assert not self._encoding, "asked for two snapshots at once"
        assert not self._applying, "asked for a snapshot before the outer step is taken"
        if self._down:
            self._clock.after(0.0, self._tell, SnapshotFailed("the worker is down"))
            return
        digest, size_bytes, content = self.learner.snapshot(round, fragment)
        self._steps = 0
        self._encoding = _Encoding(SnapshotDone(round, fragment, digest, size_bytes), content)
        self._clock.after(self._speed.snapshot_s, self._snapshot_ends, self._encoding)

    def _snapshot_ends(self, encoding: _Encoding) -> None:
        if self._encoding is encoding:
            self._encoding = None
            self.held[encoding.done.digest] = encoding.content
            self._tell(encoding.done)

    def apply_outer(self, effect: ApplyOuter) -> None:
        """Take an outer step with payloads that are held, perhaps while training."""
        assert not self._applying, "asked for two outer steps at once"
        if self._down:
            self._clock.after(0.0, self._tell, OuterFailed("the worker is down"))
            return
        self._applying = effect
        self._clock.after(self._speed.outer_s, self._outer_ends, effect)

    def _outer_ends(self, effect: ApplyOuter) -> None:
        if self._applying is not effect:
            return  # the worker crashed, or took over another state
        self._applying = None
        self._catch_up()
        assert effect.mine is None or effect.mine in self.held, "our payload was released too early"
        missing = [share for share in effect.shares if share.digest not in self.held]
        assert not missing, "shares were released before the outer step, or never fetched"
        contents = {share.digest: self.held[share.digest] for share in effect.shares}
        try:
            self.learner.outer(effect, contents)
        except Refused as error:
            self._tell(OuterRefused(error.culprit, error.reason))
            return
        if effect.mine is None and not effect.shares:
            self._steps = 0  # local: nothing was exchanged, the next round begins
        self._saved = Saved(effect.round, self.learner.weights(), self.learner.save())
        self._tell(OuterDone(effect.round, self._saved.weights))
