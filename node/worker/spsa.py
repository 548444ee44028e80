"""A started worker of an spsa run: measures scalars in one thread, adds up in another.

The sum belongs to the main thread, which carries out commands in the order in which they came:
so what was added before `Sample` or `NameSum` is in what these see.  The sampling thread reads
the trainable weights anew at each step; they are replaced, never written to.  What is added is on
disk some seconds later, whether more comes or not: who is done with its own steps still adds.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue

from torch import Tensor

from node.worker import wire
from node.worker.link import Link
from node.worker.loop import REPORT_S
from node.worker.materials import Materials, checkpoint_file, initial_slow
from node.worker.saver import Saver, save_and_tell
from node.worker.session import Serial
from node.worker.sums import SavedSum, load_newest_sum, read_sum, save_sum, sum_checkpoint
from node.worker.wire_save import Save, Saved, SaveDone
from node.worker.wire_spsa import Added, AddScalars, NameSum, Sample, Sampled, SumNamed
from protocol.algorithms import SpsaConfig
from protocol.errors import Malformed
from protocol.ids import DIGEST_BYTES, Digest, Round
from protocol.messages import Checkpoint
from protocol.spsa import Frame, LogId, log_id, packed
from trainers.model import model_on
from trainers.scalars import sum_digest
from trainers.summed import Sampler, Summed

SAVE_S = 5.0
"""From a snapshot to the next one with scalars in it that came since, whether more come or not:
what a crash costs is asked of others again."""
FIRST_ROUND = Round(0)
"""In the file of a sum at a base, which is the same whatever its owner's own round is."""
NO_NAME = Digest(bytes(DIGEST_BYTES))
"""Answers a `NameSum` that has more to come."""


@dataclass(slots=True)
class _Goal:
    """What is being measured."""

    id: int
    log: LogId
    step: int
    end: int
    closed: threading.Event = field(default_factory=threading.Event)
    """Be done at the next step boundary."""


@dataclass(frozen=True, slots=True)
class _At:
    """A sum, int64 (Q,), never written to, and its horizon."""

    sum_Q: Tensor
    horizon: dict[LogId, int]


class Sampling(threading.Thread):
    """Measures as long as the process lives; public methods may be called from any thread."""

    def __init__(self, link: Link, setup: wire.Setup, materials: Materials, summed: Summed) -> None:
        super().__init__(name="sampling", daemon=True)
        self._link = link
        self._peer = setup.peer
        self._materials = materials
        self._summed = summed
        self._sampler: tuple[LogId, Sampler] | None = None
        self._goals: SimpleQueue[_Goal] = SimpleQueue()
        """Short: the node asks for one frame after the other."""
        self._newest: _Goal | None = None

    def sample(self, goal: _Goal) -> None:
        """Measure, and answer."""
        self._newest = goal
        self._goals.put(goal)

    def close(self) -> None:
        """Be done at the next step boundary."""
        if self._newest:
            self._newest.closed.set()

    def run(self) -> None:
        while True:
            self._measure(self._goals.get())

    def _measure(self, goal: _Goal) -> None:
        sampler = self._sampler_of(goal.log)
        scalars, step, began, losses = b"", goal.step, time.monotonic(), 0.0
        while step < goal.end and not (goal.closed.is_set() and step > goal.step):
            measured, loss = sampler.measure(self._summed.theta_Q, step)
            scalars, step, losses = scalars + measured, step + 1, losses + loss
        made = step - goal.step
        tokens = made * sampler.tokens_a_step
        self._link.report(self._progress(step, losses / made, tokens, time.monotonic() - began))
        self._link.answer(goal.id, Sampled(goal.step, scalars, tokens))

    def _progress(self, step: int, loss: float, tokens: int, seconds: float) -> wire.Progress:
        inner_steps = self._materials.spec.trainer.inner_steps
        round, in_round = divmod(step - 1, inner_steps)
        return wire.Progress(
            round=Round(round),
            inner_step=step,
            step_in_round=in_round + 1,
            loss=loss,
            tokens_per_s=tokens / max(seconds, REPORT_S / 1000),
        )

    def _sampler_of(self, log: LogId) -> Sampler:
        """One is kept: a log ends with the node's start, or with what it lost."""
        if self._sampler is None or self._sampler[0] != log:
            materials = self._materials
            sampler = Sampler(materials.spec, self._summed, materials.tokens_N, self._peer, log)
            self._sampler = (log, sampler)
        return self._sampler[1]


