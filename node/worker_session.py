"""A started worker: what it does about each command, and the state that this changes.

Slow weights, outer momentum and the open snapshot belong to the main thread, which carries
out commands in the order in which they came; the fast weights belong to the training thread
(`node.worker_loop`).  Slow weights are replaced, never written to, so the threads that save
and evaluate keep what they were given.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from node import worker_wire as wire
from node.arena import SealableMemory, map_read_only
from node.worker_files import checkpoint_bytes, read_slow, save_snapshot
from node.worker_link import Link
from node.worker_loop import Goal, TrainingLoop
from node.worker_shared import check_shared, split_moments, with_moments
from protocol import codec
from protocol.algorithms import LocalConfig, SyncConfig
from protocol.errors import Malformed, PayloadRefused
from protocol.fragments import num_parameters
from protocol.ids import Digest, Round, RunId, digest_of, seed_of, short
from protocol.messages import Checkpoint
from protocol.spec import MAX_SPEC_BYTES, RunSpec
from trainers import tokenizer
from trainers.data import Validation
from trainers.inner import Moments
from trainers.model import initial_weights, model_on
from trainers.outer_step import MAX_OPEN, Applied
from trainers.outers import outer_of
from trainers.state import Fast, Slow


@dataclass(frozen=True, slots=True)
class Materials:
    """What `Setup` named, read."""

    run: RunId
    spec: RunSpec
    tokens_N: Tensor
    validation: Validation
    device: torch.device

    @classmethod
    def read(cls, setup: wire.Setup) -> Materials:
        """Raises ValueError, OSError: a file is missing, broken, or too short to train on."""
        spec = codec.decode(RunSpec, setup.spec_body, max_bytes=MAX_SPEC_BYTES)
        bpe = tokenizer.load_tokenizer(Path(setup.tokenizer).read_bytes(), spec.model.vocab)
        context = spec.model.context
        ids = [id for path in setup.corpus for id in tokenizer.encode(bpe, _text(path))]
        if len(ids) <= context:
            raise ValueError(f"{len(ids)} tokens of training text, expected more than {context}")
        return cls(
            spec.run,
            spec,
            torch.tensor(ids, dtype=torch.int32),
            read_validation(spec, setup.tokenizer, setup.validation),
            _device(setup.device),
        )


def _device(name: str) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ValueError("device is cuda, but torch finds no GPU here; set device to auto or cpu")
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")


def read_validation(spec: RunSpec, tokenizer_path: str, path: str) -> Validation:
    """The run's yardstick.  Raises ValueError, OSError: it cannot be read."""
    bpe = tokenizer.load_tokenizer(Path(tokenizer_path).read_bytes(), spec.model.vocab)
    tokens_N = torch.tensor(tokenizer.encode(bpe, _text(path)))
    return Validation(tokens_N, tokenizer.token_bytes(bpe), spec.model.context)


def initial_slow(spec: RunSpec) -> Slow:
    """Round 0 of a run: equal on all peers."""
    rng = Generator().manual_seed(seed_of(spec.seed, "init"))
    phi_P = initial_weights(spec.model, rng)
    return Slow(Round(0), phi_P, torch.zeros_like(phi_P))


