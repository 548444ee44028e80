"""Our side of the worker: it runs, is asked, is restarted, and is gone at the end.

`run` supervises one worker process after the other; everything else asks the one that runs
now.  A worker that dies, or does not answer in time, fails what was asked of it with
`WorkerLost` and is replaced; the new one goes on from the last snapshot, and `on_resumed`
says at which round.  Payloads cross through the arena: what the worker hands over is held
there under its digest.  No torch on this side.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from node.arena import Arena
from node.blobs.store import BlobStore
from node.snapshots import snapshot_files
from node.telemetry import Waits
from node.worker import wire, wire_spsa
from node.worker.life import DEADLINE_S, SPAWN_S, WorkerLife, log_ready
from node.worker.wire_control import ChangeSettings
from node.worker.wire_join import MakeSketch, Sketched
from node.worker.wire_save import Save, Saved, SaveDone, SaveFailed
from protocol.errors import ConfigError, LocalProtocolError, PayloadRefused, ShoalError, WorkerLost
from protocol.ids import Digest, Round
from protocol.messages import Checkpoint
from protocol.spsa import Frame
from trainers.effects import ApplyOuter
from trainers.events import Sampled

log = logging.getLogger(__name__)

MAX_DEATHS = 5
DEATHS_WITHIN_S = 300.0
"""More deaths than this in so long: the next worker would die as well.  A guess."""
BACKOFF_S = 0.5
"""Before the first restart; doubled at each further death within `DEATHS_WITHIN_S`."""
PREPARE_S = SPAWN_S + DEADLINE_S[wire.Setup]
"""For one worker to be there and to have read its files."""
WORKER = "the worker"
"""From whom we wait, in a line about a wait."""


class StartRefused(ShoalError):
    """The worker cannot start from there; the sentence says why, and another start may."""


@dataclass(frozen=True, slots=True)
class InnerResult:
    """Inner steps and tokens since the last snapshot."""

    steps: int
    tokens: int


class Learner:
    """The model, as the node sees it.  Belongs to one event loop."""

    def __init__(
        self,
        setup: wire.Setup,
        arena: Arena,
        *,
        store: BlobStore,
        socket_path: Path,
        on_resumed: Callable[[wire.Ready], None],
        on_save_failed: Callable[[str], None],
        on_saved: Callable[[Saved], None],
        waits: Waits,
    ) -> None:
        """
        Args:
            store: where checkpoints lie.
            on_resumed: told after a restart, never about the first start.
            on_saved: told of each snapshot that is whole and on disk.
        """
        self._setup = setup
        self._arena = arena
        self._store = store
        self._socket_path = socket_path
        self._on_resumed = on_resumed
        self._on_save_failed = on_save_failed
        self._on_saved = on_saved
        self._waits = waits
        self._life: WorkerLife | None = None
        self._set_up = asyncio.Event()
        """A worker has read its files and can be started."""
        self._started = False
        self.progress: wire.Progress | None = None
        """The newest; of the worker before, until a new one reports."""
        self.began_at: Digest | None = None
        """Name of the weights (spsa: of the sum) that the first worker began with."""

    @property
    def pid(self) -> int | None:
        """The process, None between two."""
        return self._life.pid if self._life else None

    @property
    def has_snapshot(self) -> bool:
        """Whether there is something on disk to start from."""
        return bool(snapshot_files(Path(self._setup.directory)))

    # --- supervision --------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a worker running until cancelled; then no process is left.

        Raises:
            ConfigError: files of the run or snapshots cannot be used, or workers keep dying.
        """
        deaths: deque[float] = deque()
        while True:
            reason = await self._one_life()
            now = time.monotonic()
            deaths.append(now)
            while deaths[0] < now - DEATHS_WITHIN_S:
                deaths.popleft()
            if len(deaths) >= MAX_DEATHS:
                raise ConfigError(
                    f"the worker died {len(deaths)} times within {DEATHS_WITHIN_S:g} s, the last "
                    f"time because: {reason}; its own words are above"
                )
            pause_s = BACKOFF_S * 2 ** (len(deaths) - 1)
            log.warning("worker lost: reason=%s restart_in_s=%g", reason, pause_s)
            with self._waits.on("the restart of the worker", "this node", pause_s):
                await asyncio.sleep(pause_s)

    async def _one_life(self) -> str:
        """From the start of a process to its end; says why it ended."""
        life = WorkerLife(self._socket_path, self._news)
        try:
            with self._waits.on("a new process", WORKER, SPAWN_S):
                await life.spawn()
            with self._waits.on("the run's files to be read", WORKER, DEADLINE_S[wire.Setup]):
                prepared, _ = await life.call(self._setup)
            if isinstance(prepared, wire.Failed):
                raise ConfigError(f"the worker cannot use the files of this run: {prepared.reason}")
            if self._started:
                await self._resume(life)
            else:
                self._life = life
                self._set_up.set()
            reason = await life.lost
        except WorkerLost as lost:
            reason = str(lost)
        finally:
            self._life = None
            self._set_up.clear()
            await life.end()
        return f"{reason} ({life.status})"

    async def _resume(self, life: WorkerLife) -> None:
        with self._waits.on("the last snapshot", WORKER, DEADLINE_S[wire.StartFromDisk]):
            event, _ = await life.call(wire.StartFromDisk())
        if isinstance(event, wire.Ready):
            log_ready(event, life.pid)
            self._life = life  # not before: nothing can be asked of a worker at no round
            self._on_resumed(event)
        elif isinstance(event, wire.Failed):
            raise ConfigError(
                f"the worker cannot go on: {event.reason}; start the node again, and it takes the "
                "weights of a member"
            )

    def _news(self, event: wire.Event) -> None:
        match event:
            case wire.Progress():
                self.progress = event
            case SaveFailed(reason):
                log.warning("snapshot not saved: reason=%s", reason)
                self._on_save_failed(reason)
            case Saved():
                self._on_saved(event)
            case _:
                log.warning("worker says: %s", event)

    # --- what can be asked --------------------------------------------------------------

    async def start(self, how: wire.Start) -> wire.Ready:
        """Start the first worker; returns once it stands at a round.

        Waits while a worker is being started or replaced.
        A checkpoint is read from the store, where it stays the caller's to release.

        Raises:
            StartRefused: it cannot start from there.
        """
        if self._started:
            raise LocalProtocolError("the learner is started already")
        from_blob = how.checkpoint.digest if isinstance(how, wire.StartFromCheckpoint) else None
        async with self._store.opened(from_blob) as fds:
            while True:
                await self._prepared()
                try:
                    with self._waits.on("the weights to start from", WORKER, DEADLINE_S[type(how)]):
                        event, _ = await self._running().call(how, fds=fds)
                    break
                except WorkerLost:
                    self._set_up.clear()
        if not isinstance(event, wire.Ready):
            raise StartRefused(event.reason if isinstance(event, wire.Failed) else str(event))
        self._started = True
        self.began_at = event.weights
        log_ready(event, self.pid)
        return event

    async def take_over(self, how: wire.StartFromCheckpoint) -> wire.Ready:
        """Go over to a member's weights, held in the store; what was asked before is void.

        Raises:
            StartRefused: it cannot; it is where it was.
        """
        with self._waits.on("the weights to go over to", WORKER, DEADLINE_S[type(how)]):
            async with self._store.opened(how.checkpoint.digest) as fds:
                event, _ = await self._running().call(how, fds=fds)
        if not isinstance(event, wire.Ready):
            raise StartRefused(event.reason if isinstance(event, wire.Failed) else str(event))
        log_ready(event, self.pid)
        return event

    async def inner(self, round: Round, steps: int) -> InnerResult:
        """Train until `steps` inner steps are made since the last snapshot."""
        done, _ = await self._running().ask(wire.RunInner(round, steps), wire.InnerDone)
        return InnerResult(done.steps, done.tokens)

    def close_inner(self) -> None:
        """Let `inner` return at the next step boundary."""
        if self._life:
            self._life.tell(wire.CloseInner())

    def change(self, settings: ChangeSettings) -> None:
        """What the creator has changed: for a worker that runs now."""
        if self._life:
            self._life.tell(settings)

    async def snapshot(self, round: Round, fragment: int) -> tuple[Digest, int]:
        """Digest and size of a fragment's payload of `round`, which the arena then holds.

        Raises:
            ArenaFull: there is no room for it.
        """
        done, fds = await self._running().ask(wire.Snapshot(round, fragment), wire.SnapshotDone)
        self._arena.adopt(done.digest, done.size_bytes, _the_one(fds))
        return done.digest, done.size_bytes

    async def outer(self, effect: ApplyOuter) -> wire.OuterDone:
        """Take the outer step, with payloads from the arena.

        Raises:
            PayloadRefused: one of them is none of this run; nothing was changed.
        """
        life = self._running()
        theirs = [share.digest for share in effect.shares if share.digest != effect.mine]
        for digest in theirs:
            if digest not in self._arena:
                raise PayloadRefused(digest, "the payload is not held any more")
        command = wire.ApplyOuter(effect.round, effect.fragment, effect.mine, effect.shares)
        event, _ = await life.call(command, fds=[self._arena.fd(digest) for digest in theirs])
        if isinstance(event, wire.OuterRefused):
            raise PayloadRefused(event.culprit, event.reason)
        return life.expect(command, event, wire.OuterDone)

    async def sample(self, boot: bytes, step: int, steps: int) -> Sampled:
        """spsa: measure so many steps."""
        how = wire_spsa.Sample(boot, step, steps)
        sampled, _ = await self._running().ask(how, wire_spsa.Sampled)
        return Sampled(sampled.step, sampled.scalars, sampled.tokens)

    async def add_scalars(self, frames: tuple[Frame, ...]) -> None:
        """spsa: add these frames to the sum."""
        await self._running().ask(wire_spsa.AddScalars(frames), wire_spsa.Added)

    async def name_sum(self, less: tuple[Frame, ...]) -> Digest:
        """spsa: the name of the sum less these frames."""
        life = self._running()
        *parts, last = wire_spsa.naming(less)
        for part in parts:
            await life.ask(part, wire_spsa.SumNamed)
        named, _ = await life.ask(last, wire_spsa.SumNamed)
        return named.sum

    async def sketch(self, nonce: int, checkpoint: Checkpoint | None = None) -> Sketched:
        """Our slow weights in short, or those of a checkpoint, before a start, too.

        Raises:
            StartRefused: the checkpoint is none of this run.
        """
        name = checkpoint.digest if checkpoint else None
        if not self._started:
            await self._prepared()
        with self._waits.on("a sketch of weights", WORKER, DEADLINE_S[MakeSketch]):
            async with self._store.opened(name) as fds:
                event, _ = await self._running().call(MakeSketch(nonce, checkpoint), fds=fds)
        if not isinstance(event, Sketched):
            raise StartRefused(event.reason if isinstance(event, wire.Failed) else str(event))
        return event

    async def save(self) -> None:
        """Returns once a snapshot of now is on disk, or `on_save_failed` was told why not."""
        with self._waits.on("the snapshot of the end", WORKER, DEADLINE_S[Save]):
            await self._running().ask(Save(), SaveDone)

    async def evaluate(self) -> float:
        """Validation loss of the slow weights, nats per byte."""
        with self._waits.on("the validation loss", WORKER, DEADLINE_S[wire.Evaluate]):
            evaluated, _ = await self._running().ask(wire.Evaluate(), wire.Evaluated)
        return evaluated.nats_per_byte

    async def export(self, *, at_base: bool = False) -> Checkpoint:
        """Weights and momentum (spsa: the sum, of now or at its newest base), held in the store.

        Raises:
            NoSpace: there is no room for them.
        """
        with self._waits.on("a checkpoint for a joiner", WORKER, DEADLINE_S[wire.Export]):
            exported, fds = await self._running().ask(wire.Export(at_base), wire.Exported)
        checkpoint, fd = exported.checkpoint, _the_one(fds)
        try:
            ref = await self._store.put_memory(fd, checkpoint.size_bytes)
        finally:
            os.close(fd)
        if ref.digest != checkpoint.digest:
            raise LocalProtocolError("the worker handed over another checkpoint than it names")
        return checkpoint

    async def _prepared(self) -> None:
        """Wait for a worker that has read its files; `run` has the deadlines, and gives up."""
        if not self._set_up.is_set():
            with self._waits.on("a worker that can be started", "this node", PREPARE_S):
                await self._set_up.wait()

    def _running(self) -> WorkerLife:
        if self._life is None:
            raise WorkerLost("the worker is being replaced")
        return self._life


def _the_one(fds: tuple[int, ...]) -> int:
    if len(fds) != 1:
        raise LocalProtocolError(f"the worker handed over {len(fds)} memories, not one")
    return fds[0]
