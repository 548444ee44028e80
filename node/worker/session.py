"""A started worker: what it does about each command, and the state that this changes.

Slow weights, outer momentum and the open snapshot belong to the main thread, which carries
out commands in the order in which they came; the fast weights belong to the training thread
(`node.worker.loop`).  Slow weights are replaced, never written to, so the threads that save
and evaluate keep what they were given.  Nothing waits for the disk: an outer step is answered
before its snapshot is written (`node.worker.saver`), and `Saved` tells when it is.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from node.arena import SealableMemory, map_read_only
from node.snapshots import remove_given_up
from node.worker import wire
from node.worker.files import checkpoint_bytes, save_snapshot
from node.worker.link import Link
from node.worker.loop import Goal, TrainingLoop
from node.worker.materials import Materials, from_checkpoint
from node.worker.saver import Rooms, Saver, save_and_tell
from node.worker.shared import has_moments, split_moments, with_moments
from node.worker.sketch import sketch_of_checkpoint, sketched
from node.worker.wire_control import ChangeSettings
from node.worker.wire_join import MakeSketch
from node.worker.wire_save import Save, Saved, SaveDone
from protocol.algorithms import LocalConfig, SyncConfig
from protocol.changes import InForce, spec_in
from protocol.errors import Malformed, PayloadRefused
from protocol.ids import Digest, Round, short
from protocol.messages import Checkpoint
from protocol.spec import RunSpec
from trainers.inner import Inner, Moments
from trainers.model import model_on
from trainers.outer_step import MAX_OPEN, Applied
from trainers.outers import outer_of
from trainers.state import Fast, Slow


class Session:
    """A started worker.  The main thread owns it; its commands run in the order they came."""

    def __init__(
        self,
        link: Link,
        setup: wire.Setup,
        materials: Materials,
        slow: Slow,
        fast: Fast,
        *,
        is_on_disk: bool = False,
    ) -> None:
        """Args: is_on_disk: slow and fast were read from there."""
        self._link = link
        self._peer = setup.peer
        self._directory = Path(setup.directory)
        self._materials = materials
        self._spec = materials.spec
        device = materials.device
        self._outer = outer_of(self._spec, self._peer, _slow_on(slow, device))
        self._changes: tuple[InForce, ...] = ()
        self._open: dict[Digest, int] = {}
        """Snapshots whose outer step is not taken, and the inner steps in each."""
        self._loop = TrainingLoop(
            self._spec, self._peer, materials.tokens_N, _fast_on(fast, device), link.report
        )
        self._writer = Serial("writer")
        self._evaluator = Serial("evaluator")
        self._rooms = Rooms(len(slow.phi_P))
        self._went_over = False
        """To a member's weights, of an earlier round maybe: files of later ones are of no use."""
        if not is_on_disk:
            self._save((self._outer.slow, fast))  # a restart never has to ask a member again
        self._saver: Saver[tuple[Slow, Fast]] = Saver(self._save)
        self._loop.start()

    def serve(self) -> None:
        """Carry out commands until the node is gone; then save."""
        for id, command, fds in self._link.commands():
            self._carry_out(id, command, fds)
        self._loop.close_inner()
        self._saver.save((self._outer.slow, self._unfinished()))
        self._writer.finish()
        self._saver.finish()

    def _carry_out(self, id: int, command: wire.Command, fds: Sequence[int]) -> None:
        match command:
            case wire.RunInner(round, steps):
                answer = functools.partial(self._link.answer, id)
                self._loop.run_inner(Goal(round, steps, answer, self._spec_in(round)))
            case wire.CloseInner():
                self._loop.close_inner()
            case ChangeSettings(changes):
                self._changes = changes
            case wire.Snapshot(round, fragment):
                self._snapshot(id, round, fragment)
            case wire.ApplyOuter():
                self._apply_outer(id, command, fds)
            case wire.StartFromCheckpoint(checkpoint):
                self._go_over_to(id, checkpoint, fds)
            case MakeSketch(nonce, None):
                slow = self._outer.slow
                self._evaluator.do(lambda: self._link.answer(id, sketched(slow, nonce)))
            case MakeSketch():
                self._link.answer(id, sketch_of_checkpoint(command, fds, self._materials))
            case wire.Evaluate():
                slow = self._outer.slow
                self._evaluator.do(lambda: self._evaluate(id, slow))
            case Save():
                self._saver.save((self._outer.slow, self._unfinished()))
                self._saver.once_saved(lambda: self._link.answer(id, SaveDone()))
            case wire.Export():
                slow = self._shared()
                self._writer.do(lambda: self._export(id, slow))
            case _:
                self._link.answer(id, wire.Failed(f"{type(command).__name__} in a started worker"))

    def _spec_in(self, round: Round) -> RunSpec:
        """The settings of a round, with what the creator has changed."""
        return spec_in(self._spec, self._changes, round)

    def _snapshot(self, id: int, round: Round, fragment: int) -> None:
        if len(self._open) >= MAX_OPEN:
            self._link.answer(id, wire.Failed(f"{MAX_OPEN} snapshots are open already"))
            return
        theta_P, steps = self._loop.take_snapshot()
        self._outer.use(self._spec_in(round).trainer)
        memory = SealableMemory(self._outer.payload_bytes(fragment))
        try:
            digest = self._outer.snapshot(round, fragment, theta_P, memory.view)
        except ValueError as error:
            memory.close()
            self._link.answer(id, wire.Failed(str(error)))
            return
        if restart := self._outer.restart(fragment):
            self._loop.merge(restart)
        self._open[digest] = steps
        self._link.hand_over(id, wire.SnapshotDone(digest, len(memory.view)), memory)

    def _apply_outer(self, id: int, command: wire.ApplyOuter, fds: Sequence[int]) -> None:
        mine = command.mine
        if mine is not None and mine not in self._open:
            self._link.answer(id, wire.Failed(f"no open snapshot {short(mine)}"))
            return
        applied = self._applied(command, fds)
        if isinstance(applied, wire.OuterRefused):
            self._link.answer(id, applied)
            return
        if mine is None and isinstance(self._spec.trainer, LocalConfig):
            self._loop.take_snapshot()  # nobody else counts its rounds
        self._open.pop(mine, None)  # type: ignore[arg-type]
        slow = self._merge(applied, command.round)

        def answer() -> None:
            done = wire.OuterDone(
                round=slow.round,
                weights=slow.digest(),
                gradient_norm=applied.gradient_norm,
                spread=applied.spread,
            )
            self._link.answer(id, done)

        self._writer.do(answer)

    def _merge(self, applied: Applied, round: Round) -> Slow:
        """Change the fast weights at a step boundary, and have both saved as they are there."""
        slow, merge = applied.slow, applied.merge
        if slow is None:  # the slow weights are the fast ones after the merge
            phi_P = torch.empty_like(self._outer.slow.phi_P)
            slow = self._outer.slow = replace(self._outer.slow, round=round, phi_P=phi_P)

            def merge(inner: Inner) -> None:
                applied.merge(inner)
                phi_P.copy_(inner.theta_P)

        if not self._rooms.is_due:
            self._loop.merge(merge)
            return slow
        busy = self._saver.recall()
        room = self._rooms.other_than(busy[1] if busy else None)
        fast, pause_s = self._loop.merge_and_copy(merge, room)
        self._rooms.copied(pause_s)
        self._saver.save((slow, self._with_open(fast)))
        return slow

    def _applied(self, command: wire.ApplyOuter, fds: Sequence[int]) -> Applied | wire.OuterRefused:
        """Take the outer step, or say why it was refused.

        Trap: an error's traceback keeps views of the mappings, which cannot be closed then; so
        it ends inside.
        """
        mine = command.mine
        theirs = [share.digest for share in command.shares if share.digest != mine]
        with contextlib.ExitStack() as mapped:
            views = [mapped.enter_context(_mapped(fd)) for fd in fds]
            contents = dict(zip(theirs, views, strict=True))
            try:
                return self._outer.apply(
                    command.round, command.fragment, mine, command.shares, contents
                )
            except PayloadRefused as error:
                return wire.OuterRefused(error.culprit, str(error))

    def _go_over_to(self, id: int, checkpoint: Checkpoint, fds: Sequence[int]) -> None:
        """Take over a member's weights; our own optimizer goes on, if it is our own."""
        try:
            checked = from_checkpoint(checkpoint, fds, self._materials)
        except (Malformed, OSError) as error:
            self._link.answer(id, wire.Failed(str(error)))
            return
        slow, moments = split_moments(checked, self._spec)
        device = self._materials.device
        fast = replace(self._loop.state(), theta_P=slow.phi_P)
        if moments and isinstance(self._spec.trainer, SyncConfig):
            fast = replace(fast, moments=moments)
        fast = self._loop.go_over_to(_fast_on(fast, device))
        self._outer = outer_of(self._spec, self._peer, _slow_on(slow, device))
        self._open.clear()
        self._went_over = True
        self._saver.save((self._outer.slow, fast))
        self._link.answer(id, wire.Ready(slow.round, fast.inner_step, slow.digest(), ""))

    def _shared(self) -> Slow:
        """What a joiner starts from.  Training stands still for a copy only where it is given."""
        slow = self._outer.slow
        if not has_moments(self._spec):
            return slow
        return with_moments(slow, self._loop.state().moments, self._spec)

    def _evaluate(self, id: int, slow: Slow) -> None:
        loss = self._materials.validation.loss(model_on(self._spec.model, slow.phi_P))
        self._link.answer(id, wire.Evaluated(slow.round, loss))

    def _export(self, id: int, slow: Slow) -> None:
        data = checkpoint_bytes(self._materials.run, slow)
        self._link.hand_over_checkpoint(id, slow.round, slow.digest(), data)

    def _save(self, state: tuple[Slow, Fast]) -> None:
        slow, fast = state
        run = self._materials.run

        def write() -> None:
            path = save_snapshot(self._directory, run, slow, fast)
            if self._went_over and (note := remove_given_up(path, run)):
                print(note, file=sys.stderr, flush=True)  # noqa: T201  as a save that fails

        save_and_tell(self._link, Saved(slow.round, fast.inner_step), "snapshot", write)

    def _unfinished(self) -> Fast:
        """The state at the end."""
        return self._with_open(self._loop.state())

    def _with_open(self, fast: Fast) -> Fast:
        """As it is saved: who goes on from it has no open snapshot, and counts its steps again."""
        return replace(fast, step_in_round=fast.step_in_round + sum(self._open.values()))


