"""A started worker: what it does about each command, and the state that this changes.

Slow weights, outer momentum and the open snapshot belong to the main thread, which carries
out commands in the order in which they came; the fast weights belong to the training thread
(`node.worker_loop`).  Slow weights are replaced, never written to, so the threads that save
and evaluate keep what they were given.
"""

from __future__ import annotations

import functools
import os
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from node import worker_wire as wire
from node.arena import SealableMemory, map_read_only
from node.worker_files import Fast, Slow, checkpoint_bytes, save_snapshot
from node.worker_link import Link
from node.worker_loop import Goal, TrainingLoop
from protocol import codec
from protocol.errors import Malformed
from protocol.ids import Digest, Round, RunId, digest_of, seed_of, short
from protocol.messages import Checkpoint
from protocol.payload import payload_bytes
from protocol.spec import MAX_SPEC_BYTES, RunSpec
from trainers import compress, outer, tokenizer
from trainers.data import Validation
from trainers.inner import Moments
from trainers.model import initial_weights, model_on


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


@dataclass(frozen=True, slots=True)
class Pending:
    """A snapshot whose exchange is not closed."""

    theta_P: Tensor
    vector_P: Tensor
    """The pair's vector as the partner will decode it."""
    digest: Digest
    steps: int


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
        self._slow = Slow(slow.round, slow.phi_P.to(device), slow.delta_P.to(device))
        self._pending: Pending | None = None
        self._loop = TrainingLoop(
            self._spec, self._peer, materials.tokens_N, _moved(fast, device), link.report
        )
        self._writer = Serial("writer")
        self._evaluator = Serial("evaluator")
        self._loop.start()
        self._save(self._slow, fast)  # a restart never has to ask a member again

    def serve(self) -> None:
        """Carry out commands until the node is gone or says stop; then save."""
        while (received := self._link.receive()) is not None:
            id, command, fd = received
            if isinstance(command, wire.Stop):
                break
            self._carry_out(id, command, fd)
        self._loop.close_inner()
        self._writer.finish()
        self._save(self._slow, self._unfinished())

    def _carry_out(self, id: int, command: wire.Command, fd: int | None) -> None:
        match command:
            case wire.RunInner(round, steps):
                self._loop.run_inner(Goal(round, steps, functools.partial(self._link.answer, id)))
            case wire.CloseInner():
                self._loop.close_inner()
            case wire.Snapshot(round):
                self._snapshot(id, round)
            case wire.ApplyOuter():
                self._apply_outer(id, command, fd)
            case wire.Evaluate():
                slow = self._slow
                self._evaluator.do(lambda: self._evaluate(id, slow))
            case wire.Export():
                slow = self._slow
                self._writer.do(lambda: self._export(id, slow))
            case _:
                self._link.answer(id, wire.Failed(f"{type(command).__name__} in a started worker"))

    def _snapshot(self, id: int, round: Round) -> None:
        if self._pending is not None:
            self._link.answer(id, wire.Failed("a snapshot while the one before is not closed"))
            return
        config = self._spec.trainer
        theta_P, steps = self._loop.take_snapshot()
        vector_P = outer.pair_vector(
            theta_P, self._slow.phi_P, beta=config.beta, gamma=config.gamma
        )
        rng = Generator(theta_P.device).manual_seed(
            seed_of(self._spec.seed, "rounding", self._peer, round)
        )
        count = len(vector_P)
        memory = SealableMemory(payload_bytes(config.codec, count))
        try:
            compress.encode(vector_P, config.codec, rng, memory.view)
        except ValueError as error:
            memory.close()
            self._link.answer(id, wire.Failed(str(error)))
            return
        digest, size = digest_of(memory.view), len(memory.view)
        decoded_P = compress.decode(memory.view, config.codec, count).to(theta_P.device)
        self._pending = Pending(theta_P, decoded_P, digest, steps)
        self._link.hand_over(id, wire.SnapshotDone(digest, size), memory)

    def _apply_outer(self, id: int, command: wire.ApplyOuter, fd: int | None) -> None:
        pending, config = self._pending, self._spec.trainer
        if pending is None or pending.digest != command.mine:
            self._link.answer(id, wire.Failed(f"no open snapshot {short(command.mine)}"))
            return
        spread = 0.0
        if command.theirs is None:
            phi_P, delta_P = outer.alone_step(
                self._slow.phi_P,
                self._slow.delta_P,
                pending.theta_P,
                alpha=config.alpha,
                beta=config.beta,
            )
        else:
            try:
                theirs_P = self._decoded(fd)
            except Malformed as error:
                self._link.answer(id, wire.OuterRefused(str(error)))
                return
            spread = outer.vector_spread(pending.vector_P, theirs_P, beta=config.beta)
            mean_P = outer.pair_mean(pending.vector_P, theirs_P, command.my_weight)
            phi_P, delta_P = outer.pair_step(
                self._slow.phi_P,
                self._slow.delta_P,
                mean_P,
                alpha=config.alpha,
                gamma=config.gamma,
            )
        gradient_norm = (self._slow.phi_P - pending.theta_P).norm().item()
        fast = self._loop.shift(outer.overlap_shift(phi_P, pending.theta_P))
        slow = self._slow = Slow(command.round, phi_P, delta_P)
        self._pending = None

        def save_and_answer() -> None:
            self._save(slow, fast)
            self._link.answer(
                id,
                wire.OuterDone(
                    round=slow.round,
                    weights=slow.digest(),
                    gradient_norm=gradient_norm,
                    fast_spread=spread,
                ),
            )

        self._writer.do(save_and_answer)

    def _decoded(self, fd: int | None) -> Tensor:
        """The partner's vector; closes the descriptor."""
        if fd is None:
            raise Malformed("no payload came with the command")
        try:
            size = os.fstat(fd).st_size
            if size == 0:
                raise Malformed("a payload of 0 bytes")
            with map_read_only(fd, size) as memory, memoryview(memory) as view:
                count = len(self._slow.phi_P)
                vector_P = compress.decode(view, self._spec.trainer.codec, count)
                return vector_P.to(self._slow.phi_P.device)
        finally:
            os.close(fd)

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
        if self._pending is None:
            return fast
        steps = fast.step_in_round + self._pending.steps
        return Fast(fast.theta_P, fast.moments, fast.inner_step, steps)


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


def _moved(fast: Fast, device: torch.device) -> Fast:
    old = fast.moments
    moments = Moments(old.first_P.to(device), old.second_P.to(device), old.steps)
    return Fast(fast.theta_P.to(device), moments, fast.inner_step, fast.step_in_round)


def _text(path: str) -> str:
    try:
        return Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
