"""The worker's training thread: inner steps, and between two of them whatever must see them.

The thread owns the fast weights, the optimizer and the counters.  Others reach them by a job
that it carries out at the next step boundary; while there is nothing to train it waits for
jobs.  So nobody locks, nothing is read half-way through a step, and training waits for
nothing but such a job, which is a copy or a sum of vectors.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from node.worker.wire import InnerDone, Progress
from protocol.algorithms import SyncConfig
from protocol.ids import PeerId, Round
from protocol.spec import RunSpec
from trainers import data
from trainers.inner import Inner, lr_in
from trainers.state import Fast

T = TypeVar("T")

BOUNDARY_S = 600.0
"""Longest inner step that the rest of the worker waits for.  A guess: minutes a step are a
model too large for its machine, and the node gives up on the worker about then."""
REPORT_S = 0.25
"""Between two reports of progress: what a person can read, and little for the socket."""


@dataclass(slots=True)
class Goal:
    """What is being trained for."""

    round: Round
    steps: int
    done: Callable[[InnerDone], None]
    spec: RunSpec | None = None
    """With the settings of this round; None: those that the run began with."""


class TrainingLoop(threading.Thread):
    """Trains as long as the process lives; public methods may be called from any thread."""

    def __init__(
        self,
        spec: RunSpec,
        peer: PeerId,
        tokens_N: Tensor,
        fast: Fast,
        report: Callable[[Progress], None],
    ) -> None:
        super().__init__(name="training", daemon=True)
        self._spec = spec
        self._peer = peer
        self._tokens_N = tokens_N
        self._report = report
        self._averages_gradients = isinstance(spec.trainer, SyncConfig)
        """The optimizer steps with the mean gradient, which is an outer step's business."""
        self._inner = Inner(spec.model, spec.inner, fast.theta_P.clone())
        self._inner.restore(fast.moments)
        self._inner_step = fast.inner_step
        self._step_in_round = fast.step_in_round
        self._goal: Goal | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        """Short: who asks for a job waits for it, but for `run_inner` and `close_inner`."""
        self._begin_report()

    # --- from any thread ----------------------------------------------------------------

    def run_inner(self, goal: Goal) -> None:
        """Train until `goal.steps` steps are made since the last snapshot."""
        self._jobs.put(lambda: self._set_goal(goal))

    def close_inner(self) -> None:
        """Be done with the goal at the next boundary, however many steps were made."""
        self._jobs.put(self._reach_goal)

    def take_snapshot(self) -> tuple[Tensor, int]:
        """A copy of the fast weights (sync: of the gradient), and the steps since the last one.

        Counts anew from here.
        """
        return self._at_boundary(self._take_snapshot)

    def merge(self, merge: Callable[[Inner], None]) -> None:
        """Let an outer step change the fast weights."""
        self._at_boundary(lambda: merge(self._inner))

    def merge_and_copy(self, merge: Callable[[Inner], None], room: Fast) -> tuple[Fast, float]:
        """`merge`, then copy all that is here into `room`; and how long that took, seconds.

        Training stands still meanwhile.  Seconds of this thread, not of a busy machine.
        """
        return self._at_boundary(lambda: self._merge_and_copy(merge, room))

    def go_over_to(self, fast: Fast) -> Fast:
        """Train from these weights on; the goal of before is given up."""
        return self._at_boundary(lambda: self._go_over_to(fast))

    def state(self) -> Fast:
        """A copy of all that is here."""
        return self._at_boundary(self._state)

    # --- in the training thread ---------------------------------------------------------

    def run(self) -> None:
        while True:
            try:
                self._jobs.get(block=self._goal is None)()
                continue
            except queue.Empty:
                pass
            assert self._goal is not None
            if self._step_in_round >= self._goal.steps:
                self._reach_goal()
            else:
                self._step(self._goal)

    def _step(self, goal: Goal) -> None:
        config = self._spec.inner
        inputs_BT, targets_BT = data.batch(
            self._tokens_N,
            seed=self._spec.seed,
            peer=self._peer,
            step=self._inner_step,
            batch=config.batch,
            context=self._spec.model.context,
        )
        device = self._inner.theta_P.device
        inputs_BT, targets_BT = inputs_BT.to(device), targets_BT.to(device)
        if self._averages_gradients:
            self._loss += self._inner.backward(inputs_BT, targets_BT)
        else:
            lr = lr_in(goal.spec or self._spec, goal.round, self._step_in_round)
            self._loss += self._inner.step(inputs_BT, targets_BT, lr)
        self._inner_step += 1
        self._step_in_round += 1
        self._steps_reported += 1
        if time.monotonic() - self._reported_at >= REPORT_S:
            self._make_report(goal.round)

    def _make_report(self, round: Round) -> None:
        seconds = time.monotonic() - self._reported_at
        report = Progress(
            round=round,
            inner_step=self._inner_step,
            step_in_round=self._step_in_round,
            loss=self._loss.item() / self._steps_reported,
            tokens_per_s=self._tokens(self._steps_reported) / seconds,
        )
        self._report(report)
        self._begin_report()

    def _begin_report(self) -> None:
        self._reported_at = time.monotonic()
        self._steps_reported = 0
        self._loss = torch.zeros((), device=self._inner.theta_P.device)

    def _set_goal(self, goal: Goal) -> None:
        if self._goal is not None:
            raise RuntimeError("RunInner while the one before is not done")
        self._goal = goal
        self._begin_report()  # time spent waiting is not time spent training

    def _reach_goal(self) -> None:
        if self._goal is None:
            return  # closed when it was done already: the two crossed
        goal, self._goal = self._goal, None
        if self._steps_reported:
            self._make_report(goal.round)
        goal.done(InnerDone(self._step_in_round, self._tokens(self._step_in_round)))

    def _take_snapshot(self) -> tuple[Tensor, int]:
        steps, self._step_in_round = self._step_in_round, 0
        inner = self._inner
        sent_P = inner.gradient_P if self._averages_gradients else inner.theta_P
        return sent_P.clone(), steps

    def _merge_and_copy(self, merge: Callable[[Inner], None], room: Fast) -> tuple[Fast, float]:
        merge(self._inner)
        began = time.thread_time()
        room.theta_P.copy_(self._inner.theta_P)
        moments = self._inner.moments(room.moments)
        fast = Fast(room.theta_P, moments, self._inner_step, self._step_in_round)
        return fast, time.thread_time() - began

    def _go_over_to(self, fast: Fast) -> Fast:
        self._reach_goal()
        self._inner.theta_P.copy_(fast.theta_P)
        self._inner.restore(fast.moments)
        self._step_in_round = 0
        return self._state()

    def _state(self) -> Fast:
        return Fast(
            self._inner.theta_P.clone(),
            self._inner.moments(),
            self._inner_step,
            self._step_in_round,
        )

    def _tokens(self, steps: int) -> int:
        return steps * self._spec.inner.batch * self._spec.model.context

    def _at_boundary(self, work: Callable[[], T]) -> T:
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(work())
            except (RuntimeError, ValueError) as error:  # torch's own, out of memory among them
                future.set_exception(error)

        self._jobs.put(job)
        return future.result(BOUNDARY_S)