class Serial(threading.Thread):
    """A thread that does one thing after the other, in the order asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        """Short: the node has one command of each kind under way."""
        self.start()

    def do(self, work: Callable[[], None]) -> None:
        """Do this after what was asked for before."""
        self._work.put(work)

    def finish(self) -> None:
        """Wait until all of it is done."""
        self._work.put(None)
        self.join()

    def run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


@contextlib.contextmanager
def _mapped(fd: int) -> Iterator[memoryview]:
    """A payload's bytes; empty ones are nobody's payload, and the decoder says so."""
    size = os.fstat(fd).st_size
    if size == 0:
        yield memoryview(b"")
        return
    with map_read_only(fd, size) as memory, memoryview(memory) as view:
        yield view


def _slow_on(slow: Slow, device: torch.device) -> Slow:
    shared = {name: kept.to(device) for name, kept in slow.shared.items()}
    own = {name: kept.to(device) for name, kept in slow.own.items()}
    return Slow(slow.round, slow.phi_P.to(device), slow.delta_P.to(device), shared, own)


def _fast_on(fast: Fast, device: torch.device) -> Fast:
    old = fast.moments
    moments = Moments(old.first_P.to(device), old.second_P.to(device), old.steps)
    return replace(fast, theta_P=fast.theta_P.to(device), moments=moments)