class SpsaSession:
    """A started worker.  The main thread owns it."""

    def __init__(
        self,
        link: Link,
        setup: wire.Setup,
        materials: Materials,
        saved: SavedSum | None,
        *,
        is_on_disk: bool = False,
    ) -> None:
        """Args: is_on_disk: `saved` was read from there."""
        self._link = link
        self._peer = setup.peer
        self._directory = Path(setup.directory)
        self._materials = materials
        assert isinstance(materials.spec.trainer, SpsaConfig)
        self._config = materials.spec.trainer
        start_P = initial_slow(materials.spec).phi_P.to(materials.device)
        self._summed = Summed(materials.spec, start_P)
        self._step = saved.step if saved else 0
        if saved:
            self._summed.take_over(saved.sum_Q, saved.horizon)
        self._naming: _At | None = None
        """A sum less some frames; the rest of them comes with the next commands."""
        self._named = self._now()
        """The sum that was named last: at the newest base, or where this worker began."""
        self._saved_at = time.monotonic()
        self._is_unsaved = False
        """Scalars came since the last snapshot was asked for."""
        self._sampling = Sampling(link, setup, materials, self._summed)
        self._writer = Serial("writer")
        self._evaluator = Serial("evaluator")
        self._sampling.start()
        if not is_on_disk:
            self._save(self._state())
        self._saver: Saver[SavedSum] = Saver(self._save)

    def ready(self, note: str) -> wire.Ready:
        """Where the worker stands."""
        state = self._state()
        return wire.Ready(
            state.round, state.step, sum_digest(state.sum_Q), note, packed(state.horizon)
        )

    def serve(self) -> None:
        """Carry out commands until the node is gone; then save."""
        for id, command, fds in self._link.commands(self._save_what_is_due):
            self._carry_out(id, command, fds)
        self._sampling.close()
        self._saver.save(self._state())
        self._writer.finish()
        self._saver.finish()

    def _carry_out(self, id: int, command: wire.Command, fds: Sequence[int]) -> None:
        match command:
            case Sample(boot, step, steps):
                self._step = max(self._step, step)  # a restarted node repeats its round
                log = log_id(self._materials.run, self._peer, boot)
                self._sampling.sample(_Goal(id, log, step, step + steps))
            case wire.CloseInner():
                self._sampling.close()
            case AddScalars(frames):
                self._add(frames)
                self._link.answer(id, Added())
            case NameSum(less, more):
                self._link.answer(id, SumNamed(self._name(less, more)))
            case wire.StartFromCheckpoint(checkpoint):
                self._go_over_to(id, checkpoint, fds)
            case Save():
                self._save_soon()
                self._saver.once_saved(lambda: self._link.answer(id, SaveDone()))
            case wire.Evaluate():
                weights_P, round = self._summed.weights_P, self._state().round
                evaluate = functools.partial(self._evaluate, id, round, weights_P)
                if self._is_unsaved:
                    self._save_soon()
                # peers with equal losses have equal files then
                self._saver.once_saved(lambda: self._evaluator.do(evaluate))
            case wire.Export(at_base):
                state, round = self._state(), self._state().round
                if at_base:
                    at = self._named
                    state = SavedSum(FIRST_ROUND, 0, at.sum_Q, at.horizon)
                self._writer.do(lambda: self._export(id, round, state))
            case _:
                name_of = type(command).__name__
                self._link.answer(id, wire.Failed(f"{name_of} in a worker of an spsa run"))

    def _name(self, less: Sequence[Frame], more: bool) -> Digest:
        """The name of the sum as it was at the first of these commands."""
        at = self._naming or self._now()
        for frame in less:
            log = log_id(self._materials.run, frame.author, frame.boot)
            at.horizon[log] = min(frame.first, at.horizon.get(log, 0))
        at = replace(at, sum_Q=self._summed.without(less, at.sum_Q))
        if more:
            self._naming = at
            return NO_NAME
        self._naming, self._named = None, at
        return sum_digest(at.sum_Q)

    def _now(self) -> _At:
        return _At(self._summed.sum_Q, dict(self._summed.horizon))

    def _go_over_to(self, id: int, checkpoint: Checkpoint, fds: Sequence[int]) -> None:
        try:
            saved = checkpoint_sum(checkpoint, fds, self._materials)
            self._summed.take_over(saved.sum_Q, saved.horizon)
        except (Malformed, ValueError, OSError) as error:
            self._link.answer(id, wire.Failed(str(error)))
            return
        self._sampling.close()
        self._naming, self._named = None, self._now()
        self._save_soon()
        self._link.answer(id, self.ready(""))

    def _state(self) -> SavedSum:
        round = Round(self._step // self._config.inner_steps)
        return SavedSum(round, self._step, self._summed.sum_Q, dict(self._summed.horizon))

    def _evaluate(self, id: int, round: Round, weights_P: Tensor) -> None:
        loss = self._materials.validation.loss(model_on(self._materials.spec.model, weights_P))
        self._link.answer(id, wire.Evaluated(round, loss))

    def _export(self, id: int, round: Round, state: SavedSum) -> None:
        data = sum_checkpoint(self._materials.run, state)
        self._link.hand_over_checkpoint(id, round, sum_digest(state.sum_Q), data)

    def _add(self, frames: Sequence[Frame]) -> None:
        self._summed.add(frames)
        self._is_unsaved = True
        for frame in frames:
            end = frame.step + len(frame.scalars) // self._config.samples
            if frame.author == self._peer:
                self._step = max(self._step, end)

    def _save_what_is_due(self) -> float | None:
        """A snapshot every few seconds; seconds until the next one, None: there is nothing new."""
        if not self._is_unsaved:
            return None
        left_s = self._saved_at + SAVE_S - time.monotonic()
        if left_s > 0:
            return left_s
        self._save_soon()
        return None

    def _save_soon(self) -> None:
        self._saved_at, self._is_unsaved = time.monotonic(), False
        self._saver.save(self._state())

    def _save(self, state: SavedSum) -> None:
        weights_P = self._summed.weights_at(state.sum_Q)
        saved = Saved(state.round, state.step)
        write = functools.partial(save_sum, self._directory, self._materials.run, state, weights_P)
        save_and_tell(self._link, saved, "sum", write)


def started(
    start: wire.Start, fds: Sequence[int], materials: Materials, directory: Path
) -> tuple[SavedSum | None, str]:
    """Where the worker begins (None: at the run's seed), and a note.

    Raises:
        Malformed, ValueError, OSError, NoSnapshot: it cannot begin there.
    """
    match start:
        case wire.StartFresh():
            return None, ""
        case wire.StartFromDisk():
            return load_newest_sum(directory, materials.run)
        case wire.StartFromCheckpoint(checkpoint):
            saved = checkpoint_sum(checkpoint, fds, materials)
            step = saved.round * materials.spec.trainer.inner_steps
            return replace(saved, step=step), ""


def checkpoint_sum(checkpoint: Checkpoint, fds: Sequence[int], materials: Materials) -> SavedSum:
    """The sum that came with a command.

    Raises:
        Malformed: none came, or another one than the checkpoint says.
    """
    saved = read_sum(checkpoint_file(fds), materials.run)
    if sum_digest(saved.sum_Q) != checkpoint.weights:
        raise Malformed("a checkpoint with another sum than it says")
    return replace(saved, round=checkpoint.round)
