"""What is looked at besides training: what a cut did to a swarm, and what its records say.

After a heal the records of all peers are compared ten times a second until they are equal, byte
for byte.  At the end the tokens that each author claims are set against those that it trained on,
which the simulator knows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from node.sim.peer import Peer
from node.sim.records import RecordKeeping, tokens_of
from node.sim.report import AuthorReport, CutReport, PartReport, RecordReport
from node.sim.world import World
from protocol.ids import PeerId

POLL_S = 0.1
"""Between two looks at the records after a heal."""
GRACE_S = 30.0
"""After the end, until records are equal: calls that were lost cost ten seconds each."""


@dataclass(slots=True)
class _Cut:
    at: float
    parts: dict[PeerId, int]
    closed: dict[PeerId, int]
    """Rounds that each had closed then."""
    healed_at: float | None = None
    closed_at_heal: dict[PeerId, int] = field(default_factory=dict)
    equal_after_s: float | None = None


class Watch:
    """Of one simulation."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._cuts: list[_Cut] = []

    def cut(self) -> None:
        """The swarm was cut into the parts in which its peers now are."""
        parts = {peer.id: peer.group for peer in self._world.peers.values()}
        self._cuts.append(_Cut(self._world.clock.now, parts, self._closed()))

    def heal(self) -> None:
        """The parts reach each other again."""
        if self._cuts and self._cuts[-1].healed_at is None:
            cut = self._cuts[-1]
            cut.healed_at, cut.closed_at_heal = self._world.clock.now, self._closed()
            if self._world.records:
                self._poll(cut, self._world.records)

    def _poll(self, cut: _Cut, records: RecordKeeping) -> None:
        assert cut.healed_at is not None
        if self._cuts[-1] is not cut:
            return  # cut again before they were
        if records.are_equal():
            cut.equal_after_s = self._world.clock.now - cut.healed_at
        else:
            self._world.clock.after(POLL_S, self._poll, cut, records)

    def _everyone(self) -> dict[PeerId, Peer]:
        return {**self._world.lost, **self._world.peers}

    def _closed(self) -> dict[PeerId, int]:
        return {id: peer.stats.rounds for id, peer in self._everyone().items()}

    def cuts(self) -> tuple[CutReport, ...]:
        """What each did, until now."""
        return tuple(self._cut_report(cut) for cut in self._cuts)

    def _cut_report(self, cut: _Cut) -> CutReport:
        now = self._closed()
        at_heal = now if cut.healed_at is None else cut.closed_at_heal
        parts = []
        for part in sorted(set(cut.parts.values())):
            members = [id for id in cut.parts if cut.parts[id] == part]
            apart = [at_heal[id] - cut.closed[id] for id in members]
            after = [now[id] - at_heal[id] for id in members]
            parts.append(
                PartReport(
                    peers=len(members),
                    rounds=sum(apart),
                    rounds_least=min(apart),
                    rounds_after=sum(after),
                    rounds_after_least=min(after),
                )
            )
        return CutReport(
            at_s=cut.at,
            healed_at_s=cut.healed_at,
            parts=tuple(parts),
            equal_after_s=cut.equal_after_s,
        )

    def records(self) -> RecordReport | None:
        """What the records say; lets time pass until they are equal, `GRACE_S` at most."""
        world, records = self._world, self._world.records
        if not records:
            return None
        record_bytes, end = world.total().record_bytes, world.clock.now
        while not records.are_equal() and world.clock.now < end + GRACE_S:
            world.run_until(world.clock.now + POLL_S)
        return RecordReport(
            equal_after_s=world.clock.now - end if records.are_equal() else None,
            bytes=record_bytes,
            authors=tuple(self._author(records, peer) for peer in self._everyone().values()),
        )

    def _author(self, records: RecordKeeping, peer: Peer) -> AuthorReport:
        claims = [tokens_of(seen.get(peer.id)) for seen in records.views().values()]
        return AuthorReport(
            peer=peer.id,
            claimed=min(claims, default=0),
            closed=peer.stats.tokens,
            trained=peer.worker.still.tokens,
        )
