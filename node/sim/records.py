"""Records of simulated peers: the node's own code, on virtual time and over simulated lines.

Each peer has the very `Records`, `Replica`, `Author` and `Journal` of a node, with Ed25519 keys;
made up are the event loop (`node.sim.loop`), the calls (`node.sim.calls`), the disk, and what a
real node draws from `secrets`, which here follows from the seed of the scenario.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence

from crdt.author import MAX_JUMP, Author
from crdt.record import Record
from crdt.replica import Replica
from crdt.schema import Content, View
from crdt.sync import Parcel, merge_parcel
from node.journal import Journal
from node.records.files import MAX_FILE_BYTES, RecordFiles
from node.records.records import Records
from node.records.tally import Noted, Tally
from node.sim.calls import Calls, Port, Reply
from node.sim.clock import Clock
from node.sim.loop import Loop
from node.sim.peer import Conditions, Peer
from node.sim.state import Origin
from node.telemetry import Waits
from protocol import codec
from protocol.envelope import Signer
from protocol.ids import Digest, PeerId, seed_of
from protocol.rpc import RecordCall
from protocol.spec import RunSpec
from trainers.effects import Blame, Closed, Finished
from trainers.events import Event, OuterDone, Resumed, Sampled, SumNamed

MAX_PEERS = 64
"""Of a scenario with records.  Every peer takes in every entry of every other: 0.25 ms each, so
64 peers cost a second of this processor a round, and 1,000 would cost four minutes."""
WRITE_S = 0.01
"""To have a record on disk.  A guess: one fsync."""
WALL_S = 1_767_225_600.0
"""What a wall clock that is right shows at the start: 2026-01-01."""
GOODBYE_S = 1.0
"""Who leaves waits so long at most until a few others have its last record, as `node.member`."""


class Notes(Tally):
    """The tally of one peer; on disk at once, as the outer step is that it is kept for."""

    def __init__(self, noted: Noted | None = None) -> None:
        self._noted = noted or Noted()

    def copy(self) -> Notes:
        """What a kill leaves of it."""
        return Notes(self._noted)

    async def flush(self) -> None:
        """Nothing is left to be done."""


class Disk(RecordFiles):
    """The directory of one peer's records: it outlives its process, unless it is lost."""

    def __init__(
        self, files: Mapping[PeerId, bytes] | None = None, notes: Notes | None = None
    ) -> None:
        self.files = dict(files or {})
        self.notes = notes or Notes()
        self._is_gone = False

    def pulled(self) -> Disk:
        """What a kill leaves of it; whatever its process does now changes nothing."""
        self._is_gone = True
        return Disk(self.files, self.notes.copy())

    def load(self, replica: Replica) -> None:
        """Merge all files into `replica`."""
        for _, data in sorted(self.files.items()):
            merge_parcel(replica, codec.decode(Parcel, data, max_bytes=MAX_FILE_BYTES))

    async def saved(self, records: Sequence[Record], *, durable: bool) -> bool:
        """It takes a while, and never fails."""
        await asyncio.sleep(WRITE_S)
        await self.close(records)
        return True

    async def close(self, last: Sequence[Record]) -> None:
        """Save these."""
        for record in () if self._is_gone else last:
            proofs = (record.proof,) if record.proof else ()
            self.files[record.author] = codec.encode(Parcel(record.chain, proofs))


