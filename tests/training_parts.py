"""The parts of a node's training with a worker and with peers that are made up."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from samples import CREATOR, spec
from small_run import small_run

from crdt.schema import Content
from node.arena import Arena
from node.blobs.files import NoSpace
from node.blobs.store import BlobStore
from node.donors import Members
from node.exchange import Exchange
from node.journal import Journal
from node.learner import Learner
from node.offers import Offers
from node.protection.around import Shared, UseShared
from node.records.tally import Tally
from node.telemetry import Waits
from node.training import Training
from node.worker import wire
from node.worker.wire_join import Sketched
from node.worker.wire_save import Saved, SaveFailed
from protocol.algorithms import NolocoConfig, TrainerConfig
from protocol.envelope import Signer
from protocol.errors import PeerError, PeerUnavailable, WorkerLost
from protocol.ids import Digest, PeerId, Round, digest_of
from protocol.messages import Checkpoint, Presence
from protocol.witness import BUCKETS, Sketch
from trainers.effects import ApplyOuter

R0, R1 = Round(0), Round(1)
MINE = digest_of(b"mine")


def numbers(value: float) -> bytes:
    """A sketch of weights that lie this far from those of 0.0."""
    return struct.pack(f"<{BUCKETS}f", value, *[0.0] * (BUCKETS - 1))


class Store:
    """Room for so many exports; who holds which how often."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.holders: dict[Digest, int] = {}

    def hold(self, name: Digest) -> None:
        if name not in self.holders and len(self.holders) >= self.room:
            raise NoSpace("disk quota: no room")
        self.holders[name] = self.holders.get(name, 0) + 1

    async def release(self, name: Digest) -> None:
        self.holders[name] -= 1
        if not self.holders[name]:
            del self.holders[name]

    async def forget_partials(self) -> None:
        pass


EXPORT_BYTES = 100


def name_of(round: int) -> Digest:
    """Of the export of this round."""
    return digest_of(bytes([round]))


