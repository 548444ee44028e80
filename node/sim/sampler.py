"""The spsa side of a simulated worker: measures scalars, adds them up, names sums.

As the real one it measures in one thread and adds in another.  What was added stays through a
crash: the real worker writes its sum often, and what it lost of it comes again as frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from node.sim.clock import Clock
from node.sim.state import Saved, Still
from protocol.ids import Digest, Round
from protocol.spsa import Frame
from trainers.effects import AddScalars, NameSum, Sample
from trainers.events import Added, Event, InnerFailed, OuterFailed, Sampled, SumNamed

FRAME_S = 0.001
"""To add a frame of 64 scalars to a small sum.  A guess."""


@runtime_checkable
class ScalarLearner(Protocol):
    """What holds a peer's sum of scalars."""

    def sample(self, boot: bytes, step: int, steps: int) -> bytes:
        """The scalars of these steps, for the log of `boot`, measured at the weights of now."""

    def add(self, frames: tuple[Frame, ...]) -> None:
        """Add the scalars of these frames to the sum."""

    def sum_without(self, less: tuple[Frame, ...]) -> Digest:
        """The name of the sum less these frames."""

    @property
    def round(self) -> Round:
        """That this peer's own steps have come to."""

    @property
    def state_bytes(self) -> int:
        """Of a `save` on its way to another peer."""

    def save(self) -> Saved:
        """What a restarted peer or a joiner goes on from."""

    def load(self, saved: Saved) -> None:
        """Go on from a `save`."""


@dataclass(slots=True, eq=False)
class _Sampling:
    """`Sample` under way: it stops after `steps`."""

    boot: bytes
    step: int
    steps: int
    since: float


class Sampler:
    """Carries out what a trainer asks of its worker; answers through `tell`."""

    def __init__(
        self,
        learner: ScalarLearner,
        clock: Clock,
        still: Still,
        tell: Callable[[Event], None],
        *,
        step_s: float,
        tokens_per_step: int,
    ) -> None:
        self.learner = learner
        self.is_down = False
        self._clock = clock
        self._still = still
        self._tell = tell
        self._step_s = step_s
        self._tokens_per_step = tokens_per_step
        self._sampling: _Sampling | None = None
        self._start = 0
        """Of the worker: what an earlier one was asked for is not answered."""
        self._open = 0
        """Additions and names under way: done one after the other."""
        self._free_at = 0.0
        """When they are done."""

    def drop(self) -> tuple[bool, bool]:
        """Nothing under way will be answered; whether there were samples, and sums."""
        dropped = self._sampling is not None, self._open > 0
        self._sampling, self._open, self._free_at = None, 0, 0.0
        self._start += 1
        return dropped

    def sample(self, effect: Sample) -> None:
        """Measure scalars."""
        assert not self._sampling, "asked to sample while sampling"
        if self.is_down:
            self._clock.after(0.0, self._tell, InnerFailed("the worker is down"))
            return
        self._still.end(self._clock.now)
        self._sample_until(_Sampling(effect.boot, effect.step, effect.steps, self._clock.now))

    def close(self) -> None:
        """Stop at the next step boundary."""
        sampling = self._sampling
        if sampling:
            made = int((self._clock.now - sampling.since) / self._step_s)
            steps = min(sampling.steps, made + 1)
            self._sample_until(replace(sampling, steps=steps))

    def _sample_until(self, sampling: _Sampling) -> None:
        self._sampling = sampling
        end = sampling.since + sampling.steps * self._step_s
        self._clock.after(end - self._clock.now, self._sampled, sampling)

    def _sampled(self, sampling: _Sampling) -> None:
        if self._sampling is sampling:
            self._sampling = None
            self._still.since = self._clock.now
            scalars = self.learner.sample(sampling.boot, sampling.step, sampling.steps)
            tokens = sampling.steps * self._tokens_per_step
            self._still.tokens += tokens
            self._tell(Sampled(sampling.step, scalars, tokens))

    def add(self, effect: AddScalars) -> None:
        """Add frames to the sum."""
        self._work(FRAME_S * len(effect.frames), effect)

    def name(self, effect: NameSum) -> None:
        """Name the sum, less some frames."""
        self._work(FRAME_S * (1 + len(effect.less)), effect)

    def _work(self, takes_s: float, effect: AddScalars | NameSum) -> None:
        if self.is_down:
            self._clock.after(0.0, self._tell, OuterFailed("the worker is down"))
            return
        self._open += 1
        self._free_at = max(self._free_at, self._clock.now) + takes_s
        self._clock.after(self._free_at - self._clock.now, self._done, effect, self._start)

    def _done(self, effect: AddScalars | NameSum, start: int) -> None:
        if self._start != start:
            return
        self._open -= 1
        if isinstance(effect, AddScalars):
            self.learner.add(effect.frames)
            self._tell(Added())
        else:
            self._tell(SumNamed(self.learner.sum_without(effect.less)))