class Session:
    """A started worker.  The main thread owns it; its commands run in the order they came."""

    def __init__(
        self, link: Link, setup: wire.Setup, materials: Materials, slow: Slow, fast: Fast
    ) -> None:
        self._link = link
        self._peer = setup.peer
        self._directory = Path(setup.directory)
        self._materials = materials
        self._spec = materials.spec
        device = materials.device
        self._outer = outer_of(self._spec, self._peer, _slow_on(slow, device))
        self._open: dict[Digest, int] = {}
        """Snapshots whose outer step is not taken, and the inner steps in each."""
        self._loop = TrainingLoop(
            self._spec, self._peer, materials.tokens_N, _fast_on(fast, device), link.report
        )
        self._writer = Serial("writer")
        self._evaluator = Serial("evaluator")
        self._loop.start()
        self._save(self._outer.slow, fast)  # a restart never has to ask a member again

    def serve(self) -> None:
        """Carry out commands until the node is gone or says stop; then save."""
        while (received := self._link.receive()) is not None:
            id, command, fds = received
            if isinstance(command, wire.Stop):
                break
            try:
                self._carry_out(id, command, fds)
            finally:
                for fd in fds:
                    os.close(fd)
        self._loop.close_inner()
        self._writer.finish()
        self._save(self._outer.slow, self._unfinished())

    def _carry_out(self, id: int, command: wire.Command, fds: Sequence[int]) -> None:
        match command:
            case wire.RunInner(round, steps):
                self._loop.run_inner(Goal(round, steps, functools.partial(self._link.answer, id)))
            case wire.CloseInner():
                self._loop.close_inner()
            case wire.Snapshot(round, fragment):
                self._snapshot(id, round, fragment)
            case wire.ApplyOuter():
                self._apply_outer(id, command, fds)
            case wire.StartFromCheckpoint(checkpoint):
                self._go_over_to(id, checkpoint, fds)
            case wire.Evaluate():
                slow = self._outer.slow
                self._evaluator.do(lambda: self._evaluate(id, slow))
            case wire.Export():
                slow = self._shared()
                self._writer.do(lambda: self._export(id, slow))
            case _:
                self._link.answer(id, wire.Failed(f"{type(command).__name__} in a started worker"))

    def _snapshot(self, id: int, round: Round, fragment: int) -> None:
        if len(self._open) >= MAX_OPEN:
            self._link.answer(id, wire.Failed(f"{MAX_OPEN} snapshots are open already"))
            return
        theta_P, steps = self._loop.take_snapshot()
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
        fast = self._loop.merge(applied.merge)
        if applied.slow is None:
            self._outer.slow = replace(
                self._outer.slow, round=command.round, phi_P=fast.theta_P.clone()
            )
        slow = self._outer.slow

        def save_and_answer() -> None:
            self._save(slow, fast)
            done = wire.OuterDone(
                round=slow.round,
                weights=slow.digest(),
                gradient_norm=applied.gradient_norm,
                spread=applied.spread,
            )
            self._link.answer(id, done)

        self._writer.do(save_and_answer)

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
        """Take over a member's weights; our own optimizer goes on."""
        try:
            slow, moments = split_moments(from_checkpoint(checkpoint, fds, self._materials))
        except (Malformed, OSError) as error:
            self._link.answer(id, wire.Failed(str(error)))
            return
        device = self._materials.device
        now = self._loop.state()
        fast = replace(now, theta_P=slow.phi_P, moments=moments or now.moments)
        fast = self._loop.go_over_to(_fast_on(fast, device))
        self._outer = outer_of(self._spec, self._peer, _slow_on(slow, device))
        self._open.clear()
        self._save(self._outer.slow, fast)
        self._link.answer(id, wire.Ready(slow.round, fast.inner_step, slow.digest(), ""))

    def _shared(self) -> Slow:
        """What a joiner starts from; in a sync run the optimizer is everybody's."""
        slow = self._outer.slow
        if isinstance(self._spec.trainer, SyncConfig):
            return with_moments(slow, self._loop.state().moments)
        return slow

    def _evaluate(self, id: int, slow: Slow) -> None:
        loss = self._materials.validation.loss(model_on(self._spec.model, slow.phi_P))
        self._link.answer(id, wire.Evaluated(slow.round, loss))

    def _export(self, id: int, slow: Slow) -> None:
        data = checkpoint_bytes(self._materials.run, slow)
        memory = SealableMemory(len(data))
        memory.view[:] = data
        checkpoint = Checkpoint(slow.round, digest_of(data), len(data), slow.digest())
        self._link.hand_over(id, wire.Exported(checkpoint), memory)

    def _save(self, slow: Slow, fast: Fast) -> None:
        try:
            save_snapshot(self._directory, self._materials.run, slow, fast)
        except OSError as error:
            reason = f"the snapshot of round {slow.round} could not be written: {error}"
            print(reason, file=sys.stderr, flush=True)  # noqa: T201  the node may be gone
            self._link.answer(wire.NO_ID, wire.SaveFailed(reason))

    def _unfinished(self) -> Fast:
        """The state at the end; the steps of an open snapshot count to the round again."""
        fast = self._loop.state()
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


def from_checkpoint(checkpoint: Checkpoint, fds: Sequence[int], materials: Materials) -> Slow:
    """The slow weights that came with a command.

    Raises:
        Malformed: none came, or others than the checkpoint says.
    """
    if len(fds) != 1:
        raise Malformed("no checkpoint came with the command")
    count = num_parameters(materials.spec.model)
    slow = read_slow(Path(f"/proc/self/fd/{fds[0]}"), materials.run, count)
    if slow.round != checkpoint.round or slow.digest() != checkpoint.weights:
        raise Malformed("a checkpoint of another round or with other weights than it says")
    check_shared(slow, materials.spec)
    return slow


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


def _text(path: str) -> str:
    try:
        return Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