class FakeLearner:
    """A worker of a few lines: exports 100 bytes, starts from anything."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.round = R0
        self.progress: wire.Progress | None = None
        self.has_snapshot = False
        self.started: list[wire.Start] = []
        self.refusal: Exception | None = None
        """Raised when it is given weights to go over to."""
        self.exports: list[bool] = []
        """Whether each was at a base."""
        self.export_s = 1.0
        self.lost = False
        self.numbers = numbers(0.0)
        self.told: Callable[[str], None] = lambda what: None
        """Called when it is asked for a snapshot or the validation loss."""
        self.news: list[tuple[Saved | SaveFailed, ...]] = []
        """What it tells before it answers each save; when there is nothing left: it is saved."""
        self.on_news: Callable[[Saved | SaveFailed], None] = lambda news: None

    async def start(self, how: wire.Start) -> wire.Ready:
        self.started.append(how)
        if isinstance(how, wire.StartFromCheckpoint):
            self.round = how.checkpoint.round
        return ready(self.round)

    async def take_over(self, how: wire.StartFromCheckpoint) -> wire.Ready:
        if self.refusal:
            raise self.refusal
        return await self.start(how)

    async def sketch(self, nonce: int, checkpoint: Checkpoint | None = None) -> Sketched:
        return Sketched(self.round, MINE, self.numbers)

    async def export(self, *, at_base: bool = False) -> Checkpoint:
        self.exports.append(at_base)
        await asyncio.sleep(self.export_s)
        if self.lost:
            raise WorkerLost("killed")
        name = name_of(self.round)
        self.store.hold(name)
        return Checkpoint(self.round, name, EXPORT_BYTES, name)

    async def save(self) -> None:
        self.told("save")
        if self.lost:
            raise WorkerLost("killed")
        for news in self.news.pop(0) if self.news else (Saved(self.round, 1),):
            self.on_news(news)

    async def evaluate(self) -> float:
        self.told("evaluate")
        return 2.0 - self.round / 10

    async def outer(self, effect: ApplyOuter) -> wire.OuterDone:
        return wire.OuterDone(round=effect.round, weights=MINE, gradient_norm=1.0, spread=4.0)


class FakeMembers:
    """Members that offer what a test wants; those that are not named are gone."""

    def __init__(self) -> None:
        self.offers: dict[PeerId, Checkpoint] = {}
        self.bases: dict[PeerId, Checkpoint] = {}
        """The same at a base of spsa."""
        self.sketches: dict[PeerId, Sketch] = {}
        self.known: dict[PeerId, dict[Round, Digest]] = {}
        self.fetched: list[tuple[Round, tuple[PeerId, ...]]] = []
        self.held: list[Digest] = []

    async def checkpoint(self, peer: PeerId, *, at_base: bool = False) -> Checkpoint:
        offers = self.bases if at_base else self.offers
        if peer not in offers:
            raise PeerUnavailable(peer, "it gives nothing")
        return offers[peer]

    async def sketch(self, peer: PeerId, nonce: int) -> Sketch:
        if peer not in self.sketches:
            raise PeerUnavailable(peer, "it does not say")
        return self.sketches[peer]

    async def weights(self, peer: PeerId, round: Round) -> Digest | None:
        return self.known.get(peer, {}).get(round)

    async def fetch(self, checkpoint: Checkpoint, donors: Sequence[PeerId]) -> None:
        self.fetched.append((checkpoint.round, tuple(donors)))
        self.held.append(checkpoint.digest)

    async def release(self, checkpoint: Checkpoint) -> None:
        self.held.remove(checkpoint.digest)


class Node:
    """A training whose worker and peers are made up.  Build it inside of a loop."""

    def __init__(
        self,
        root: Path,
        *,
        me: Signer = CREATOR,
        room: int = 10,
        trainer: TrainerConfig | None = None,
    ) -> None:
        self.store = Store(room)
        self.live: list[Presence] = []
        self.is_protected = False
        self.use_shared: UseShared | None = None
        """Members hold our own part only: what makes use of the rest."""
        self.content = Content()
        self.waits = Waits(lambda: 0.0)
        self.journal = Journal(
            me.peer, self.waits, self._write, lambda: None, Tally(root / "tally")
        )
        self.learner = FakeLearner(self.store)
        self.members = FakeMembers()
        self.training = Training(
            spec=spec(min_members=2, start_deadline_s=1000.0, trainer=trainer or NolocoConfig()),
            signer=me,
            boot=bytes(8),
            setup=small_run(root).setup(),
            socket_path=root / "worker.sock",
            arena=Arena(),
            store=cast(BlobStore, self.store),
            exchange=cast(Exchange, None),
            journal=self.journal,
            live=lambda: self.live,
            members=cast(Members, self.members),
            recover=self._recover,
            clock=asyncio.get_running_loop().time,
            rng=random.Random(1),
        )
        learner = self.training.learner = cast(Learner, self.learner)
        self.learner.on_news = self._on_news
        self.offers = Offers(learner, cast(BlobStore, self.store), self.journal, fragments=2)
        self.beginning = self.training._beginning
        self.beginning._learner = learner
        self._exporter = asyncio.create_task(self.offers.run())

    def _on_news(self, news: Saved | SaveFailed) -> None:
        if isinstance(news, Saved):
            self.training._on_saved(news)
        else:
            self.journal.save_failed(news.reason)

    def _write(self, change: Callable[[Content], Content]) -> None:
        self.content = change(self.content)

    async def _recover(self, shared: Shared) -> bool:
        """Whether members held a snapshot of ours, which is then on disk."""
        if self.use_shared:
            try:
                await shared(self.use_shared)
            except PeerError:
                return False
            self.is_protected = True
        self.learner.has_snapshot |= self.is_protected
        return self.is_protected

    def at_round(self, round: int) -> None:
        self.journal.state = "training"
        self.journal.round = self.learner.round = Round(round)

    def held(self) -> set[Digest]:
        """The exports in the store."""
        return set(self.store.holders)


def ready(round: Round) -> wire.Ready:
    """A worker at this round."""
    return wire.Ready(round, 0, MINE, "")