class Keeper:
    """One process of a peer, as far as it keeps records."""

    def __init__(
        self,
        peer: Peer,
        author: Author,
        replica: Replica,
        disk: Disk,
        *,
        clock: Clock,
        calls: Calls,
        live: Callable[[], Sequence[PeerId]],
        blame: Callable[[PeerId, str], None],
        rng: random.Random,
    ) -> None:
        self.replica = replica
        self.disk = disk
        self._peer = peer
        self.loop = Loop(clock, peer.skew_s)  # type: ignore[abstract]  # the rest has no use here
        waits = Waits(lambda: WALL_S + self.loop.time())
        self._records = Records(
            author=author,
            replica=replica,
            files=disk,
            rpc=Port(calls, peer, self.loop),
            peers=live,
            changed=lambda authors: None,
            blame=blame,
            waits=waits,
            rng=rng,
        )
        self.journal = Journal(
            peer.id, waits, self._records.write, speak=lambda: None, tally=disk.notes
        )
        self._began_at: Digest | None = None
        self._task = self.loop.spawn(self._records.run(), "records")

    def serve(self, sender: Peer, body: bytes, reply: Reply) -> None:
        """Answer a call; honest peers break no protocol, so `Malformed` ends the simulation."""
        self.loop.spawn(self._answer(sender.id, body, reply), "records: answer")

    async def _answer(self, sender: PeerId, body: bytes, reply: Reply) -> None:
        call = codec.decode(RecordCall, body, max_bytes=len(body))
        reply(codec.encode(await self._records.handle(sender, call)))

    def told(self, event: Event) -> None:
        """What its worker answered the trainer; see `node.noted_learner`."""
        match event:
            case OuterDone(_, weights) | SumNamed(weights):
                self.journal.weights = weights
            case Resumed():
                self._resumed(event)
            case Sampled() if self.journal.weights is None:
                self.journal.weights = self._began_at

    def _resumed(self, event: Resumed) -> None:
        """As `node.training` does."""
        self._began_at = event.weights
        self.journal.resumed(event.round)
        self._records.write(lambda content: content.joined(None, event.round))
        origin = self._peer.worker.origin
        if origin is Origin.OWN:
            self.journal.goes_on(event.round, event.weights)
        elif origin is Origin.GIVEN or not event.horizon:  # spsa goes on with its own steps
            self.journal.begins(event.round, event.weights)

    def blames(self, effect: Blame) -> None:
        """As a node signs whom it blames."""
        self._records.write_blame(effect.peer, effect.reason)

    def flush(self, then: Callable[[], None]) -> None:
        """Have our record with a few others, `GOODBYE_S` at most."""

        async def last_words() -> None:
            await self._records.flush(GOODBYE_S)
            then()

        self.loop.spawn(last_words(), "last record")

    def stop(self) -> None:
        """End the process; pull the disk first if it is killed."""
        self.loop.resume()
        self._task.cancel()


class RecordKeeping:
    """The records of all peers of a world."""

    def __init__(
        self,
        spec: RunSpec,
        *,
        seed: int,
        clock: Clock,
        peers: dict[PeerId, Peer],
        conditions: Conditions,
        live: Callable[[Peer], Sequence[PeerId]],
        blame: Callable[[PeerId, PeerId, str], None],
    ) -> None:
        self.calls = Calls(clock, random.Random(seed_of(seed, "calls")), peers, conditions)
        self.keepers: dict[PeerId, Keeper] = {}
        """Of the peers that are there."""
        self._spec = spec
        self._seed = seed
        self._clock = clock
        self._live = live
        self._blame = blame
        self._disks: dict[PeerId, Disk] = {}
        """Of those that are not."""
        self._starts: dict[PeerId, int] = {}

    def open(self, peer: Peer, signer: Signer, *, is_wiped: bool = False) -> None:
        """A process of this peer starts; with the disk that it had, unless it is lost."""
        me = peer.id
        start = self._starts[me] = self._starts.get(me, 0) + 1
        kept = self._disks.pop(me, None)
        author = Author(
            signer=signer,
            run=self._spec.run,
            client_id=seed_of(self._seed, "client", me, start) & 0xFFFF_FFFF,
            jump=1 + seed_of(self._seed, "jump", me, start) % MAX_JUMP,
        )
        keeper = self.keepers[me] = Keeper(
            peer,
            author,
            Replica(self._spec.run, reserved=(me, self._spec.creator)),
            Disk() if is_wiped or kept is None else kept,
            clock=self._clock,
            calls=self.calls,
            live=lambda: self._live(peer),
            blame=lambda other, reason: self._blame(me, other, reason),
            rng=random.Random(seed_of(self._seed, "records", me, start)),
        )
        self.calls.serve[me] = keeper.serve

    def lost(self, peer: Peer) -> None:
        """Its process is no more."""
        keeper = self.keepers.pop(peer.id)
        del self.calls.serve[peer.id]
        self._disks[peer.id] = keeper.disk.pulled()
        keeper.stop()

    def close(self) -> None:
        """End all of them."""
        for keeper in self.keepers.values():
            keeper.stop()
        self._clock.run_until(self._clock.now)

    # --- what a trainer was told, and asked for ---------------------------------------------

    def told(self, me: Peer, event: Event) -> None:
        """Its worker answered."""
        self.keepers[me.id].told(event)

    def asked(self, me: Peer, effect: Closed | Finished | Blame) -> None:
        """Something for its record."""
        keeper = self.keepers[me.id]
        match effect:
            case Closed():
                keeper.journal.closed(effect)
            case Finished():
                keeper.journal.finished(effect)
            case Blame():
                keeper.blames(effect)

    # --- what is seen from above ------------------------------------------------------------

    def are_equal(self) -> bool:
        """Whether all that are there hold the same, byte for byte."""
        return len({keeper.replica.root() for keeper in self.keepers.values()}) <= 1

    def views(self) -> dict[PeerId, dict[PeerId, View]]:
        """What each peer sees of each author."""
        return {me: keeper.replica.views() for me, keeper in self.keepers.items()}


def tokens_of(view: View | None) -> int:
    """What an author claims to have trained on."""
    return view.totals.tokens if isinstance(view, Content) else 0
