from __future__ import annotations

import queue
from dataclasses import replace
from pathlib import Path

import torch
from small_run import small_run

from node.worker.loop import Goal, TrainingLoop
from node.worker.materials import initial_slow
from node.worker.wire import InnerDone
from protocol.algorithms import SyncConfig, TrainerConfig
from protocol.ids import PeerId, Round
from trainers.inner import Inner, Moments
from trainers.state import Fast

WAIT_S = 15.0
TOKENS_A_STEP = 4 * 8


class Loop:
    """A training loop, and what it has answered."""

    def __init__(
        self,
        root: Path,
        start: Fast | None = None,
        trainer: TrainerConfig | None = None,
        **inner: int,
    ) -> None:
        spec = small_run(root, trainer).spec
        spec = replace(spec, inner=replace(spec.inner, **inner))  # type: ignore[arg-type]
        phi_P = initial_slow(spec).phi_P
        none = Moments(torch.zeros_like(phi_P), torch.zeros_like(phi_P), 0)
        start = start or Fast(phi_P, none, 0, 0)
        tokens = torch.arange(200)
        self.done: queue.Queue[InnerDone] = queue.Queue()
        self.loop = TrainingLoop(spec, PeerId("me"), tokens, start, lambda _report: None)
        self.loop.start()

    def train(self, round: int, steps: int) -> InnerDone:
        self.loop.run_inner(Goal(Round(round), steps, self.done.put))
        return self.done.get(timeout=WAIT_S)


def test_a_round_ends_after_its_steps_and_counts_them(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    assert loop.train(0, 4) == InnerDone(4, 4 * TOKENS_A_STEP)
    assert loop.loop.take_snapshot()[1] == 4
    assert loop.train(1, 3) == InnerDone(3, 3 * TOKENS_A_STEP)
    assert (loop.loop.state().inner_step, loop.loop.state().step_in_round) == (7, 3)


def test_steps_made_before_the_order_count(tmp_path: Path) -> None:
    """The round was closed early, and is then to be finished after all."""
    loop = Loop(tmp_path)
    loop.train(0, 2)
    assert loop.train(0, 4) == InnerDone(4, 4 * TOKENS_A_STEP)


def test_closing_ends_a_round_at_the_next_boundary(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.loop.run_inner(Goal(Round(0), 1_000_000, loop.done.put))
    loop.loop.close_inner()
    assert loop.done.get(timeout=WAIT_S).steps < 1_000_000


def test_closing_what_is_not_running_is_no_error(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.loop.close_inner()
    assert loop.train(0, 1).steps == 1


def test_the_shift_of_an_exchange_is_added_and_later_steps_stay(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.train(0, 2)
    snapshot_P, _ = loop.loop.take_snapshot()
    loop.train(1, 2)
    later_P = loop.loop.state().theta_P
    shift_P = torch.linspace(-1, 1, len(later_P))

    def shift(inner: Inner) -> None:
        inner.theta_P.add_(shift_P)

    room = loop.loop.state()
    found, _ = loop.loop.merge_and_copy(shift, room)
    assert found.theta_P is room.theta_P  # no new memory
    assert found.moments.first_P is room.moments.first_P
    assert torch.equal(found.moments.second_P, loop.loop.state().moments.second_P)
    assert torch.equal(found.theta_P, later_P + shift_P)
    assert not torch.equal(later_P, snapshot_P)
    assert (found.step_in_round, found.inner_step) == (2, 4)


def test_a_loop_that_goes_on_from_a_state_makes_the_same_steps(tmp_path: Path) -> None:
    unbroken = Loop(tmp_path)
    unbroken.train(0, 4)
    middle = unbroken.loop.state()
    unbroken.loop.take_snapshot()
    unbroken.train(1, 4)
    restarted = Loop(tmp_path, middle)
    restarted.loop.take_snapshot()
    restarted.train(1, 4)
    assert torch.equal(restarted.loop.state().theta_P, unbroken.loop.state().theta_P)
    assert restarted.loop.state().inner_step == 8


def test_a_batch_in_parts_counts_its_tokens_once(tmp_path: Path) -> None:
    loop = Loop(tmp_path, accumulate=4)
    assert loop.train(0, 3) == InnerDone(3, 3 * TOKENS_A_STEP)


def test_a_run_that_averages_gradients_measures_and_moves_nothing(tmp_path: Path) -> None:
    loop = Loop(tmp_path, trainer=SyncConfig())
    before = loop.loop.state()
    assert loop.train(0, 1) == InnerDone(1, TOKENS_A_STEP)
    gradient_P, steps = loop.loop.take_snapshot()
    after = loop.loop.state()
    assert steps == 1
    assert torch.equal(after.theta_P, before.theta_P)
    assert (after.inner_step, after.moments.steps) == (1, 0)
    assert gradient_P.norm() > 0


def test_a_loop_that_goes_over_to_other_weights_gives_up_its_goal(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.loop.run_inner(Goal(Round(0), 1_000_000, loop.done.put))
    taken = loop.loop.state()
    theta_P = torch.linspace(-1, 1, len(taken.theta_P))
    found = loop.loop.go_over_to(replace(taken, theta_P=theta_P))
    assert torch.equal(found.theta_P, theta_P)
    assert found.step_in_round == 0
    assert loop.done.get(timeout=WAIT_S).steps < 1_000_000
    assert loop.train(5, 2).steps == 2
